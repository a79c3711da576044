"""The transforms of a student, named so that slices of a wide one are a narrow one.

Stages are named by their resolution and blocks by their place, so that a parameter keeps its name when a depth
or a stem changes, and a narrower network's tensors are leading slices of a wider one's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nas_kd.codec.compressai_light import (
    GDN,
    AttentionBlock,
    CheckerboardMaskedConv2d,
    ResidualBlock,
    conv,
    deconv,
)
from nas_kd.codec.space import HEAD, STAGES, Arch, Transform, squeezed

WINDOW = 8
"""Side of an attention window; every stage of a picture padded to multiples of 64 is made of whole ones."""

AROUND = 9
"""Side of what a channel's gate is the mean of, in places of its stage: 144 px at 1/16."""


class DepthwiseBlock(nn.Module):
    """Residual block of a depthwise and two pointwise convolutions (inverted bottleneck of 2C)."""

    def __init__(self, C: int, kernel: int, act: nn.Module):
        super().__init__()
        self.act = act
        self.spatial = nn.Conv2d(C, C, kernel, padding=kernel // 2, groups=C)
        self.expand = nn.Conv2d(C, 2 * C, 1)
        self.project = nn.Conv2d(2 * C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return x + self.project(self.act(self.expand(self.spatial(x))))


class ConvolutionBlock(nn.Module):
    """Residual block of two 3x3 convolutions; nothing after the second, so that it can start at zero."""

    def __init__(self, C: int, act: nn.Module):
        super().__init__()
        self.act = act
        self.conv1 = nn.Conv2d(C, C, 3, padding=1)
        self.conv2 = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return x + self.conv2(self.act(self.conv1(x)))


class Mixing(nn.Module):
    """Residual depthwise convolution between two pointwise ones: the first half of DCVC-RT's block."""

    def __init__(self, C: int, kernel: int, act: nn.Module):
        super().__init__()
        self.act = act
        self.enter = nn.Conv2d(C, C, 1)
        self.spatial = nn.Conv2d(C, C, kernel, padding=kernel // 2, groups=C)
        self.leave = nn.Conv2d(C, C, 1)

    def mixed(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return x + self.leave(self.spatial(self.act(self.enter(x))))


class GatedBlock(Mixing):
    """Depthwise convolution between two pointwise ones, then two pointwise branches that multiply.

    The block of DCVC-RT (Jia et al., CVPR 2025) without its shortcuts' scales; both halves are residual.
    """

    def __init__(self, C: int, kernel: int, act: nn.Module):
        super().__init__(C, kernel, act)
        # Apart, for a prefix of a joint 4C channels is no prefix of each.
        self.expand, self.gate = nn.Conv2d(C, 2 * C, 1), nn.Conv2d(C, 2 * C, 1)
        self.project = nn.Conv2d(2 * C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        x = self.mixed(x)
        return x + self.project(self.expand(x) * self.act(self.gate(x)))


class SummedBlock(Mixing):
    """The same first half, then 4C channels that are summed in fours after their activation.

    The sum is DCVC-RT's in halves, taken further: wide inside, and what follows it is narrow. Fours are neighbours,
    so that a prefix of C channels has a prefix of the 4C.
    """

    FOUR = 4

    def __init__(self, C: int, kernel: int, act: nn.Module):
        super().__init__(C, kernel, act)
        self.widen = nn.Conv2d(C, self.FOUR * C, 1)
        self.narrow = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        x = self.mixed(x)
        B, C, H, W = x.shape
        fours = self.act(self.widen(x)).reshape(B, C, self.FOUR, H, W)
        return x + self.narrow(fours.sum(2))


class WindowBlock(nn.Module):
    """Attention among the 8x8 positions of a window, then two pointwise convolutions (bottleneck of 2C).

    Heads of 16 channels with a bias per head and relative position (Liu et al., ICCV 2021); windows do not
    shift, for the convolutions between blocks carry over their edges. No normalisation, as in the other blocks.
    Written out as matrix products, which the MAC counter sees; it counts fused attention as nothing.
    """

    offsets: Tensor

    def __init__(self, C: int, act: nn.Module):
        super().__init__()
        self.act = act
        # Apart, for a prefix of a joint 3C channels is no prefix of each.
        self.query, self.key, self.value = (nn.Conv2d(C, C, 1) for _ in range(3))
        self.out = nn.Conv2d(C, C, 1)
        self.position = nn.Parameter(torch.zeros(C // HEAD, (2 * WINDOW - 1) ** 2))
        self.register_buffer("offsets", relative_offsets(WINDOW), persistent=False)
        self.expand = nn.Conv2d(C, 2 * C, 1)
        self.project = nn.Conv2d(2 * C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape; H and W multiples of 8."""
        x = x + self.out(self._attend(x))
        return x + self.project(self.act(self.expand(x)))

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = (_windows(t) for t in (self.query(x), self.key(x), self.value(x)))
        scores = torch.matmul(q, k.transpose(-1, -2)) * HEAD**-0.5
        weights = torch.softmax(scores + self.position[:, self.offsets], dim=-1)
        B, C, H, W = x.shape
        seen = torch.matmul(weights, v).reshape(
            B, H // WINDOW, W // WINDOW, -1, WINDOW, WINDOW, HEAD
        )
        return seen.permute(0, 3, 6, 1, 4, 2, 5).reshape(B, C, H, W)


def _windows(x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, windows, heads, 64, 16]."""
    B, C, H, W = x.shape
    split = x.reshape(B, C // HEAD, HEAD, H // WINDOW, WINDOW, W // WINDOW, WINDOW)
    apart = split.permute(0, 3, 5, 1, 4, 6, 2)
    return apart.reshape(B, (H // WINDOW) * (W // WINDOW), C // HEAD, WINDOW**2, HEAD)


def relative_offsets(side: int) -> Tensor:
    """Of each pair of positions in a window, the number of their relative place, [side^2, side^2]."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()])
    dy, dx = places[:, :, None] - places[:, None, :] + side - 1
    return dy * (2 * side - 1) + dx


def _activation(side: Transform, C: int, inverse: bool) -> nn.Module:
    if side.trunk:
        return nn.Identity()
    return GDN(C, inverse=inverse) if side.activation == "gdn" else nn.LeakyReLU()


class ChannelGates(nn.Module):
    """Channel attention on a trunk: each channel times a factor that the mean of its surroundings decides.

    Squeeze-and-excitation (Hu et al., CVPR 2018) over 9x9 places instead of the whole picture, which no tile sees. A
    prefix of C channels has a prefix of the C / 4; starts as the identity.
    """

    def __init__(self, C: int):
        super().__init__()
        self.mean = nn.AvgPool2d(AROUND, 1, AROUND // 2, count_include_pad=False)
        self.squeeze = nn.Conv2d(C, squeezed(C), 1)
        self.excite = nn.Conv2d(squeezed(C), C, 1)
        for p in self.excite.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        hidden = nn.functional.relu(self.squeeze(self.mean(x)))
        return x * (2 * torch.sigmoid(self.excite(hidden)))


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


LAST = ("conv2", "leave", "out", "project", "narrow")
"""What a block's branches end in: at zero when a trunk's training begins."""


def blocks(side: Transform, C: int, depth: int) -> nn.Sequential:
    """So many residual blocks of C channels; on a trunk they begin as the identity."""
    made = nn.Sequential(*(_block(side, C) for _ in range(depth)))
    if side.trunk:
        for name, p in made.named_parameters():
            if name.split(".")[1] in LAST:
                nn.init.zeros_(p)
    return made


KERNELLED: dict[str, Callable[[int, int, nn.Module], nn.Module]] = {
    "depthwise": DepthwiseBlock,
    "gated": GatedBlock,
    "summed": SummedBlock,
}


def _pointwise(side: Transform) -> nn.Module:
    """What stands inside blocks, between their convolutions."""
    return nn.ReLU6() if side.activation == "relu6" else nn.LeakyReLU()


def _block(side: Transform, C: int) -> nn.Module:
    act = _pointwise(side)
    if side.block == "residual":
        return ConvolutionBlock(C, act) if side.trunk else ResidualBlock(C, C)
    if side.block == "window":
        return WindowBlock(C, act)
    return KERNELLED[side.block](C, side.kernel, act)


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
            Modulated(C, C_16, _pointwise(side)) for _ in range(side.depths[1])
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
