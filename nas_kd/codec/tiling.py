"""The transforms of a picture of any size in bounded memory: tile by tile, each with its surroundings.

A convolutional network sees only so far. A tile that is computed with at least that much of the picture around it,
or up to the picture's edge, comes out as it does in the whole picture: there are no seams to hide.
How far a network sees is found by feeding it one NaN and looking where NaNs come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from nas_kd.codec.student import Student
from nas_kd.data.image_file import Image8
from nas_kd.data.images import to_image, to_tensor
from nas_kd.data.metrics import MULTIPLE, padded

LATENT = 16
"""Pixels per side of one latent."""

WHOLE_PIXELS = 2**20
"""Pictures up to this area are computed in one piece."""

SIDE = 512 // LATENT
"""Latents per side of a tile."""


@torch.no_grad()
def analysis(student: Student, image: Image8) -> tuple[Tensor, Tensor]:
    """Y and z of a picture, uint8 [H, W, 3]; on the student's device."""
    device = student.h_a.conv0.weight.device
    height, width = image.shape[:2]
    if height * width <= WHOLE_PIXELS:
        y = student.analysis(padded(to_tensor(image)).to(device))
        return y, student.h_a(y)
    halo = sight(student.analysis, 3, LATENT, 1)
    h, w = (-(-side // MULTIPLE) * MULTIPLE // LATENT for side in (height, width))
    y = torch.empty(1, student.arch.M, h, w, device=device)
    for outer, inner, core in _tiles(h, w, halo):
        x = to_tensor(_cut(image, outer)).to(device)
        y[..., core[0], core[1]] = student.analysis(x)[..., inner[0], inner[1]]
    return y, student.h_a(y)


@torch.no_grad()
def synthesis(student: Student, y_hat: Tensor, height: int, width: int) -> Image8:
    """The picture, uint8 [height, width, 3], of y_hat [1, M, h, w]."""
    device = student.h_a.conv0.weight.device
    if height * width <= WHOLE_PIXELS:
        return to_image(student.synthesis(y_hat.to(device))[..., :height, :width])
    halo = sight(student.synthesis, student.arch.M, 1, LATENT)
    image = np.empty((height, width, 3), np.uint8)
    for outer, inner, core in _tiles(y_hat.shape[-2], y_hat.shape[-1], halo):
        x_hat = student.synthesis(y_hat[..., outer[0], outer[1]].to(device))
        rows, columns = (slice(LATENT * s.start, LATENT * s.stop) for s in inner)
        target = image[tuple(slice(LATENT * s.start, LATENT * s.stop) for s in core)]
        target[:] = to_image(x_hat[..., rows, columns])[: target.shape[0], : target.shape[1]]
    return image


@torch.no_grad()
def sight(network: Callable[[Tensor], Tensor], C: int, fine_in: int, fine_out: int) -> int:
    """How many latents away an input still matters to an output.

    Args:
        network: [1, C, fine_in n, fine_in n] to [1, C', fine_out n, fine_out n].
        C: its input channels.
        fine_in: input places per latent and side.
        fine_out: output places per latent and side.
    """
    parameters = getattr(getattr(network, "__self__", None), "parameters", None)
    device = next(parameters()).device if parameters else torch.device("cpu")
    for half in (8, 16, 32):
        side = fine_in * (2 * half + 1)
        x = torch.zeros(1, C, side, side, device=device)
        middle = slice(fine_in * half, fine_in * (half + 1))
        x[..., middle, middle] = math.nan
        touched = network(x).isnan().any(1)[0].nonzero()
        far = (touched // fine_out - half).abs().max()
        if int(far) < half:
            return int(far)
    raise ValueError("the network sees over 32 latents far: it cannot be computed in tiles")


def _tiles(h: int, w: int, halo: int) -> Iterator[tuple[list[slice], list[slice], list[slice]]]:
    """Per tile of [h, w]: it with its halo, its place in that, its place in the whole.

    Halos are whole multiples of a padding cell, so that strided layers keep their phase.
    """
    for top in range(0, h, SIDE):
        for left in range(0, w, SIDE):
            core = [slice(top, min(top + SIDE, h)), slice(left, min(left + SIDE, w))]
            ends = zip(core, (h, w), strict=True)
            outer = [slice(max(0, s.start - halo), min(end, s.stop + halo)) for s, end in ends]
            inner = [
                slice(s.start - o.start, s.stop - o.start) for s, o in zip(core, outer, strict=True)
            ]
            yield outer, inner, core


def _cut(image: Image8, place: list[slice]) -> Image8:
    """A rectangle in latents of the padded picture: edges repeated where the picture ends."""
    rows, columns = (
        np.minimum(np.arange(LATENT * s.start, LATENT * s.stop), end - 1)
        for s, end in zip(place, image.shape, strict=False)
    )
    return image[rows[:, None], columns[None]]
