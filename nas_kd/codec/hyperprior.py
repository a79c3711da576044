"""The networks of a student's entropy model that see all latents at once, or half of them before the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_kd.codec.arch import Arch
from nas_kd.codec.compressai_light import CheckerboardMaskedConv2d, conv, deconv


class HyperAnalysis(nn.Module):
    """h_a: y [B, M, H/16, W/16] to z [B, hyper, H/64, W/64].

    Of |y| with ReLU for the scale model (Balle et al., 2018), of y with LeakyReLU else (Minnen et al., 2018).
    """

    def __init__(self, arch: Arch):
        super().__init__()
        self.of_magnitudes = arch.entropy == "scale"
        self.act = nn.ReLU() if self.of_magnitudes else nn.LeakyReLU()
        self.conv0 = conv(arch.M, arch.hyper, kernel_size=3, stride=1)
        self.conv1 = conv(arch.hyper, arch.hyper)
        self.conv2 = conv(arch.hyper, arch.hyper)

    def forward(self, y: Tensor) -> Tensor:
        """[B, M, h, w] to [B, hyper, h/4, w/4]."""
        y = torch.abs(y) if self.of_magnitudes else y
        return self.conv2(self.act(self.conv1(self.act(self.conv0(y)))))


class HyperSynthesis(nn.Module):
    """h_s: z_hat [B, hyper, H/64, W/64] to features [B, hyper, H/16, W/16]."""

    def __init__(self, arch: Arch):
        super().__init__()
        self.act = nn.ReLU() if arch.entropy == "scale" else nn.LeakyReLU()
        self.deconv0 = deconv(arch.hyper, arch.hyper)
        self.deconv1 = deconv(arch.hyper, arch.hyper)

    def forward(self, z_hat: Tensor) -> Tensor:
        """[B, hyper, h, w] to [B, hyper, 4h, 4w]."""
        return self.act(self.deconv1(self.act(self.deconv0(z_hat))))


class EntropyParameters(nn.Module):
    """Features [B, hyper, h, w] to the scales and means of y, each by a head of its own.

    Two heads and no chunking: a prefix of 2M channels is not a prefix of M scales and M means. The scale
    model ends in ReLU as CompressAI's ScaleHyperprior does; the others predict log scales.
    """

    def __init__(self, arch: Arch):
        super().__init__()
        self.kind = arch.entropy
        kernel = 1 if arch.entropy == "checkerboard" else 3
        C = arch.hyper
        if self.kind == "checkerboard":
            self.fuse = nn.Conv2d(C, 2 * C, 1)
            C = 2 * C
        self.scales = conv(C, arch.M, kernel_size=kernel, stride=1)
        if self.kind != "scale":
            self.means = conv(C, arch.M, kernel_size=kernel, stride=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scales (> 0) and means [B, M, h, w]; means are None for the scale model."""
        if self.kind == "scale":
            return nn.functional.relu(self.scales(features)), None
        if self.kind == "checkerboard":
            features = nn.functional.leaky_relu(self.fuse(features))
        return torch.exp(self.scales(features).clamp(-8, 8)), self.means(features)


class CheckerboardContext(CheckerboardMaskedConv2d):
    """CompressAI's masked convolution, masked from the start: a forward leaves its weights alone."""

    def __init__(self, C_in: int, C_out: int):
        super().__init__(C_in, C_out, kernel_size=5, padding=2)
        self.weight.data.mul_(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, h, w] to [B, C_out, h, w]."""
        return self._conv_forward(x, self.weight * self.mask, self.bias)


def context_prediction(arch: Arch) -> nn.Module:
    """What the decoded half of y tells of the other half (He et al., CVPR 2021)."""
    return CheckerboardContext(arch.M, arch.hyper)
