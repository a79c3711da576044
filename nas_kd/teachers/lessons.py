"""Crops drawn anew at every step, with the teacher's outputs on them computed in that step: for GPUs.

What takes the place of a pool (``targets``) is a folder of the cache, named by the same fingerprints::

    pictures.npy            pixels uint8 [n, 3] of all pictures, where they are no more than a shard
    first.npy               the first crops of the pool there would be, uint8 [n, 3, S, S]
    deviations.safetensors  of the teacher's latents on some of them: the very ones that a pool's are scaled by
    teacher/                its weights
    pool.json               what it holds: sizes of the pictures, sha256 of its files

It holds all that a worker needs, but for pictures that are more than a shard: those are read from their own folder.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import threading
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from nas_kd.data.images import (
    ImageSet,
    Progress,
    crop_pool,
    decoded,
    open_images,
    reopened,
    unheard,
)
from nas_kd.distillation.loss import Batch
from nas_kd.distillation.placed_pictures import flat
from nas_kd.distillation.rotating_crops import SHARD_BYTES, anew
from nas_kd.distillation.training import EveryCrop, Pictures
from nas_kd.files import build_once, write_bytes, write_text
from nas_kd.measurement.device_lock import training_on
from nas_kd.recipe import Weights
from nas_kd.teachers.kept_teacher import keep_teacher, kept_teacher
from nas_kd.teachers.targets import (
    CHUNK,
    DEVIATION_CROPS,
    FIRST_CROPS,
    MANIFEST,
    Lessons,
    PoolRecipe,
    TargetPool,
    deviations,
    drop,
    in_use,
    limit_gb,
    manifest,
    scaled,
    writable,
)
from nas_kd.teachers.teacher import Teacher

FORMAT = 1
PIXELS, FIRST, DEVIATIONS, TEACHER = (
    "pictures.npy",
    "first.npy",
    "deviations.safetensors",
    "teacher",
)


class TaughtCrops(Lessons):
    """Crops of any source with the teacher's outputs on them, computed where batches are wanted.

    A teacher of one model for each level gets levels that spread over the batch, in ascending order: batches hardly
    differ then in how many crops each model has, and each sees its own together.

    Args:
        crops: without a teacher.
        teacher: on ``device``.
        first: crops that a student starts from, uint8 [n, 3, S, S].
        deviations: of y and of z, [levels, C, 1, 1] or [1, C, 1, 1], on ``device``.
        key: tells this source from others.
        device: where batches are wanted.
    """

    def __init__(
        self,
        crops: Pictures,
        teacher: Teacher,
        first: Tensor,
        deviations: dict[str, Tensor],
        key: str,
        device: str = "cpu",
    ):
        self.crops, self.teacher, self.key, self.device = crops, teacher, key, device
        self._first, self._deviations = first, deviations
        self.shared = self  # lives as long as what one run has of it
        self._alone = threading.Lock()  # CompressAI's models are listened to while they run

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def latent_widths(self) -> tuple[int, int]:
        """Channels of the teacher's y and z."""
        return self.teacher.latent_widths

    def pictures(self) -> Tensor:
        """The first crops, float [n, 3, S, S] in [0, 1]."""
        return self._first.float() / 255

    def of_one_run(self) -> TaughtCrops:
        """With crops of its own, and the same teacher."""
        one = copy.copy(self)
        one.crops, one.shared = self.crops.of_one_run(), self
        return one

    def turn(self, step: int) -> None:
        """As the crops do."""
        self.crops.turn(step)

    def is_far(self, weights: Weights) -> bool:
        """Whether the crops come from the host's memory."""
        return self.crops.is_far(weights)

    def drawn_levels(
        self, count: int, levels: int, weights: Weights, generator: torch.Generator
    ) -> Tensor:
        """Levels [count], each as likely as any other in the whole."""
        if not self._by_level(weights):
            return super().drawn_levels(count, levels, weights, generator)
        place = (torch.rand((), generator=generator) + torch.arange(count)) / count
        return 1 + (place * levels).long().clamp(max=levels - 1)

    def at_levels(self, level: Tensor, weights: Weights) -> Pictures:
        """For batches of these levels, where the teacher's work depends on them."""
        if not self._by_level(weights):
            return self
        return _AtLevels(self, tuple(level.tolist()))

    def _by_level(self, weights: Weights) -> bool:
        return weights.needs_teacher and (weights.kd_x > 0 or not self.teacher.shared_latents)

    def batch(self, index: Tensor, level: Tensor, lmbda: Tensor, weights: Weights) -> Batch:
        """The crops at ``index`` with the teacher's outputs at ``level`` that the loss weighs."""
        levels = tuple(level.tolist()) if self._by_level(weights) else (1,) * len(index)
        return self.taught(index, level, lmbda, weights, levels)

    def taught(
        self,
        index: Tensor,
        level: Tensor,
        lmbda: Tensor,
        weights: Weights,
        levels: tuple[int, ...],
    ) -> Batch:
        """The same where ``levels`` are known to the host, and nothing waits for it."""
        batch = self.crops.batch(index, level, lmbda, weights)
        if not weights.needs_teacher:
            return batch
        x_hat, y, z = self._outputs(batch.x, levels, restored=weights.kd_x > 0)
        return replace(
            batch,
            x_hat_T=x_hat.clamp(0, 1) if weights.kd_x > 0 else None,
            y_T=self._scaled("y", y, batch.level, weights) if weights.kd_y > 0 else None,
            z_T=self._scaled("z", z, batch.level, weights) if weights.kd_z > 0 else None,
        )

    def _scaled(self, name: str, latents: Tensor, level: Tensor, weights: Weights) -> Tensor:
        return scaled(latents, self._deviations[name], level) if weights.form == "kd" else latents

    def _outputs(self, x: Tensor, levels: tuple[int, ...], restored: bool) -> list[Tensor]:
        """x_hat (x itself unless ``restored``), y and z, each [B, ...]."""
        order = sorted(range(len(levels)), key=levels.__getitem__)
        found = list[tuple[Tensor, ...]]()
        with self._alone, torch.no_grad():
            for level, members in groupby(order, levels.__getitem__):
                mine = torch.stack([x[i] for i in members])
                if restored:
                    found.append(self.teacher.outputs(mine, level))
                else:
                    found.append((mine, *self.teacher.latents(mine, level)))
        parts = [torch.cat(each) for each in zip(*found, strict=True)]
        if order == sorted(order):
            return parts
        back = sorted(range(len(order)), key=order.__getitem__)
        return [torch.stack([part[i] for i in back]) for part in parts]


