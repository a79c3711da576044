"""An entropy model in passes over a checkerboard of space and channels, with a quantisation step beside the mean.

The parts of PULSE's (Microsoft, 2026), each smaller: a latent is coded as r = (y - mean) gain / step. Mean and step
are predicted from z and from what earlier passes decoded; the deviation of r from z alone, by one linear map. So
no probability depends on what a convolution rounds: the map alone is computed in exact arithmetic (``dual_coding``),
and means and steps that differ by a rounding between machines change a decoded picture by as little.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nas_kd.codec.arch import PASSES, Arch
from nas_kd.codec.blocks import DepthwiseBlock

CELL = 4
"""Latents per side of one hyperlatent."""

REACH = 2
"""Latents around one that its mean and step depend on: half the blocks' kernel."""

WIDEST_STEP = 2.0
"""Logarithm of the largest quantisation step, and of the smallest's inverse."""


class Predicted(NamedTuple):
    """Means and quantisation steps [B, M, h, w], in the domain of y."""

    means: Tensor
    steps: Tensor


class Pass(nn.Module):
    """Features of z, and what the passes before have decoded, to means and steps."""

    def __init__(self, arch: Arch, first: bool):
        super().__init__()
        C = 2 * arch.hyper
        self.features = nn.Conv2d(arch.hyper, C, 1)
        self.decoded = None if first else nn.Conv2d(arch.M, C, 1)
        self.block = DepthwiseBlock(C, 2 * REACH + 1, nn.LeakyReLU())
        self.means = nn.Conv2d(C, arch.M, 1)
        self.steps = nn.Conv2d(C, arch.M, 1)
        for p in self.steps.parameters():
            nn.init.zeros_(p)  # steps of one

    def forward(self, features: Tensor, decoded: Tensor | None) -> Predicted:
        """[B, hyper, h, w] and, in a later pass, [B, M, h, w], zero where nothing is decoded yet."""
        x = self.features(features)
        if self.decoded is not None and decoded is not None:
            x = x + self.decoded(decoded)
        x = self.block(nn.functional.leaky_relu(x))
        steps = torch.exp(self.steps(x).clamp(-WIDEST_STEP, WIDEST_STEP))
        return Predicted(self.means(x), steps)


class DualParameters(nn.Module):
    """Log scales from z_hat, means and steps from its features, pass by pass."""

    def __init__(self, arch: Arch):
        super().__init__()
        self.scales = nn.ConvTranspose2d(arch.hyper, arch.M, CELL, stride=CELL)
        for p in self.scales.parameters():
            nn.init.zeros_(p)  # unit variance, which a trunk's latents start with
        self.passes = nn.ModuleList(Pass(arch, first=i == 0) for i in range(PASSES[arch.entropy]))

    def log_scales(self, z_hat: Tensor) -> Tensor:
        """[B, hyper, h, w] to [B, M, 4h, 4w]."""
        return self.scales(z_hat).clamp(-8, 8)

    def forward(self, i: int, features: Tensor, decoded: Tensor | None) -> Predicted:
        """What pass ``i`` predicts, for all latents; those of its own part count."""
        return self.passes[i](features, decoded)


def part(shape: torch.Size, passes: int, i: int, device: torch.device | str = "cpu") -> Tensor:
    """Which latents [.., M, h, w] pass ``i`` codes, boolean [M, h, w].

    Of neighbours in a row, a column or in the order of channels each is in another one: two passes are a
    checkerboard, four its squares of 2x2.
    """
    M, h, w = shape[-3:]
    channels = torch.arange(M, device=device)[:, None, None]
    rows = torch.arange(h, device=device)[:, None]
    columns = torch.arange(w, device=device)
    place = rows + columns if passes == 2 else 2 * (rows % 2) + columns % 2
    return (place + channels) % passes == i
