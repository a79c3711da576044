"""The transforms of a student, named so that slices of a wide one are a narrow one.

Stages are named by their resolution and blocks by their place, so that a parameter keeps its name when a depth
or a stem changes, and a narrower network's tensors are leading slices of a wider one's.
"""

from __future__ import annotations

from torch import Tensor, nn

from nas_kd.codec.arch import STAGES, Transform
from nas_kd.codec.blocks import ChannelGates, activation, blocks
from nas_kd.codec.compressai_light import (
    GDN,
    AttentionBlock,
    conv,
    deconv,
)


def _activation(side: Transform, C: int, inverse: bool) -> nn.Module:
    if side.trunk:
        return nn.Identity()
    return GDN(C, inverse=inverse) if side.activation == "gdn" else nn.LeakyReLU()


def _attention(side: Transform, C: int, on: bool) -> nn.Module:
    if not on:
        return nn.Identity()
    return ChannelGates(C) if side.trunk else AttentionBlock(C)


class Stage(nn.Module):
    """One change of resolution, then an activation (none on a trunk), residual blocks and attention."""

    def __init__(self, resample: nn.Module, side: Transform, i: int, inverse: bool):
        super().__init__()
        C = side.widths[i]
        self.resample = resample
        self.act = _activation(side, C, inverse)
        self.blocks = blocks(side, C, side.depths[i])
        self.attention = _attention(side, C, side.attention[i])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C, H', W']."""
        return self.attention(self.blocks(self.act(self.resample(x))))


class Projection(nn.Conv2d):
    """Patches that do not overlap, each to C channels: a trunk's way to a lower resolution."""

    bias: Tensor

    def __init__(self, C_in: int, C: int, side: int):
        super().__init__(C_in, C, side, stride=side)
        self.side = side


class BackProjection(nn.ConvTranspose2d):
    """Channels to patches that do not overlap: a trunk's way to a higher resolution."""

    bias: Tensor

    def __init__(self, C_in: int, C: int, side: int):
        super().__init__(C_in, C, side, stride=side)
        self.side = side


def _down(side: Transform, C_in: int, C: int) -> nn.Module:
    if side.trunk:
        return Projection(C_in, C, 2)
    return conv(C_in, C, kernel_size=side.kernel, stride=2)


def _up(side: Transform, C_in: int, C: int) -> nn.Module:
    if side.trunk:
        return BackProjection(C_in, C, 2)
    return deconv(C_in, C, kernel_size=side.kernel, stride=2)


SHUFFLE = {"conv": 1, "unshuffle2": 2, "unshuffle4": 4}
"""Pixels per side that a stem gathers; a trunk's stem is a projection of whole patches instead."""


class Analysis(nn.Module):
    """g_a: a picture [B, 3, H, W] to latents [B, M, H/16, W/16].

    On a trunk every change of resolution is a projection of patches that do not overlap, blocks that begin as the
    identity stand between, and nothing runs around them. A Haar transform and a 1x1 convolution compute the same; that
    form, a rotation of the kernels, is not kept.
    """

    def __init__(self, side: Transform, M: int):
        super().__init__()
        self.unshuffle = SHUFFLE.get(side.stem, 1)
        # Stems are named apart: the weights of one are no slices of another's.
        self.stem = nn.ModuleDict()
        self.stages = nn.ModuleDict()
        C, first = 3 * self.unshuffle**2, side.first_stage
        if side.stem != "conv":
            self.stem[side.stem] = _stem(side, C)
        for i in range(first, len(side.widths)):
            down: nn.Module = nn.Identity()
            if i > first or side.stem == "conv":
                down = _down(side, C, side.widths[i])
            self.stages[str(i)] = Stage(down, side, i, inverse=False)
            C = side.widths[i]
        self.head = Projection(C, M, 1) if side.own_width else _down(side, C, M)
        self.latent = _latent_blocks(side, M)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to [B, M, H/16, W/16]."""
        if self.unshuffle > 1:
            x = nn.functional.pixel_unshuffle(x, self.unshuffle)
        for stem in self.stem.values():
            x = stem(x)
        for stage in self.stages.values():
            x = stage(x)
        return self.latent(self.head(x))


def _latent_blocks(side: Transform, M: int) -> nn.Sequential:
    """Those on the latents themselves, where 1/16 has no width of its own."""
    on_latents = side.trunk and not side.own_width
    return blocks(side, M, side.depths[STAGES]) if on_latents else nn.Sequential()


def _stem(side: Transform, C: int) -> nn.Module:
    width, patch = side.widths[side.first_stage], 2 ** (side.first_stage + 1)
    if side.trunk:
        return Projection(3, width, patch)
    return conv(C, width, kernel_size=3, stride=1)


def shuffled(x: Tensor, side: int) -> Tensor:
    """[B, h, w, C side^2] to [B, C, h side, w side]: torch's pixel_shuffle, and faster than it on a CPU."""
    B, h, w, _ = x.shape
    split = x.reshape(B, h, w, -1, side, side).permute(0, 3, 1, 4, 2, 5)
    return split.reshape(B, -1, h * side, w * side)