@dataclass(frozen=True)
class _AtLevels(Pictures):
    """Taught crops for batches of levels that the host knows: the pattern."""

    source: TaughtCrops
    pattern: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, index: Tensor, level: Tensor, lmbda: Tensor, weights: Weights) -> Batch:
        """Without a look at ``level``, which may lie on a GPU."""
        return self.source.taught(index, level, lmbda, weights, self.pattern)

    def is_far(self, weights: Weights) -> bool:
        """As the source is."""
        return self.source.is_far(weights)


# --- the folder -------------------------------------------------------------------------------


def lessons_folder(
    cache: Path,
    teacher: Teacher,
    recipe: PoolRecipe,
    progress: Progress = unheard,
    device: str = "cpu",
) -> Path:
    """The folder below ``cache`` from which ``lessons`` takes crops and teacher: there already, or made now.

    Args:
        cache: of all pools.
        teacher: on the CPU; it is moved to ``device`` for the work.
        recipe: its first crops are those that students start from and latents are scaled by.
        progress: hears (done, total) pictures that are read.
        device: where the teacher works.
    """
    images = open_images(recipe.data, "train", recipe.seed, progress)
    recipe = replace(recipe, x_hat=False)
    key_of = ["anew", FORMAT, teacher.fingerprint, images.fingerprint, asdict(recipe)]
    key = hashlib.sha256(json.dumps(key_of, sort_keys=True).encode()).hexdigest()[:16]

    def build(growing: Path) -> None:
        first = crop_pool(images, recipe.crops, recipe.size, recipe.seed, FIRST_CROPS)
        np.save(growing / FIRST, first)
        with training_on(device):
            found = _deviations(teacher.to(device), torch.from_numpy(first), device)
        write_bytes(growing / DEVIATIONS, save(found))
        keep_teacher(teacher.to("cpu"), growing / TEACHER)
        _keep_pixels(images, growing, limit_gb(cache) * 1e9, cache, progress)
        about = {"teacher": teacher.name, "fingerprint": teacher.fingerprint} | asdict(recipe)
        about |= {"images": images.fingerprint, "sizes": images.sizes, "names": images.names}
        about |= {"format": FORMAT, "key": key, "anew": True, "files": _sums(growing)}
        write_text(growing / MANIFEST, json.dumps(about) + "\n")

    return build_once(cache / key, build, _is_whole)


