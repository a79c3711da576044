"""The teacher's outputs on a fixed pool of crops: computed once, memory-mapped, keyed by fingerprints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_kd.data import crop_pool, open_images
from nas_kd.distill import Batch, Weights
from nas_kd.teacher import Teacher

CHUNK = 16
"""Crops the teacher sees at once."""


@dataclass(frozen=True)
class PoolRecipe:
    """Which crops make the pool."""

    data: str = "builtin"
    crops: int = 256
    size: int = 128
    seed: int = 0


class TargetPool:
    """Crops with the teacher's x_hat (uint8, per level), y and z (float16), memory-mapped."""

    def __init__(self, folder: Path, device: str = "cpu"):
        names = ("x", "x_hat", "y", "z")
        self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        self.device = device
        self.key = folder.name

    def __len__(self) -> int:
        return len(self.arrays["x"])

    @property
    def latent_widths(self) -> tuple[int, int]:
        """Channels of the teacher's y and z."""
        return self.arrays["y"].shape[2], self.arrays["z"].shape[2]

    def pictures(self) -> Tensor:
        """All crops, float [n, 3, S, S] in [0, 1]."""
        return torch.from_numpy(np.array(self.arrays["x"])).float() / 255

    def batch(self, index: Tensor, level: Tensor, lmbda: Tensor, weights: Weights) -> Batch:
        """The crops at ``index`` with the teacher's outputs at ``level`` that the loss weighs."""
        return Batch(
            x=self._take("x", index).float() / 255,
            level=level.to(self.device),
            lmbda=lmbda.to(self.device),
            x_hat_T=self._take("x_hat", index, level).float() / 255 if weights.kd_x > 0 else None,
            y_T=self._take("y", index, level).float() if weights.kd_y > 0 else None,
            z_T=self._take("z", index, level).float() if weights.kd_z > 0 else None,
        )

    def _take(self, name: str, index: Tensor, level: Tensor | None = None) -> Tensor:
        array = self.arrays[name]
        # Latents of a variable-rate teacher are stored once for all levels.
        place = () if level is None else ((level.numpy() - 1) % len(array),)
        taken = array[(*place, index.numpy())]
        return torch.from_numpy(np.ascontiguousarray(taken)).to(self.device)


def target_pool(
    cache: Path,
    teacher: Teacher,
    recipe: PoolRecipe,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The pool's folder below ``cache``, computed now unless it is there already.

    Written under a temporary name and renamed when complete; ``progress`` hears (done, total) crops.
    """
    images = open_images(recipe.data, "train", recipe.seed)
    key_of = [teacher.fingerprint, images.fingerprint, asdict(recipe)]
    key = hashlib.sha256(json.dumps(key_of, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / key
    if folder.is_dir():
        return folder
    temporary = cache / f".{key}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    crops = crop_pool(images, recipe.crops, recipe.size, recipe.seed)
    np.save(temporary / "x.npy", crops)
    _compute(temporary, teacher, torch.from_numpy(crops), progress)
    os.replace(temporary, folder)
    return folder


def _compute(
    folder: Path, teacher: Teacher, crops: Tensor, progress: Callable[[int, int], None] | None
) -> None:
    open_memmap = np.lib.format.open_memmap
    n, size = len(crops), crops.shape[-1]
    _, y, z = teacher.outputs(crops[:1].float() / 255, 1)
    x_hats = open_memmap(folder / "x_hat.npy", "w+", np.uint8, (teacher.levels, n, 3, size, size))
    kept = 1 if teacher.shared_latents else teacher.levels
    latents = {
        name: open_memmap(folder / f"{name}.npy", "w+", np.float16, (kept, n, *t.shape[1:]))
        for name, t in (("y", y), ("z", z))
    }
    for start in range(0, n, CHUNK):
        part = slice(start, start + CHUNK)
        for level in range(teacher.levels):
            x_hat, y, z = teacher.outputs(crops[part].float() / 255, level + 1)
            x_hats[level, part] = (x_hat.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            latents["y"][level % kept, part] = y.half().numpy()
            latents["z"][level % kept, part] = z.half().numpy()
        if progress is not None:
            progress(min(start + CHUNK, n), n)
