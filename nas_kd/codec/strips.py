"""A trunk on a processor: what ``Analysis`` and ``Synthesis`` compute, in strips of rows that stay in its cache.

A map is [h, w, C], as matrix products want it. Each step goes over it strip by strip: a pointwise convolution is a
product of the strip's places, a depthwise one sees the rows around the strip, a projection is a product and a
shuffle. No place is computed twice, and nothing but maps grows with the picture. Sums are taken in another order
than the networks take them in, so that results differ by the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.codec.blocks import DepthwiseBlock, GatedBlock, Mixing, SummedBlock
from nas_kd.codec.layers import Analysis, BackProjection, Modulated, Projection, Renderer, Synthesis
from nas_kd.codec.pointwise import convolved, planes, pointwise
from nas_kd.data.image_file import Image8

NUMBERS = 2**19
"""Of a map in one strip, 2 MiB; halves and doubles of it take up to a tenth longer (benchmarks/LOG.md, 53)."""

QUICK = DepthwiseBlock, GatedBlock, SummedBlock
"""Blocks that are computed strip by strip; others take the whole map."""

Strip = Callable[[int, int], Tensor]
"""Rows of a map, from the first to before the last, [rows, w, C]."""


def analysed(network: Analysis, image: Image8) -> Tensor:
    """Y [1, M, h, w] of a picture, uint8 [16 h, 16 w, 3]; the network must be a trunk's, on the CPU."""
    x = torch.from_numpy(image)
    for stem in network.stem.values():
        x = _down(x, stem)
    stages: list[Any] = [*network.stages.values()]
    for stage in stages:
        on_place = isinstance(stage.resample, nn.Identity)
        x = _after(x if on_place else _down(x, stage.resample), stage)
    return planes(_blocks(_down(x, network.head), network.latent))


def synthesised(network: Synthesis, y_hat: Tensor) -> Image8:
    """The picture, uint8 [16 h, 16 w, 3], of y_hat [1, M, h, w]; the network must be a trunk's, on the CPU."""
    own = y_hat[0].permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
    x = _blocks(own, network.latent)
    stages: list[Any] = [*network.stages.values()]
    for stage in stages:
        x = _after(_up(x, stage.resample), stage)
    stem: Any = next(iter(network.stem.values()))
    (h, w), side = x.shape[:2], 4 if isinstance(network.renderer, Renderer) else 1
    image = torch.empty(h * side, stem.side, w * side, stem.side, 3, dtype=torch.uint8)
    for top, bottom in _strips(x, x.shape[2] * side**2):
        rows = x[top:bottom]
        if isinstance(network.renderer, Renderer):
            rows = _rendered(rows, network.renderer)
        image[side * top : side * bottom] = _laid(_bytes(_patches(rows, stem)))
    return np.asarray(image.flatten(0, 1).flatten(1, 2).numpy())


