"""Photographs in a device's memory as bytes, and crops of them gathered there: 91 megapixels take 0.3 GB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_kd.data.image_file import Image8

SHARE_OF_FREE = 0.25
"""Of a GPU's free memory that pictures may take; the rest is for training, and for other trials."""


class PlacedPictures:
    """All crops of pictures, each under its eight symmetries, by number.

    Args:
        images: uint8 [H, W, 3] each, at least as large as a crop.
        size: side of a crop, in pixels.
        ends: for each picture, how many crops it and those before it have.
        symmetries: of a crop.
        device: where they lie.
    """

    def __init__(
        self,
        images: Sequence[Image8],
        size: int,
        ends: NDArray[Any],
        symmetries: int,
        device: str | torch.device,
    ):
        self._size, self._symmetries = size, symmetries
        areas = [image.shape[0] * image.shape[1] for image in images]
        starts = np.cumsum([0, *areas])
        self._pixels = torch.empty(int(starts[-1]), 3, dtype=torch.uint8, device=device)
        for image, start, area in zip(images, starts, areas, strict=False):
            flat = torch.from_numpy(np.ascontiguousarray(image).reshape(-1, 3))
            self._pixels[start : start + area].copy_(flat)
        widths = [image.shape[1] for image in images]
        self._starts, self._widths, self._ends = (
            torch.tensor(np.asarray(values, np.int64), device=device)
            for values in (starts[:-1], widths, ends)
        )
        self._side = torch.arange(size, device=device)

    def crops(self, index: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] of crops' numbers [B], on the device; nothing waits for the host."""
        which = torch.searchsorted(self._ends, index, right=True)
        left = self._ends[which] - 1 - index
        place, symmetry = left // self._symmetries, left % self._symmetries
        width = self._widths[which]
        across = width - self._size + 1
        corner = self._starts[which] + place // across * width + place % across
        rows, columns = self._turned(symmetry[:, None, None])
        at = corner[:, None, None] + rows * width[:, None, None] + columns
        return self._pixels[at].permute(0, 3, 1, 2)

    def _turned(self, symmetry: Tensor) -> tuple[Tensor, Tensor]:
        """Which row and column of the crop each of its places shows, [B, S, S]: as np.rot90, then mirrored."""
        last, down, across = self._size - 1, self._side[:, None], self._side[None, :]
        across = torch.where(symmetry >= 4, last - across, across)
        quarter = symmetry % 4
        rows = torch.where(quarter % 2 == 1, across, down)
        columns = torch.where(quarter % 2 == 1, down, across)
        rows = torch.where(quarter >= 2, last - rows, rows)
        columns = torch.where((quarter == 1) | (quarter == 2), last - columns, columns)
        return rows, columns


def fits(images: Sequence[Image8], device: str | torch.device) -> bool:
    """Whether the pictures have room in a GPU's memory; on a CPU they are where they are."""
    if torch.device(device).type != "cuda":
        return False
    needed = sum(image.nbytes for image in images)
    return needed <= SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]
