"""The teacher's outputs on a fixed pool of crops: computed once, checked chunk by chunk, memory-mapped.

A pool is a folder of the cache, named by the fingerprints of teacher, pictures and recipe::

    x.npy             crops [1, n, 3, S, S], uint8
    x_hat.npy         their reconstructions [levels, n, 3, S, S], uint8, where they are asked for
    y.npy z.npy       latents before quantisation [levels, n, C, h, w], float16; [1, ...] where levels share them
    pool.json         what it holds, and the sha256 of every CHUNK crops

It grows under a hidden name and is renamed when it is whole. Whatever lacks its checksum, since the work was
interrupted or a file went bad, is computed again, and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_kd.data.images import Progress, crop_pool, open_images, to_device, unheard
from nas_kd.distillation.loss import Batch
from nas_kd.distillation.training import Pictures
from nas_kd.errors import UsageError
from nas_kd.files import build_once, lock_of, write_text
from nas_kd.measurement.device_lock import training_on
from nas_kd.recipe import Weights
from nas_kd.teachers.teacher import Teacher

FORMAT = 2
CHUNK = 16
"""Crops the teacher sees at once, and crops under one checksum."""
KEEP_S = 1.0
"""Between writes of the checksums while a pool grows: what a crash may cost."""
FIRST_CROPS = 600
"""As many pictures as a trunk starts from, at most."""
DEVIATION_CROPS, LEAST_DEVIATION = 64, 1e-3
"""Crops that the deviations of a teacher's latents are taken of; a channel that hardly moves counts as this."""
SHARE_OF_FREE = 0.25
"""Of a GPU's free memory that one trial's pool may take; the rest is for training, and for other trials."""
ARRAYS = ("x", "x_hat", "y", "z")
MANIFEST = "pool.json"
LIMIT = "limit_gb"
"""The file beside the pools that says what all of them may take on disk."""
TARGETS = "targets"
"""Folder of pools in what studies share."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PoolRecipe:
    """Which crops make the pool, and whether the teacher restores them.

    Without ``x_hat`` it runs only as far as its latents, and the pool is a fraction of the size.
    """

    data: str = "builtin"
    crops: int = 1000
    size: int = 256
    seed: int = 0
    x_hat: bool = False


class Lessons(Pictures, Protocol):
    """Crops with what a teacher makes of them: stored, or computed when they are drawn."""

    device: str
    """Where batches are wanted."""
    key: str
    """Tells these from others."""

    @property
    def latent_widths(self) -> tuple[int, int]:
        """Channels of the teacher's y and z."""

    def pictures(self) -> Tensor:
        """The first crops, float [n, 3, S, S] in [0, 1]: what a student starts from."""


