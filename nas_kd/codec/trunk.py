"""The linear start of a trunk: projections onto principal components, layer by layer, and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, pixel_unshuffle

from nas_kd.codec.layers import Analysis, BackProjection, Projection, Renderer, Synthesis

LEAST = 1e-6
"""Deviation, in units of the picture's range, under which a component counts as empty."""
GROUP = 32
"""Crops whose products are taken at once: in double precision they hold twice what the crops do."""
SPARE = 0.1
"""Deviation that a latent without a component of its own starts with, beside those of unit variance."""
EVENED = 0.5
"""Power of a component's deviation that its channel of a trunk is divided by.

At 0 the first of 512 channels at 1/16 is over a thousand times as loud as the last, and what a step of training lets a
block add is as much for both: little of the one, and a multiple of the other. At 1 all are equally loud, those that
hold next to nothing too.
"""


class Components(NamedTuple):
    """Leading principal components [n, C side^2] of patches, their deviations [n], the mean of each channel [C side^2].

    A channel's mean is one for all places of a patch, as a bias is: with room for all components nothing is lost.
    """

    vectors: Tensor
    std: Tensor
    mean: Tensor


def principal_components(x: Tensor, side: int, n: int) -> Components:
    """Of the patches of x [B, C, H, W] that do not overlap; at most C side^2, by falling energy."""
    mean = _patch_mean(x, side)
    covariance = torch.zeros(len(mean), len(mean)).double()
    for part in x.split(GROUP):
        centred = _patches(part, side) - mean
        covariance += centred @ centred.T
    energy, vectors = torch.linalg.eigh(covariance / (x[:, 0].numel() / side**2))
    # A component's sign is the library's whim: let the largest entry be positive.
    vectors = vectors.flip(1)[:, :n].T
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * torch.sign(largest)
    std = energy.flip(0)[:n].clamp(min=LEAST**2).sqrt()
    return Components(vectors.float(), std.float(), mean[:, 0].float())


def _columns(x: Tensor) -> Tensor:
    """Places of x [n, C, h, w] beside each other, [C, n h w], in double precision."""
    return x.transpose(0, 1).flatten(1).double()


def _patches(x: Tensor, side: int) -> Tensor:
    """Patches of x that do not overlap, [C side^2, places]."""
    return _columns(pixel_unshuffle(x, side))


def _patch_mean(x: Tensor, side: int) -> Tensor:
    """Of each channel at each of its places in a patch, [C side^2, 1]."""
    return x.mean((0, 2, 3), dtype=torch.float64).repeat_interleave(side**2)[:, None]


class Features(NamedTuple):
    """Of a trunk at one resolution [n, C, h, w], and what its channels [C] are to be multiplied by to be components."""

    x: Tensor
    unit: Tensor

    @property
    def components(self) -> Tensor:
        """As orthonormal coordinates of the picture, [n, C, h, w]."""
        return self.x * self.unit[:, None, None]


class Latents(NamedTuple):
    """What an encoder gives: latents [n, M, h, w] of unit variance, and the deviations [M] that they had."""

    y: Tensor
    std: Tensor


@dataclass
class Common:
    """What trunks that share weights say with them: of the same pictures the features at each resolution, and latents.

    Features by the pixels of a place's side. The first trunk decides; those that come after it, by whatever stem they
    arrive there, give the same by least squares, and so go with each other's later stages and with all decoders.
    """

    encoder: dict[int, Features] = field(default_factory=dict)
    decoder: dict[int, Features] = field(default_factory=dict)
    latents: Latents | None = None
    begun: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """Projections of a side that has begun, weights and biases, by their shapes: one with other blocks has the same."""


def start_trunk(g_a: Analysis, g_s: Synthesis, crops: Tensor, common: Common) -> Latents:
    """Let encoder and decoder begin as a linear codec of ``crops`` [n, 3, H, W]; the latents that they have.

    The encoder's latents are scaled to unit variance. The decoder is the transpose of a chain of its own widths;
    its first projection maps latents to what that chain makes of the picture, by least squares, which is the
    transpose too where both sides have the same widths.
    """
    if not _as_before(g_a, common):
        _start_encoder(g_a, crops, common)
        common.begun[_shapes(g_a)] = _projections(g_a)
    assert common.latents is not None
    if not _as_before(g_s, common):
        wanted = _start_decoder(g_s, crops, common.decoder)
        _give(_inwards(g_s)[-1], common.latents.y, wanted)
        common.begun[_shapes(g_s)] = _projections(g_s)
    return common.latents


def _as_before(network: Analysis | Synthesis, common: Common) -> bool:
    """Whether one of the same projections has begun; they are copied from it."""
    before = common.begun.get(_shapes(network), [])
    for layer, (weight, bias) in zip(_inwards(network), before, strict=False):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return bool(before)


def _shapes(network: Analysis | Synthesis) -> tuple[Any, ...]:
    return type(network), *(tuple(layer.weight.shape) for layer in _inwards(network))


def _projections(network: Analysis | Synthesis) -> list[tuple[Tensor, Tensor]]:
    return [(layer.weight.clone(), layer.bias.clone()) for layer in _inwards(network)]