class Modulated(nn.Module):
    """Residual block of two pointwise convolutions at 1/4 whose input the stage at 1/16 scales and shifts.

    Adaptive normalisation as in DiT (Peebles and Xie, ICCV 2023) without its normalisation: a place at 1/16 says of
    its 4x4 places at 1/4 what is to be made of them, for as much as one of them would cost. Starts as the identity.
    """

    def __init__(self, C: int, C_16: int, act: nn.Module):
        super().__init__()
        self.act = act
        # Apart, for a prefix of a joint 2C channels is no prefix of each.
        self.scale, self.shift = nn.Conv2d(C_16, C, 1), nn.Conv2d(C_16, C, 1)
        self.expand, self.project = nn.Conv2d(C, 2 * C, 1), nn.Conv2d(2 * C, C, 1)
        for made in (self.scale, self.shift, self.project):
            for p in made.parameters():
                nn.init.zeros_(p)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """[B, C, 4h, 4w] to the same shape, with features [B, C_16, h, w]."""
        B, C, H, W = x.shape
        scale, shift = (head(features)[:, :, :, None, :, None] for head in (self.scale, self.shift))
        cells = x.reshape(B, C, H // 4, 4, W // 4, 4)
        modulated = (cells * (1 + scale) + shift).reshape(B, C, H, W)
        return x + self.project(self.act(self.expand(modulated)))


class Renderer(nn.Module):
    """From 1/16 to 1/4 at once, then modulated blocks; named apart from the stages that other stems have there."""

    def __init__(self, side: Transform):
        super().__init__()
        C, C_16 = side.widths[1], side.widths[STAGES]
        self.resample = BackProjection(C_16, C, 4)
        self.blocks = nn.ModuleList(
            Modulated(C, C_16, activation(side)) for _ in range(side.depths[1])
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_16, h, w] to [B, C, 4h, 4w]."""
        x = self.resample(features)
        for block in self.blocks:
            x = block(x, features)
        return x


class Synthesis(nn.Module):
    """g_s: latents [B, M, H/16, W/16] to a picture [B, 3, H, W]; on a trunk the mirror of ``Analysis``."""

    def __init__(self, side: Transform, M: int):
        super().__init__()
        self.shuffle = SHUFFLE.get(side.stem, 1)
        self.latent = _latent_blocks(side, M)
        self.stages = nn.ModuleDict()
        C = M
        first = STAGES if side.renders else side.first_stage
        for i in reversed(range(first, len(side.widths))):
            up = (
                _up(side, C, side.widths[i]) if i < STAGES else BackProjection(C, side.widths[i], 1)
            )
            self.stages[str(i)] = Stage(up, side, i, inverse=True)
            C = side.widths[i]
        self.renderer = Renderer(side) if side.renders else nn.Identity()
        C = side.widths[1] if side.renders else C
        self.stem = nn.ModuleDict({side.stem: self._last(side, C)})

    def _last(self, side: Transform, C: int) -> nn.Module:
        if side.trunk:
            return BackProjection(C, 3, 2 ** (side.first_stage + 1))
        if side.stem == "conv":
            return deconv(C, 3, kernel_size=side.kernel, stride=2)
        return conv(C, 3 * self.shuffle**2, kernel_size=3, stride=1)

    def forward(self, y_hat: Tensor) -> Tensor:
        """[B, M, H/16, W/16] to [B, 3, H, W], not clamped."""
        x = self.latent(y_hat)
        for stage in self.stages.values():
            x = stage(x)
        x = self.renderer(x)
        for head in self.stem.values():
            x = head(x)
        return shuffled(x.permute(0, 2, 3, 1), self.shuffle) if self.shuffle > 1 else x