class TargetPool(Lessons):
    """Crops with the teacher's x_hat, y and z, on the device where they fit, else mapped from their files.

    Args:
        folder: what ``target_pool`` returned; while this object lives, nobody drops it.
        device: where batches are wanted.
        room_bytes: what may be copied to the device; by default a share of a GPU's free memory.
    """

    def __init__(self, folder: Path, device: str = "cpu", room_bytes: int | None = None):
        weakref.finalize(self, os.close, in_use(folder))
        # Mapped privately: torch wants memory that could be written to.
        files = {name: folder / f"{name}.npy" for name in ARRAYS}
        self.arrays = {
            n: np.load(file, mmap_mode="c") for n, file in files.items() if file.exists()
        }
        self.device, self.key = device, folder.name
        self._room = _room(device) if room_bytes is None else room_bytes
        self._placed: dict[str, Tensor] = {}
        self._deviations: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.arrays["x"].shape[1]

    @property
    def side_px(self) -> int:
        """Of a crop."""
        return self.arrays["x"].shape[-1]

    @property
    def latent_widths(self) -> tuple[int, int]:
        """Channels of the teacher's y and z."""
        return self.arrays["y"].shape[2], self.arrays["z"].shape[2]

    def pictures(self) -> Tensor:
        """The first crops, float [n, 3, S, S] in [0, 1]."""
        return torch.from_numpy(np.array(self.arrays["x"][0, :FIRST_CROPS])).float() / 255

    def batch(self, index: Tensor, level: Tensor, lmbda: Tensor, weights: Weights) -> Batch:
        """The crops at ``index`` with the teacher's outputs at ``level`` that the loss weighs.

        Raises ValueError where it weighs x_hat and the pool was made without.
        """
        if weights.kd_x > 0 and "x_hat" not in self.arrays:
            raise ValueError(
                "the loss weighs the teacher's x_hat (kd_x > 0), and the pool has none"
            )
        return Batch(
            x=self._take("x", index, level).float() / 255,
            level=to_device(level, self.device),
            lmbda=to_device(lmbda, self.device),
            x_hat_T=self._take("x_hat", index, level).float() / 255 if weights.kd_x > 0 else None,
            y_T=self._latents("y", index, level, weights) if weights.kd_y > 0 else None,
            z_T=self._latents("z", index, level, weights) if weights.kd_z > 0 else None,
        )

    def _latents(self, name: str, index: Tensor, level: Tensor, weights: Weights) -> Tensor:
        """The teacher's, in our form divided by their deviation, so that a weight means the same for each teacher."""
        latents = self._take(name, index, level).float()
        if weights.form != "kd":
            return latents
        return scaled(latents, self._deviation(name), to_device(level, self.device))

    def _deviation(self, name: str) -> Tensor:
        if name not in self._deviations:
            some = torch.from_numpy(np.array(self.arrays[name][:, :DEVIATION_CROPS]))
            self._deviations[name] = deviations(some).to(self.device)
        return self._deviations[name]

    def is_far(self, weights: Weights) -> bool:
        """Whether batches come from the host's memory to another device's."""
        asked = {"x": 1.0, "x_hat": weights.kd_x, "y": weights.kd_y, "z": weights.kd_z}
        on_host = [self._place(n).device.type == "cpu" for n in self.arrays if asked[n] > 0]
        return self.device != "cpu" and any(on_host)

    def _take(self, name: str, index: Tensor, level: Tensor) -> Tensor:
        # Latents of a variable-rate teacher are stored once for all levels, as crops are.
        row = (level - 1) % len(self.arrays[name]) * len(self) + index
        placed = self._place(name)
        if placed.device.type == "cpu":
            return to_device(placed[row], self.device)
        return placed[to_device(row, self.device)]

    def _place(self, name: str) -> Tensor:
        """An array [levels x n, ...], copied to the device once where there is room for it."""
        if name not in self._placed:
            array = torch.from_numpy(self.arrays[name]).flatten(0, 1)
            if array.nbytes <= self._room:
                self._room -= array.nbytes
                array = array.clone() if self.device == "cpu" else array.to(self.device)
            self._placed[name] = array
        return self._placed[name]


def deviations(latents: Tensor) -> Tensor:
    """Of each channel of latents [levels, n, C, h, w]: [levels, C, 1, 1]; NaN where a teacher lacks it."""
    found = latents.float().std((1, 3, 4)).clamp(min=LEAST_DEVIATION)
    return found[..., None, None]


def scaled(latents: Tensor, deviation: Tensor, level: Tensor) -> Tensor:
    """Latents in units of their deviation at their levels, of which there is one row where levels share them."""
    return latents / deviation[(level - 1) % len(deviation)]


def _room(device: str) -> int:
    if not device.startswith("cuda"):
        return 0  # what is mapped is in the host's memory as it is, and shared by all trials
    return int(SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0])


def in_use(folder: Path) -> int:
    """A shared lock on the pool, as the descriptor that holds it; raises UsageError where it is gone."""
    try:
        held = os.open(folder / MANIFEST, os.O_RDONLY)
    except OSError as error:
        raise UsageError(
            f"{folder}: the teacher's outputs are gone ({error.strerror}); run the same command again"
        ) from error
    fcntl.flock(held, fcntl.LOCK_SH)
    if os.fstat(held).st_nlink == 0:
        os.close(held)
        raise UsageError(
            f"{folder}: the teacher's outputs were just dropped; run the same command again"
        )
    return held


def target_pool(
    cache: Path,
    teacher: Teacher,
    recipe: PoolRecipe,
    progress: Progress | None = None,
    device: str = "cpu",
    reading: Progress = unheard,
) -> Path:
    """The pool's folder below ``cache``: there already, and checked, or computed now.

    Raises UsageError where it takes more than the limit of the cache.

    Args:
        cache: of all pools; the least recently used ones make room where all together exceed its limit.
        teacher: on the CPU; it is moved to ``device`` for the work.
        recipe: which crops.
        progress: hears (done, total) crops while there is something to compute.
        device: where the teacher works.
        reading: hears (done, total) pictures that are read.
    """
    images = open_images(recipe.data, "train", recipe.seed, reading)
    key_of = [FORMAT, teacher.fingerprint, images.fingerprint, asdict(recipe)]
    key = hashlib.sha256(json.dumps(key_of, sort_keys=True).encode()).hexdigest()[:16]
    plan, most_gb = _plan(teacher, recipe), limit_gb(cache)
    _require_below(most_gb, plan, recipe)

    def build(growing: Path) -> None:
        drop(cache, most_gb * 1e9 - _bytes(plan))
        about = {"teacher": teacher.name, "fingerprint": teacher.fingerprint} | asdict(recipe)
        about["images"] = images.fingerprint
        grown = _Growing(growing, plan, {"format": FORMAT, "key": key} | about)
        if grown.lacking:
            crops = crop_pool(images, recipe.crops, recipe.size, recipe.seed)
            with training_on(device) as between:
                _grow(grown, teacher.to(device), torch.from_numpy(crops), device, progress, between)
            teacher.to("cpu")
        grown.keep()

    return build_once(cache / key, build, lambda folder: _is_whole(folder, plan))


