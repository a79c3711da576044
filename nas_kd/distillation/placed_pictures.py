"""Photographs in a device's memory as bytes, and crops of them gathered there: 91 megapixels take 0.3 GB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_kd.data.image_file import Image8

SHARE_OF_FREE = 0.25
"""Of a GPU's free memory that pictures may take; the rest is for training, and for other trials."""
SYMMETRIES = 8
"""Of a square."""
NEVER = 2**62
"""How many crops come before a picture that is not there."""


@dataclass(frozen=True)
class Layout:
    """Pictures one behind the other: for each its first pixel, its width, and the crops of it and those before."""

    starts: NDArray[Any]
    widths: NDArray[Any]
    ends: NDArray[Any]

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], size: int) -> Layout:
        """Of pictures of (height, width) ``sizes``, each at least as large as a crop of ``size``."""
        heights, widths = np.asarray(sizes, np.int64).T
        ends = np.cumsum((heights - size + 1) * (widths - size + 1)) * SYMMETRIES
        return cls(np.cumsum(heights * widths) - heights * widths, widths, ends)


class PlacedPictures:
    """All crops of pictures, each under its eight symmetries, by number.

    Args:
        size: side of a crop, in pixels.
        pixels: of the pictures that there is room for.
        pictures: that there is room for.
        device: where they lie, in the same memory whichever they are.
    """

    def __init__(self, size: int, pixels: int, pictures: int, device: str | torch.device):
        self._size = size
        self._pixels = torch.empty(pixels, 3, dtype=torch.uint8, device=device)
        self._starts, self._widths, self._ends = torch.full((3, pictures), NEVER, device=device)
        self._side = torch.arange(size, device=device)

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self._pixels.device

    def put(self, parts: Iterable[Tensor], layout: Layout) -> None:
        """Replace the pictures by others: their pixels uint8 [n, 3] in parts, which follow each other."""
        at = 0
        for part in parts:
            self._pixels[at : at + len(part)].copy_(part, non_blocking=part.is_pinned())
            at += len(part)
        self._ends.fill_(NEVER)
        for kept, given in (
            (self._starts, layout.starts),
            (self._widths, layout.widths),
            (self._ends, layout.ends),
        ):
            kept[: len(given)].copy_(torch.from_numpy(given))

    def crops(self, index: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] of crops' numbers [B], on the device; nothing waits for the host."""
        which = torch.searchsorted(self._ends, index, right=True)
        left = self._ends[which] - 1 - index
        place, symmetry = left // SYMMETRIES, left % SYMMETRIES
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


def flat(image: Image8) -> Tensor:
    """A picture's pixels [n, 3]."""
    return torch.from_numpy(np.ascontiguousarray(image).reshape(-1, 3))


def fits(needed_bytes: int, device: str | torch.device) -> bool:
    """Whether pictures have room in a GPU's memory; on a CPU they are where they are."""
    if torch.device(device).type != "cuda":
        return False
    return needed_bytes <= SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]