def _inwards(network: Analysis | Synthesis) -> list[Any]:
    """The projections from the picture inwards, the last one next to the latents."""
    stages: list[Any] = [stage for _, stage in sorted(network.stages.items())]
    stem = next(iter(network.stem.values()))
    resampling = [stage.resample for stage in stages]
    if isinstance(network, Analysis):
        return [stem, *resampling[1:], network.head]
    between = [network.renderer.resample] if isinstance(network.renderer, Renderer) else []
    return [stem, *between, *resampling]


def _start_encoder(g_a: Analysis, x: Tensor, common: Common) -> None:
    projections: list[Projection] = _inwards(g_a)
    *outer, head = projections
    side, here = 1, _of_pixels(x)
    for layer in outer:
        side *= layer.side
        if side in common.encoder:
            _follow(layer, here.x, common.encoder[side].x)
            unit = common.encoder[side].unit
        else:
            found = principal_components(here.components, layer.side, layer.out_channels)
            unit = _units(found, layer.out_channels)
            _project(layer, found, here.unit, unit)
        here = Features(layer(here.x), unit)
        common.encoder.setdefault(side, here)
    if common.latents is not None:
        _follow(head, here.x, common.latents.y)
        return
    found = principal_components(here.components, head.side, head.out_channels)
    _project(head, found, here.unit, found.std)
    spare = found.std[-1].repeat(head.out_channels - len(found.std))
    common.latents = Latents(head(here.x), torch.cat([found.std, spare]))


def _of_pixels(x: Tensor) -> Features:
    return Features(x, torch.ones(x.shape[1]))


def _units(found: Components, C: int) -> Tensor:
    """What components are divided by on a trunk of C channels; those beyond them as they come."""
    units = torch.ones(C)
    units[: len(found.std)] = found.std**EVENED
    return units


def _project(layer: Projection, found: Components, given: Tensor, wanted: Tensor) -> None:
    """Let a projection find components in features of these units, and give them in those that are wanted."""
    rows = found.vectors / wanted[: len(found.std), None]
    _put(layer, rows * given.repeat_interleave(layer.side**2), -rows @ found.mean)


def _follow(layer: Projection, x: Tensor, wanted: Tensor) -> None:
    """Let a projection give these features of x, by least squares."""
    mean = _patch_mean(x, layer.side)
    groups = zip(x.split(GROUP), wanted.split(GROUP), strict=True)
    pairs = ((_patches(part, layer.side) - mean, _columns(goal)) for part, goal in groups)
    rows = _least_squares(pairs, LEAST**2).T
    _put(layer, rows.float(), -(rows @ mean)[:, 0].float())


def _least_squares(pairs: Iterable[tuple[Tensor, Tensor]], ridge: float) -> Tensor:
    """[k, m] that maps what is given, [k, n] of mean 0, to what is wanted, [m, n]; group by group of the n."""
    covariance, cross, n = torch.zeros(()), torch.zeros(()), 0
    for given, wanted in pairs:
        covariance = covariance + given @ given.T
        cross = cross + given @ wanted.T
        n += given.shape[1]
    ridges = ridge * torch.eye(len(covariance)).double()
    return torch.linalg.solve(covariance / n + ridges, cross / n)


def _start_decoder(g_s: Synthesis, x: Tensor, known: dict[int, Features]) -> Tensor:
    """Set all projections but the one next to the latents; returns what that one is to give."""
    projections: list[BackProjection] = _inwards(g_s)
    side, here = 1, _of_pixels(x)
    for layer in projections[:-1]:
        side *= layer.side
        if side in known:
            _give(layer, known[side].x, here.x)
        else:
            known[side] = _begin(layer, here)
        here = known[side]
    return here.x


def _begin(layer: BackProjection, wanted: Features) -> Features:
    """Set a projection back to the principal components of what it is to give; the features that it is to be given."""
    C, side, x = layer.out_channels, layer.side, wanted.components
    found = principal_components(x, side, layer.in_channels)
    n, units = len(found.std), _units(found, layer.in_channels)
    back = found.vectors.reshape(-1, C, side, side) / wanted.unit[:, None, None]
    layer.weight.zero_()
    layer.weight[:n] = back * units[:n, None, None, None]
    layer.bias.copy_(found.mean[:: side**2] / wanted.unit)
    centred = pixel_unshuffle(x, side) - found.mean[:, None, None]
    features = torch.einsum("nk,bkhw->bnhw", found.vectors / units[:n, None], centred)
    return Features(pad(features, (0, 0, 0, 0, 0, layer.in_channels - n)), units)


def _give(layer: BackProjection, features: Tensor, wanted: Tensor) -> None:
    """Let a projection make of features what is wanted, by least squares."""
    mean = _patch_mean(wanted, layer.side)
    groups = zip(features.split(GROUP), wanted.split(GROUP), strict=True)
    pairs = ((_columns(part), _patches(goal, layer.side) - mean) for part, goal in groups)
    weight = _least_squares(pairs, LEAST)
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(mean[:: layer.side**2, 0])


def _put(layer: Projection, rows: Tensor, bias: Tensor) -> None:
    """Kernels of a projection; outputs beyond its components begin as faint noise."""
    n = len(rows)
    layer.weight.normal_(std=SPARE / rows.shape[1] ** 0.5)
    layer.weight[:n] = rows.reshape(n, *layer.weight.shape[1:])
    layer.bias.zero_()
    layer.bias[:n] = bias