Plan = dict[str, tuple[Any, tuple[int, ...]]]


def _plan(teacher: Teacher, recipe: PoolRecipe) -> Plan:
    """Type and shape of every array."""
    n, picture = recipe.crops, (3, recipe.size, recipe.size)
    y, z = teacher.to("cpu").latents(torch.zeros(1, *picture), 1)
    kept = 1 if teacher.shared_latents else teacher.levels
    plan: Plan = {
        "x": (np.uint8, (1, n, *picture)),
        "x_hat": (np.uint8, (teacher.levels, n, *picture)),
        "y": (np.float16, (kept, n, *y.shape[1:])),
        "z": (np.float16, (kept, n, *z.shape[1:])),
    }
    return {name: plan[name] for name in ARRAYS if name != "x_hat" or recipe.x_hat}


def _bytes(plan: Plan) -> int:
    return sum(math.prod(shape) * np.dtype(kind).itemsize for kind, shape in plan.values())


def limit_gb(cache: Path) -> float:
    """What the pools of a cache may take on disk together, infinite where nobody limited them."""
    try:
        limit = float((cache / LIMIT).read_text())
    except FileNotFoundError:
        return math.inf
    except (OSError, ValueError):
        limit = math.nan
    if not limit > 0:
        raise UsageError(f"{cache / LIMIT}: is no number of GB; set it: nas-kd cache --limit GB")
    return limit


def limit_pools(cache: Path, gb: float) -> None:
    """Limit what the pools of a cache take on disk, now and later; infinite lifts the limit."""
    cache.mkdir(parents=True, exist_ok=True)
    if math.isinf(gb):
        (cache / LIMIT).unlink(missing_ok=True)
        return
    write_text(cache / LIMIT, f"{gb:g}\n")
    drop(cache, gb * 1e9)


def _require_below(most_gb: float, plan: Plan, recipe: PoolRecipe) -> None:
    size_gb = _bytes(plan) / 1e9
    if size_gb > most_gb:
        fit = int(recipe.crops * most_gb / size_gb)
        raise UsageError(
            f"the teacher's outputs on {recipe.crops} crops of {recipe.size} px take {size_gb:.2g} GB on disk, "
            f"more than the {most_gb:g} GB that all may take: raise the limit (nas-kd cache --limit), or take "
            f"crops = {fit} or fewer"
        )


class _Growing:
    """A pool's files, open for writing; ``lacking`` are the chunks without a valid checksum."""

    def __init__(self, folder: Path, plan: Plan, about: dict[str, Any]):
        folder.mkdir(exist_ok=True)
        self.folder, self.about = folder, about
        said = manifest(folder)
        self.arrays = {name: writable(folder / f"{name}.npy", *plan[name]) for name in plan}
        self.n = plan["x"][1][1]
        starts = range(0, self.n, CHUNK)
        valid = said.get("chunks", {}) if said.get("key") == about["key"] else {}
        sums = {start: _digest(self.arrays, start) for start in starts if str(start) in valid}
        self.sums = {start: s for start, s in sums.items() if s == valid[str(start)]}
        self.lacking = [start for start in starts if start not in self.sums]
        self.keep()

    def add(self, start: int) -> None:
        """Take a chunk that was written for done."""
        self.sums[start] = _digest(self.arrays, start)
        if time.monotonic() - self._kept_at > KEEP_S:
            self.keep()

    def keep(self) -> None:
        """Put what is done on disk: the arrays first, then their checksums."""
        for array in self.arrays.values():
            array.flush()  # type: ignore[attr-defined]
        chunks = {str(start): s for start, s in sorted(self.sums.items())}
        write_text(self.folder / MANIFEST, json.dumps(self.about | {"chunks": chunks}) + "\n")
        self._kept_at = time.monotonic()


