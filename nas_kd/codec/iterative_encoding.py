"""Latents sought for one picture: by gradient on its own rate and distortion, at no cost to the decoder.

An encoder gives latents that are good for the pictures it was trained on; for the one at hand better ones lie near.
Both y and z move, in units of their quantisation steps, by stochastic Gumbel annealing (Yang et al., NeurIPS 2020):
rates and the picture are those of latents that are drawn between the two neighbouring whole numbers, more and more
sharply. What is found is kept if, rounded as it will be coded, it costs less than what the encoder gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas_kd.codec.bitstream import Analysed, analyse, info, write
from nas_kd.codec.entropy_coding import CELL, QUIET, Tile, tiles_of
from nas_kd.codec.exact_arithmetic import scale_table
from nas_kd.codec.student import Gain, Student
from nas_kd.data.image_file import Image8
from nas_kd.data.images import to_tensor
from nas_kd.data.metrics import MULTIPLE
from nas_kd.errors import UsageError

STEPS = (0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560)
"""Steps of each effort."""

RATE = 0.02
"""Adam's learning rate in quantisation steps; it falls to zero, by the root of what is left of the steps."""

WARM, COLD = 0.5, 0.07
"""Temperatures of the first and of the last step; between them an exponential."""

SIDE = 8
"""Hyperlatents per side of what is sought together: 512 px."""
AROUND = 1
"""Hyperlatents around it on which the cost is counted too: what a change does to its neighbours."""

EDGE = 1e-4
"""Distance from 0 and 1 that keeps logits finite."""

Latents = tuple[Tensor, Tensor]
"""y [1, M, 4h, 4w] and z [1, hyper, h, w]."""


def check_effort(effort: int) -> None:
    """Raises UsageError for an effort that there is not."""
    if not 0 <= effort < len(STEPS):
        raise UsageError(
            f"--effort {effort}: must be 0 (one pass) to {len(STEPS) - 1} ({STEPS[-1]} steps)"
        )


def encode_with_effort(student: Student, image: Image8, level: float, effort: int) -> bytes:
    """As ``bitstream.encode``, with latents that were sought."""
    return write(student, sought(student, analyse(student, image), image, level, effort), level)


def improved(
    student: Student, image: Image8, data: bytes, effort: int, good: Callable[[bytes], bool]
) -> bytes:
    """A file at its own level with latents that were sought, where that is still good; else as it was."""
    if not STEPS[effort]:
        return data
    found = encode_with_effort(student, image, info(data)["level"], effort)
    return found if good(found) else data


def sought(
    student: Student, picture: Analysed, image: Image8, level: float, effort: int
) -> Analysed:
    """The picture with latents for this level; large ones tile by tile, each with its surroundings.

    Args:
        student: in evaluation mode.
        picture: what ``analyse`` made of the image.
        image: uint8 [H, W, 3], or [H, W] for a grey one.
        level: 1 to L, fractions interpolate.
        effort: 0 to 9; raises UsageError for another.
    """
    check_effort(effort)
    colour = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    y, z = picture.y.detach().clone(), picture.z.detach().clone()
    cells = z.shape[-2], z.shape[-1]
    for tile in tiles_of(*cells, SIDE) if STEPS[effort] else []:
        part = _part(tile, z.shape, colour)
        outer = y[part.of_y], z[part.of_z]  # views: what is written there is written into y and z
        found = _descend(student, part, outer, level, STEPS[effort])
        for there, better, own in zip(outer, found, part.own, strict=True):
            there[own] = better[own]
    return replace(picture, y=y, z=z)


# --- one tile ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A tile with its surroundings: its pixels, its place among y and z, and the tile's own place in that."""

    x: Tensor
    of_y: tuple[Any, ...]
    of_z: tuple[Any, ...]
    own: tuple[tuple[Any, ...], tuple[Any, ...]]


def _part(tile: Tile, z_shape: torch.Size, image: Image8) -> _Part:
    spans = ((tile.top, tile.bottom, z_shape[-2]), (tile.left, tile.right, z_shape[-1]))
    outer = [(max(0, a - AROUND), min(end, b + AROUND)) for a, b, end in spans]
    inner = [(a - start, b - start) for (a, b, _), (start, _) in zip(spans, outer, strict=True)]
    rows, columns = _place(outer, MULTIPLE)[1:]
    return _Part(
        to_tensor(image[rows, columns]),
        _place(outer, CELL),
        _place(outer, 1),
        (_place(inner, CELL), _place(inner, 1)),
    )


