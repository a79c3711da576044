"""Crops of more pictures than memory has room for: some are there, others take their place, and so on.

While one shard is trained on, the next is decoded. Which pictures are there at which step follows from the seed, so
that a resumed run sees the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nas_kd.cores import cores
from nas_kd.data.image_file import Image8
from nas_kd.data.images import ImageSet, Progress, at_least, decoded, to_device, unheard
from nas_kd.distillation.loss import Batch
from nas_kd.distillation.placed_pictures import Layout, PlacedPictures, fits, flat
from nas_kd.distillation.training import EveryCrop, Pictures
from nas_kd.errors import DataError
from nas_kd.recipe import Weights
from nas_kd.seeds import derived_generator

SHARD_BYTES = 2**31
"""Of decoded pictures that are there at once: 700 megapixels. No share of what is free, which changes: a resumed run
would see other pictures."""
STAY = 1000
"""Steps that they stay: 5 s and more on a GPU, in which eight cores decode as many."""


def anew(
    images: ImageSet,
    size: int,
    seed: int,
    device: str = "cpu",
    progress: Progress = unheard,
    shard_bytes: int = SHARD_BYTES,
) -> Pictures:
    """Crops drawn anew at every step: of all pictures where they have room, else of a shard at a time.

    ``progress`` hears (done, all) pictures that are decoded.
    """
    if sum(3 * height * width for height, width in images.sizes) <= shard_bytes:
        return EveryCrop(decoded(images, progress), size, device)
    return RotatingCrops(images.images, images.sizes, size, seed, device, shard_bytes)


@dataclass(frozen=True)
class Shard:
    """Pictures, one behind the other: their pixels uint8 [n, 3], and where they lie in them."""

    pixels: Tensor
    layout: Layout


class RotatingCrops(Pictures):
    """As ``EveryCrop``, of a shard of the pictures at a time.

    In each round over all pictures they are in another order, cut into shards of about equal size.

    Args:
        images: uint8 [H, W, 3] each, decoded when asked for, in several threads at once.
        sizes: (height, width) of each.
        size: side of a crop, in pixels; smaller pictures are extended by reflection.
        seed: decides the order.
        device: where batches are wanted; the shard lies there where it has room.
        shard_bytes: of a shard, about.
        stay: steps that it stays.
    """

    def __init__(
        self,
        images: Sequence[Image8],
        sizes: Sequence[tuple[int, int]],
        size: int,
        seed: int = 0,
        device: str = "cpu",
        shard_bytes: int = SHARD_BYTES,
        stay: int = STAY,
    ):
        self._images, self._told = images, [(one[0], one[1]) for one in sizes]
        self._given = size, seed, device, shard_bytes, stay
        self._size, self._seed, self._device, self._stay = size, seed, device, stay
        self._sizes = [(max(height, size), max(width, size)) for height, width in sizes]
        self._areas = np.array([height * width for height, width in self._sizes])
        total, largest = int(self._areas.sum()), int(self._areas.max())
        # A shard has a picture at least: none is longer than a shard.
        self.shards = max(1, min(-(-3 * total // shard_bytes), total // largest))
        self._room = total // self.shards + largest
        self._placed: PlacedPictures | None = None
        self._staged: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._number, self._crops = -1, 0
        self._thread = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Shard]] | None = None

    def of_one_run(self) -> RotatingCrops:
        """Each run has a shard of its own: they are at different steps."""
        return RotatingCrops(self._images, self._told, *self._given)

    def __len__(self) -> int:
        return self._crops

    def shard(self, number: int) -> list[int]:
        """The places of a shard's pictures; numbers go on through the rounds."""
        turn, place = divmod(number, self.shards)
        order = derived_generator(self._seed, "shards", turn).permutation(len(self._areas))
        areas = self._areas[order]
        middles = np.cumsum(areas) - areas / 2
        return order[(middles * self.shards // areas.sum()).astype(int) == place].tolist()

    def turn(self, step: int) -> None:
        """Put the shard of a step in place of the one before; the next one is decoded from then on."""
        number = step // self._stay if self.shards > 1 else 0
        if number == self._number:
            return
        self._put(self._fetched(number))
        self._number = number
        if self.shards > 1:
            self._next = number + 1, self._thread.submit(self._load, number + 1)

    def _fetched(self, number: int) -> Shard:
        if self._next is not None:
            foreseen, coming = self._next
            found = coming.result()  # what is staged has one place
            if foreseen == number:
                return found
        return self._load(number)

    def _put(self, shard: Shard) -> None:
        placed = self._place()
        placed.put([shard.pixels], shard.layout)
        self._crops = int(shard.layout.ends[-1])
        if placed.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _place(self) -> PlacedPictures:
        if self._placed is None:
            where = self._device if fits(3 * self._room, self._device) else "cpu"
            self._placed = PlacedPictures(self._size, self._room, len(self._areas), where)
        return self._placed

    def _load(self, number: int) -> Shard:
        """A shard's pictures, decoded on all cores into the host's memory, from where a GPU fetches them by itself."""
        if self._staged is None:
            pinned = self._place().device.type == "cuda"
            self._staged = torch.empty(self._room, 3, dtype=torch.uint8, pin_memory=pinned)
        if self._copied is not None:
            self._copied.synchronize()
        staged, which = self._staged, self.shard(number)
        layout = Layout.of([self._sizes[i] for i in which], self._size)

        def decode(start: int, place: int) -> None:
            pixels = flat(at_least(self._image(place), self._size))
            staged[start : start + len(pixels)] = pixels

        with ThreadPoolExecutor(cores()) as threads:  # Pillow releases the GIL
            list(threads.map(decode, layout.starts.tolist(), which))
        return Shard(staged[: int(self._areas[which].sum())], layout)

    def _image(self, place: int) -> Image8:
        image, told = self._images[place], self._told[place]
        if image.shape[:2] != told:
            raise DataError(
                f"a training picture has {image.shape[0]}x{image.shape[1]} pixels and had {told[0]}x{told[1]} "
                "when its folder was opened: put it back, or start again"
            )
        return image

    def batch(self, index: Tensor, level: Tensor, lmbda: Tensor, weights: Weights) -> Batch:
        """Pictures in [0, 1]; there is no teacher here."""
        placed = self._place()
        crops = to_device(placed.crops(to_device(index, placed.device)), self._device)
        level, lmbda = (to_device(t, self._device) for t in (level, lmbda))
        return Batch(crops.float() / 255, level, lmbda)

    def is_far(self, weights: Weights) -> bool:
        """Whether crops are gathered on the host for another device."""
        return self._place().device.type != torch.device(self._device).type
