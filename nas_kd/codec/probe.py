"""How many of a student's channels its layers use: the dimension of what each block is given.

Before each block the features are projected onto their leading principal components over some pictures; the fewest
with which the R-D cost stays within a hundredth of what it was are the block's dimension. Far fewer than there are
channels: some are wasted there. All of them: more might be of use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.codec.arch import STAGES
from nas_kd.codec.layers import Renderer
from nas_kd.codec.student import Student
from nas_kd.codec.trunk import Components, principal_components

ALLOWED = 0.01
"""Share of the R-D cost that a projection may add."""
WASTED, LACKING = 0.5, 0.95
"""Shares of the channels up to which they count as wasted, and from which as lacking."""


@dataclass(frozen=True)
class Probed:
    """A block, named by side, resolution and place, its channels, and how many dimensions of them it needs."""

    layer: str
    channels: int
    dimension: int

    @property
    def verdict(self) -> str:
        """In a word: wasted, lacking, or nothing."""
        share = self.dimension / self.channels
        return "wasted" if share <= WASTED else "lacking" if share >= LACKING else ""


@torch.no_grad()
def probe(student: Student, crops: Tensor) -> list[Probed]:
    """Every block of encoder and decoder, in the order in which a picture passes them.

    Args:
        student: with blocks; in evaluation mode.
        crops: [n, 3, H, W] in [0, 1], sides multiples of 64; each is coded at one of the levels, in turn.
    """
    layers, level = _blocks(student), _levels(student, len(crops))
    inputs: dict[str, Tensor] = {}
    with _watching(layers, inputs):
        most = _cost(student, crops, level) + torch.log1p(torch.tensor(ALLOWED))
    return [
        Probed(name, inputs[name].shape[1], _dimension(student, crops, level, block, x, most))
        for (name, block), x in zip(layers.items(), inputs.values(), strict=True)
    ]


def _blocks(student: Student) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for side, network in (("encoder", student.g_a), ("decoder", student.g_s)):
        stages: list[tuple[int, Any]] = [
            (int(i), stage.blocks) for i, stage in network.stages.items()
        ]
        if isinstance(renderer := getattr(network, "renderer", None), Renderer):
            stages.append((1, renderer.blocks))
        latent: list[tuple[int, Any]] = [(STAGES, network.latent)]
        for i, blocks in [*stages, *latent] if side == "encoder" else [*latent, *stages]:
            for j, block in enumerate(blocks):
                found[f"{side} 1/{2 ** (i + 1)} block {j + 1}"] = block
    return found


def _levels(student: Student, n: int) -> Tensor:
    return 1 + torch.arange(n) % student.levels


def _cost(student: Student, x: Tensor, level: Tensor) -> Tensor:
    """Mean logarithm of R + lambda 255^2 D over pictures, each at its level."""
    out = student(x, level)
    pixels = x.shape[-2] * x.shape[-1]
    bits = sum(-torch.log2(p).flatten(1).sum(1) for p in out["likelihoods"].values())
    error = (out["x_hat"].clamp(0, 1) - x).square().flatten(1).mean(1)
    lmbda = torch.tensor(student.lmbdas)[level - 1]
    return torch.log(bits / pixels + lmbda * 255**2 * error).mean()


def _dimension(
    student: Student, x: Tensor, level: Tensor, block: nn.Module, given: Tensor, most: Tensor
) -> int:
    """By bisection: more components cost less, near enough."""
    found = principal_components(given, 1, given.shape[1])
    too_few, enough = 0, given.shape[1]
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        with _projected(block, found, middle):
            fits = bool(_cost(student, x, level) <= most)
        too_few, enough = (too_few, middle) if fits else (middle, enough)
    return enough


@contextmanager
def _watching(layers: dict[str, nn.Module], inputs: dict[str, Tensor]) -> Iterator[None]:
    def keep(name: str) -> Any:
        return lambda _, given: inputs.__setitem__(name, given[0])

    handles = [block.register_forward_pre_hook(keep(name)) for name, block in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _projected(block: nn.Module, found: Components, n: int) -> Iterator[None]:
    """The block is given its input's first ``n`` components alone."""
    vectors, mean = found.vectors[:n], found.mean[:, None, None]

    def project(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept = torch.einsum("nc,bchw->bnhw", vectors, given[0] - mean)
        return torch.einsum("nc,bnhw->bchw", vectors, kept) + mean, *given[1:]

    handle = block.register_forward_pre_hook(project)
    try:
        yield
    finally:
        handle.remove()