def _keep_pixels(
    images: ImageSet, growing: Path, most_bytes: float, cache: Path, progress: Progress
) -> None:
    """Decoded once for all workers, where that is no more than a shard and the cache may take it."""
    needed = sum(3 * height * width for height, width in images.sizes)
    if needed > min(SHARD_BYTES, most_bytes):
        return
    drop(cache, most_bytes - needed)
    pictures = decoded(images, progress)
    pixels = writable(growing / PIXELS, np.uint8, (needed // 3, 3))
    np.concatenate([flat(image).numpy() for image in pictures], out=pixels)
    pixels.flush()  # type: ignore[attr-defined]


def _deviations(teacher: Teacher, first: Tensor, device: str) -> dict[str, Tensor]:
    """Of y and z over some crops, each in half precision first, as a pool stores them."""
    parts = list(first[:DEVIATION_CROPS].split(CHUNK))
    found: list[list[Tensor]] = []
    for level in range(1, 1 + (1 if teacher.shared_latents else teacher.levels)):
        each = [teacher.latents(part.to(device).float() / 255, level) for part in parts]
        found.append([torch.cat(one).half().cpu() for one in zip(*each, strict=True)])
    y, z = (deviations(torch.stack(one)) for one in zip(*found, strict=True))
    return {"y": y, "z": z}


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {}
    for path in files:
        if path.name != MANIFEST:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(folder).as_posix()] = digest
    return found


def _is_whole(folder: Path) -> bool:
    """Whether all is there and as it was written."""
    said = manifest(folder)
    if said.get("key") != folder.name or said.get("files") != _sums(folder):
        return False
    with suppress(FileNotFoundError):
        os.utime(folder / MANIFEST)  # it is used
    return True


def lessons(folder: Path, device: str = "cpu", data: str | None = None) -> Lessons:
    """What trains students: a pool of stored outputs, or a teacher that works in the step, as the folder has it.

    Args:
        folder: what ``target_pool`` or ``lessons_folder`` returned; while the result lives, nobody drops it.
        device: where batches are wanted.
        data: the training pictures, where the folder does not hold them; by default where it was made from.
    """
    said = manifest(folder)
    if not said.get("anew"):
        return TargetPool(folder, device)
    held = in_use(folder)
    taught = TaughtCrops(
        _crops(folder, said, device, data),
        kept_teacher(folder / TEACHER).to(device),
        torch.from_numpy(np.load(folder / FIRST)),
        {name: t.to(device) for name, t in load_file(folder / DEVIATIONS).items()},
        folder.name,
        device,
    )
    weakref.finalize(taught, os.close, held)
    return taught


def reads_pictures(folder: Path) -> bool:
    """Whether ``lessons`` of a folder opens the training pictures themselves."""
    return bool(manifest(folder).get("anew")) and not (folder / PIXELS).exists()


def _crops(folder: Path, said: dict[str, Any], device: str, data: str | None) -> Pictures:
    sizes = tuple((height, width) for height, width in said["sizes"])
    if (folder / PIXELS).exists():
        pixels = np.load(
            folder / PIXELS, mmap_mode="c"
        )  # torch wants memory that could be written to
        ends = np.cumsum([height * width for height, width in sizes])
        parts = np.split(pixels, ends[:-1])
        images = [part.reshape(*size, 3) for part, size in zip(parts, sizes, strict=True)]
        return EveryCrop(images, said["size"], device)
    spec, names = data or said["data"], tuple(said["names"])
    images_there = reopened(spec, said["seed"], names, sizes, said["images"])
    return anew(images_there, said["size"], said["seed"], device)