def _strips(x: Tensor, C: int) -> Iterator[tuple[int, int]]:
    """First and last row of strips of a map, which has C numbers at a place at most; multiples of 4 rows."""
    h, w = x.shape[:2]
    rows = max(1, NUMBERS // (4 * w * C)) * 4
    for top in range(0, h, rows):
        yield top, min(top + rows, h)


def _replace(x: Tensor, strip: Strip) -> None:
    """A map by strips that are computed of it. Each is written when the next has seen the rows it reaches into."""
    written = 0
    late: Tensor | None = None
    for top, bottom in _strips(x, x.shape[2]):
        rows = strip(top, bottom)
        if late is not None:
            x[written:top] = late
        written, late = top, rows
    if late is not None:
        x[written:] = late


# --- layers -----------------------------------------------------------------------------------


def _activated(x: Tensor, act: nn.Module) -> Tensor:
    """In place."""
    if isinstance(act, nn.ReLU6):
        return x.clamp_(0, 6)
    assert isinstance(act, nn.LeakyReLU)
    return nn.functional.leaky_relu_(x, act.negative_slope)


def _down(x: Tensor, layer: nn.Module) -> Tensor:
    """A map of patches, of a picture in bytes too."""
    assert isinstance(layer, Projection)
    side, C_in = layer.side, layer.in_channels
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
    h, w = x.shape[0] // side, x.shape[1] // side
    out = torch.empty(h, w, layer.out_channels)
    scale = 1 / 255 if x.dtype == torch.uint8 else 1
    for top, bottom in _strips(out, max(layer.out_channels, C_in * side**2)):
        rows = x[side * top : side * bottom].reshape(-1, side, w, side, C_in)
        patches = rows.permute(0, 2, 1, 3, 4).reshape(-1, w, weight.shape[1]).float()
        out[top:bottom] = pointwise(patches, weight * scale, layer.bias)
    return out


def _patches(x: Tensor, layer: nn.Module) -> Tensor:
    """Of each place its patch, [h, w, side, side, C]."""
    assert isinstance(layer, BackProjection)
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    found = pointwise(x, weight, layer.bias.repeat(layer.side**2))
    return found.reshape(*x.shape[:2], layer.side, layer.side, -1)


def _laid(patches: Tensor) -> Tensor:
    """Patches beside each other, [h, side, w, side, C]; what it returns shares their memory."""
    return patches.transpose(1, 2)


def _up(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, BackProjection)
    (h, w), side, C = x.shape[:2], layer.side, layer.out_channels
    out = torch.empty(h, side, w, side, C)
    for top, bottom in _strips(x, max(C * side**2, x.shape[2])):
        out[top:bottom] = _laid(_patches(x[top:bottom], layer))
    return out.reshape(h * side, w * side, C)


def _bytes(x: Tensor) -> Tensor:
    """Of numbers in [0, 1], which it changes."""
    return x.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


# --- blocks -----------------------------------------------------------------------------------


def _after(x: Tensor, stage: Any) -> Tensor:
    """What follows a stage's change of resolution."""
    return _whole(_blocks(x, stage.blocks), stage.attention)


def _blocks(x: Tensor, blocks: nn.Module) -> Tensor:
    """What comes behind blocks; x itself holds it, or what came behind one of them."""
    for block in blocks.children():
        if isinstance(block, QUICK):
            _pass(x, block)
        else:
            x = _whole(x, block)
    return x


def _whole(x: Tensor, layer: nn.Module) -> Tensor:
    """What has no strips of its own."""
    if isinstance(layer, nn.Identity):
        return x
    found: Tensor = layer(planes(x))[0].permute(1, 2, 0)
    return found.contiguous()


def _pass(x: Tensor, block: nn.Module) -> None:
    """A map through a block, in place."""

    def strip(top: int, bottom: int) -> Tensor:
        if isinstance(block, DepthwiseBlock):
            rows = _spatial(x, top, bottom, block.spatial)
            return _squeezed(rows, block).add_(x[top:bottom])
        assert isinstance(block, GatedBlock | SummedBlock)
        rows = _mixed(x, top, bottom, block)
        return rows.add_(
            _gated(rows, block) if isinstance(block, GatedBlock) else _summed(rows, block)
        )

    _replace(x, strip)


def _squeezed(rows: Tensor, block: DepthwiseBlock | Modulated) -> Tensor:
    return convolved(_activated(convolved(rows, block.expand), block.act), block.project)


def _gated(rows: Tensor, block: GatedBlock) -> Tensor:
    gate = _activated(convolved(rows, block.gate), block.act)
    return convolved(gate.mul_(convolved(rows, block.expand)), block.project)


def _summed(rows: Tensor, block: SummedBlock) -> Tensor:
    # The channels of a sum far apart, where they are quick to add.
    four, (h, w, C) = block.FOUR, rows.shape
    weight = block.widen.weight[:, :, 0, 0].reshape(C, four, C).transpose(0, 1).reshape(-1, C)
    assert block.widen.bias is not None
    bias = block.widen.bias.reshape(C, four).T.flatten()
    wide = _activated(pointwise(rows, weight, bias), block.act)
    return convolved(wide.reshape(h, w, four, C).sum(2), block.narrow)


def _mixed(x: Tensor, top: int, bottom: int, block: Mixing) -> Tensor:
    def entered(rows: Tensor) -> Tensor:
        return _activated(convolved(rows, block.enter), block.act)

    rows = _spatial(x, top, bottom, block.spatial, entered)
    return convolved(rows, block.leave).add_(x[top:bottom])


def _spatial(
    x: Tensor,
    top: int,
    bottom: int,
    layer: nn.Conv2d,
    before: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:
    """Rows of a depthwise convolution; ``before`` is what its input goes through first."""
    reach = layer.kernel_size[0] // 2
    first, last = max(0, top - reach), min(len(x), bottom + reach)
    found: Tensor = layer(planes(before(x[first:last])))[0].permute(1, 2, 0)
    return found[top - first : bottom - first]


def _rendered(features: Tensor, renderer: Renderer) -> Tensor:
    """A strip at 1/4 of one at 1/16."""
    x = _laid(_patches(features, renderer.resample)).flatten(0, 1).flatten(1, 2)
    for block in renderer.blocks:
        assert isinstance(block, Modulated)
        scale, shift = (
            convolved(features, head)[:, None, :, None] for head in (block.scale, block.shift)
        )
        h, w, C = x.shape
        cells = x.reshape(h // 4, 4, w // 4, 4, C)
        x = x.add_(_squeezed(torch.addcmul(cells + shift, cells, scale).reshape(h, w, C), block))
    return x