def _place(spans: list[tuple[int, int]], scale: int) -> tuple[Any, slice, slice]:
    rows, columns = (slice(scale * a, scale * b) for a, b in spans)
    return ..., rows, columns


def _descend(student: Student, part: _Part, start: Latents, level: float, steps: int) -> Latents:
    """Where so many steps from ``start`` lead, or ``start`` where that is better."""
    units = [_unit(gain, level, start[0]) for gain in (student.gain_y, student.gain_z)]
    moved = [(t / unit).clone().requires_grad_() for t, unit in zip(start, units, strict=True)]
    masks = [_mask(t, own) for t, own in zip(start, part.own, strict=True)]
    x, optimiser = part.x.to(start[0].device), torch.optim.Adam(moved, lr=RATE)
    for step in range(steps):
        with _rounding(student, Annealed(WARM * (COLD / WARM) ** (step / steps), step)):
            cost = _cost(student, x, *_times(moved, units), level)
            gradients = torch.autograd.grad(cost, moved)
        for t, gradient, mask in zip(moved, gradients, masks, strict=True):
            t.grad = gradient * mask
        optimiser.param_groups[0]["lr"] = RATE * math.sqrt(1 - step / steps)
        optimiser.step()
    end = _times([t.detach() for t in moved], units)
    with torch.no_grad(), _rounding(student, torch.round):
        return end if _cost(student, x, *end, level) < _cost(student, x, *start, level) else start


def _times(moved: list[Tensor], units: list[Tensor]) -> Latents:
    y, z = (t * unit for t, unit in zip(moved, units, strict=True))
    return y, z


class Annealed:
    """Rounding to a mixture of the two neighbouring whole numbers, drawn at a temperature.

    What is rounded twice in a step, for its rate and for the picture, is drawn alike.
    """

    def __init__(self, temperature: float, seed: int):
        self.temperature, self.seed = temperature, seed

    def __call__(self, values: Tensor) -> Tensor:
        """Of the same shape; differentiable."""
        low = values.detach().floor()
        above = (values - low).clamp(EDGE, 1 - EDGE)
        # The logit of a Gumbel-softmax of two: the difference of two Gumbel numbers is logistic.
        logit = (torch.atanh(1 - above) - torch.atanh(above)) / self.temperature
        return low + torch.sigmoid((self._noise(values) - logit) / self.temperature)

    def _noise(self, values: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(values.shape, generator=generator).clamp(EDGE, 1 - EDGE)
        return torch.logit(drawn).to(values.device)


def _unit(gain: Gain | None, level: float, like: Tensor) -> Tensor:
    """The quantisation step of each channel."""
    return like.new_ones(1) if gain is None else 1 / gain(level)[0].detach()


def _mask(t: Tensor, own: tuple[Any, ...]) -> Tensor:
    mask = torch.zeros_like(t)
    mask[own] = 1
    return mask


def _cost(student: Student, x: Tensor, y: Tensor, z: Tensor, level: float) -> Tensor:
    """Bits, and the squared error at the level's exchange rate, of the rounded latents."""
    out = student.coded(y, z, level)
    bits = sum(-torch.log2(p).sum() for p in out["likelihoods"].values())
    x_hat = out["x_hat"][..., : x.shape[-2], : x.shape[-1]].clamp(0, 1)
    squares = (x_hat - x).square().mean(1).sum()
    return bits + _lmbda(student.lmbdas, level) * 255**2 * squares


def _lmbda(lmbdas: tuple[float, ...], level: float) -> float:
    """Between levels interpolated as gains are."""
    low = min(int(level), max(len(lmbdas) - 1, 1))
    high = min(low + 1, len(lmbdas))
    return lmbdas[low - 1] * (lmbdas[high - 1] / lmbdas[low - 1]) ** (level - low)


def _audible(y: Tensor, scales: Tensor, means: Tensor | None) -> Tensor:
    """Latents, at their means where the coder leaves them out."""
    silent = scales <= scale_table()[QUIET - 1]
    return torch.where(silent, torch.zeros_like(y) if means is None else means, y)


@contextmanager
def _rounding(student: Student, rounding: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The student and its entropy models round in this way, and what the coder leaves out is left out."""

    def quantize(inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor:
        return rounding(inputs) if means is None else rounding(inputs - means) + means

    models: list[Any] = [student.entropy_bottleneck, student.gaussian_conditional]
    usual, student.rounding = student.rounding, rounding
    student.audible = _audible
    for model in models:
        model.quantize = quantize
    try:
        yield
    finally:
        student.rounding, student.audible = usual, None
        for model in models:
            del model.quantize
