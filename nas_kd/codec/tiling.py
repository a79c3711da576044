"""The transforms of a picture of any size in bounded memory: tile by tile, each with its surroundings.

A convolutional network sees only so far. A tile that is computed with at least that much of the picture around it,
or up to the picture's edge, comes out as it does in the whole picture: there are no seams to hide.
How far a network sees is found by feeding it one NaN and looking where NaNs come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nas_kd.codec.strips import analysed, synthesised
from nas_kd.codec.student import Student
from nas_kd.data.image_file import Image8
from nas_kd.data.images import to_image, to_tensor
from nas_kd.data.metrics import MULTIPLE

LATENT = 16
"""Pixels per side of one latent."""


class Limits(NamedTuple):
    """Pictures up to so many pixels are computed in one piece, others in tiles of so many latents a side."""

    whole_pixels: int
    side: int


LAYERS, STRIPS = Limits(2**20, 512 // LATENT), Limits(2**21, 1024 // LATENT)
"""Of networks that go layer by layer, and of those that go in strips and hold less for a pixel."""


def in_strips(student: Student) -> bool:
    """Whether a student's sides are computed in strips (``strips``): trunks on the CPU."""
    return student.arch.trunk and student.h_a.conv0.weight.device.type == "cpu"


@torch.no_grad()
def analysis(student: Student, image: Image8) -> tuple[Tensor, Tensor]:
    """Y and z of a picture, uint8 [H, W, 3]; on the student's device."""
    device = student.h_a.conv0.weight.device
    quick = in_strips(student)
    h, w = (-(-side // MULTIPLE) * MULTIPLE // LATENT for side in image.shape[:2])
    y = torch.empty(1, student.arch.M, h, w, device=device)
    sees = lambda: sight(student.analysis, 3, LATENT, 1)  # noqa: E731
    for outer, inner, core in _tiles(image.shape, STRIPS if quick else LAYERS, sees):
        piece = _cut(image, outer)
        x = analysed(student.g_a, piece) if quick else student.analysis(to_tensor(piece).to(device))
        y[..., core[0], core[1]] = x[..., inner[0], inner[1]]
    return y, student.h_a(y)


@torch.no_grad()
def synthesis(student: Student, y_hat: Tensor, height: int, width: int) -> Image8:
    """The picture, uint8 [height, width, 3], of y_hat [1, M, h, w]."""
    quick = in_strips(student)
    y_hat = y_hat.to(student.h_a.conv0.weight.device)
    image = np.empty((height, width, 3), np.uint8)
    sees = lambda: sight(student.synthesis, student.arch.M, 1, LATENT)  # noqa: E731
    for outer, inner, core in _tiles(image.shape, STRIPS if quick else LAYERS, sees):
        seen = y_hat[..., outer[0], outer[1]]
        piece = synthesised(student.g_s, seen) if quick else to_image(student.synthesis(seen))
        rows, columns = (slice(LATENT * s.start, LATENT * s.stop) for s in inner)
        target = image[tuple(slice(LATENT * s.start, LATENT * s.stop) for s in core)]
        target[:] = piece[rows, columns][: target.shape[0], : target.shape[1]]
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


def _tiles(
    shape: tuple[int, ...], limits: Limits, sees: Callable[[], int]
) -> Iterator[tuple[list[slice], list[slice], list[slice]]]:
    """Per tile of a picture, in latents: it with its halo, its place in that, its place in the whole.

    Halos are whole multiples of a padding cell, so that strided layers keep their phase.
    """
    h, w = (-(-side // MULTIPLE) * MULTIPLE // LATENT for side in shape[:2])
    whole = shape[0] * shape[1] <= limits.whole_pixels
    side, halo = (max(h, w), 0) if whole else (limits.side, sees())
    for top in range(0, h, side):
        for left in range(0, w, side):
            core = [slice(top, min(top + side, h)), slice(left, min(left + side, w))]
            ends = zip(core, (h, w), strict=True)
            outer = [slice(max(0, s.start - halo), min(end, s.stop + halo)) for s, end in ends]
            inner = [
                slice(s.start - o.start, s.stop - o.start) for s, o in zip(core, outer, strict=True)
            ]
            yield outer, inner, core


def _cut(image: Image8, place: list[slice]) -> Image8:
    """A rectangle in latents of the padded picture: edges repeated where the picture ends."""
    piece = image[tuple(slice(LATENT * s.start, LATENT * s.stop) for s in place)]
    missing = [
        (0, LATENT * (s.stop - s.start) - n) for s, n in zip(place, piece.shape, strict=False)
    ]
    return np.pad(piece, (*missing, (0, 0)), mode="edge")