def writable(path: Path, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of a file, made anew where the file is missing or of another shape."""
    with suppress(OSError, ValueError):
        array = np.load(path, mmap_mode="r+")
        if array.dtype == kind and array.shape == shape:
            return array
    array = np.lib.format.open_memmap(path, "w+", kind, shape)
    with open(path, "r+b") as file:
        try:
            # Taken now: a disk that is full while mapped memory is written kills the process.
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise UsageError(
                f"{path}: no room for {path.stat().st_size / 1e9:.2g} GB ({error.strerror}); free some, or "
                "take fewer crops"
            ) from error
    return array


def _digest(arrays: Arrays, start: int) -> str:
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array[:, start : start + CHUNK]).data)
    return digest.hexdigest()


def manifest(folder: Path) -> dict[str, Any]:
    """What a pool's folder says of itself; nothing where it cannot be read."""
    with suppress(OSError, ValueError):
        said = json.loads((folder / MANIFEST).read_text())
        return said if isinstance(said, dict) else {}
    return {}


def _is_whole(folder: Path, plan: Plan) -> bool:
    """Whether all is there and as it was written."""
    said, arrays = manifest(folder), {}
    try:
        for name in plan:
            arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    if any((array.dtype, array.shape) != plan[name] for name, array in arrays.items()):
        return False
    starts, chunks = range(0, plan["x"][1][1], CHUNK), said.get("chunks", {})
    if said.get("key") != folder.name or any(
        chunks.get(str(start)) != _digest(arrays, start) for start in starts
    ):
        return False
    os.utime(folder / MANIFEST)  # it is used
    return True


def _grow(
    grown: _Growing,
    teacher: Teacher,
    crops: Tensor,
    device: str,
    progress: Progress | None,
    between: Callable[[], None],
) -> None:
    arrays, done = grown.arrays, CHUNK * len(grown.sums)
    kept = len(arrays["y"])
    for start in grown.lacking:
        part = slice(start, start + CHUNK)
        arrays["x"][0, part] = crops[part].numpy()
        x = crops[part].to(device).float() / 255
        for level in range(teacher.levels if "x_hat" in arrays else kept):
            if "x_hat" in arrays:
                x_hat, y, z = teacher.outputs(x, level + 1)
                rounded = (x_hat.clamp(0, 1) * 255).round().to(torch.uint8)
                arrays["x_hat"][level, part] = rounded.cpu().numpy()
            else:
                y, z = teacher.latents(x, level + 1)
            arrays["y"][level % kept, part] = y.half().cpu().numpy()
            arrays["z"][level % kept, part] = z.half().cpu().numpy()
        grown.add(start)
        between()  # where a measurement may want the device alone
        done = min(done + CHUNK, grown.n)
        if progress is not None:
            progress(done, grown.n)


def images_of(folder: Path) -> str | None:
    """The fingerprint of the pictures that a pool's crops are of; None in pools of earlier versions."""
    return manifest(folder).get("images")


def pools(cache: Path) -> list[tuple[Path, int, dict[str, Any]]]:
    """Folder, bytes on disk and description of every pool, the least recently used one first."""
    found = [folder for folder in cache.glob("*") if folder.is_dir()]  # unfinished ones too
    found.sort(key=_used_at)
    sizes = [sum(one.st_size for one in stats(folder)) for folder in found]
    return [(f, size, manifest(f)) for f, size in zip(found, sizes, strict=True)]


def stats(folder: Path) -> list[os.stat_result]:
    """Of the files of a folder and below; those that another process deletes meanwhile are left out."""
    found = list[os.stat_result]()
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found.append(os.stat(os.path.join(parent, name)))
    return found


def _used_at(folder: Path) -> float:
    for path in (folder / MANIFEST, folder):
        with suppress(FileNotFoundError):
            return path.stat().st_mtime
    return 0.0


def drop(cache: Path, keep_bytes: float = 0) -> int:
    """Delete the least recently used pools until the others take ``keep_bytes``; returns bytes freed.

    Pools that a process works with stay.
    """
    there = pools(cache)
    total = left = sum(size for _, size, _ in there)
    for folder, size, _ in there:
        if left <= max(keep_bytes, 0):
            break
        if _drop(folder):
            left -= size
    return total - left


def _drop(folder: Path) -> bool:
    """Whether the pool was deleted here: not where it is in use, nor where another process was first."""
    with suppress(BlockingIOError, FileNotFoundError), open(lock_of(folder), "w") as growing:
        fcntl.flock(growing, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(folder / MANIFEST, "a") as used:
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            return True
    return False
