"""The blocks of a student: residual ones, channel attention, and what stands so many times in a stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nas_kd.codec.arch import HEAD, Transform, squeezed
from nas_kd.codec.bfloat16 import inside
from nas_kd.codec.compressai_light import ResidualBlock

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
        return x + inside(self._branch, x)

    def _branch(self, x: Tensor) -> Tensor:
        return self.project(self.act(self.expand(self.spatial(x))))


class ConvolutionBlock(nn.Module):
    """Residual block of two 3x3 convolutions; nothing after the second, so that it can start at zero."""

    def __init__(self, C: int, act: nn.Module):
        super().__init__()
        self.act = act
        self.conv1 = nn.Conv2d(C, C, 3, padding=1)
        self.conv2 = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return x + inside(self._branch, x)

    def _branch(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(self.conv1(x)))


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
        return x + inside(self._mixing, x)

    def _mixing(self, x: Tensor) -> Tensor:
        return self.leave(self.spatial(self.act(self.enter(x))))


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
        return x + inside(self._branch, x)

    def _branch(self, x: Tensor) -> Tensor:
        return self.project(self.expand(x) * self.act(self.gate(x)))


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
        return x + inside(self._branch, x)

    def _branch(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        fours = self.act(self.widen(x)).reshape(B, C, self.FOUR, H, W)
        return self.narrow(fours.sum(2))


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
        x = x + inside(self._attended, x)
        return x + inside(self._branch, x)

    def _branch(self, x: Tensor) -> Tensor:
        return self.project(self.act(self.expand(x)))

    def _attended(self, x: Tensor) -> Tensor:
        q, k, v = (_windows(t) for t in (self.query(x), self.key(x), self.value(x)))
        scores = torch.matmul(q, k.transpose(-1, -2)) * HEAD**-0.5
        weights = torch.softmax(scores + self.position[:, self.offsets], dim=-1)
        B, C, H, W = x.shape
        seen = torch.matmul(weights, v).reshape(
            B, H // WINDOW, W // WINDOW, -1, WINDOW, WINDOW, HEAD
        )
        return self.out(seen.permute(0, 3, 6, 1, 4, 2, 5).reshape(B, C, H, W))


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


def activation(side: Transform) -> nn.Module:
    """What stands inside blocks, between their convolutions."""
    return nn.ReLU6() if side.activation == "relu6" else nn.LeakyReLU()


def _block(side: Transform, C: int) -> nn.Module:
    act = activation(side)
    if side.block == "residual":
        return ConvolutionBlock(C, act) if side.trunk else ResidualBlock(C, C)
    if side.block == "window":
        return WindowBlock(C, act)
    return KERNELLED[side.block](C, side.kernel, act)
