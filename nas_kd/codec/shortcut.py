"""The linear shortcut of nas-kd 0.1, which ran around the networks: its students are read and coded with, not trained.

Trunks took its place: they get further in as many steps, for fewer multiplications (benchmarks/LOG.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_kd.codec.layers import shuffled


class LinearAnalysis(nn.Conv2d):
    """Components of 16x16 patches: a convolution whose patches do not overlap, computed as a matrix product."""

    bias: Tensor

    def __init__(self, M: int):
        super().__init__(3, M, 16, stride=16)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, M, H/16, W/16]."""
        B, _, H, W = x.shape
        patches = x.reshape(B, 3, H // 16, 16, W // 16, 16).permute(0, 2, 4, 1, 3, 5)
        y = nn.functional.linear(patches.reshape(-1, 768), self.weight.flatten(1), self.bias)
        return y.reshape(B, H // 16, W // 16, -1).permute(0, 3, 1, 2)


class LinearSynthesis(nn.ConvTranspose2d):
    """The way back behind the latents; a matrix product too, for a transposed convolution is slower on a CPU."""

    bias: Tensor

    def __init__(self, M: int):
        super().__init__(M, 3, 16, stride=16)

    def forward(self, y_hat: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[B, M, H/16, W/16] to [B, 3, H, W]."""
        B, M, h, w = y_hat.shape
        at_positions = y_hat.permute(0, 2, 3, 1).reshape(-1, M)
        bias = self.bias[:, None].expand(3, 256).reshape(768)
        patches = torch.addmm(bias, at_positions, self.weight.flatten(1))
        return shuffled(patches.reshape(B, h, w, 768), 16)
