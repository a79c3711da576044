"""The linear start of a trunk: projections onto principal components, layer by layer, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, pixel_unshuffle

from nas_kd.codec.layers import Analysis, BackProjection, Projection, Renderer, Synthesis

LEAST = 1e-6
"""Deviation, in units of the picture's range, under which a component counts as empty."""
SPARE = 0.1
"""Deviation that a latent without a component of its own starts with, beside those of unit variance."""


class Components(NamedTuple):
    """Leading principal components [n, C side^2] of patches, their deviations [n], the mean of each channel [C side^2].

    A channel's mean is one for all places of a patch, as a bias is: with room for all components nothing is lost.
    """

    vectors: Tensor
    std: Tensor
    mean: Tensor


def principal_components(x: Tensor, side: int, n: int) -> Components:
    """Of the patches of x [B, C, H, W] that do not overlap; at most C side^2, by falling energy."""
    patches = pixel_unshuffle(x, side).transpose(0, 1).flatten(1).double()
    mean = x.double().mean((0, 2, 3)).repeat_interleave(side**2)
    centred = patches - mean[:, None]
    energy, vectors = torch.linalg.eigh(centred @ centred.T / centred.shape[1])
    # A component's sign is the library's whim: let the largest entry be positive.
    vectors = vectors.flip(1)[:, :n].T
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * torch.sign(largest)
    std = energy.flip(0)[:n].clamp(min=LEAST**2).sqrt()
    return Components(vectors.float(), std.float(), mean.float())


def start_trunk(g_a: Analysis, g_s: Synthesis, crops: Tensor) -> Tensor:
    """Let encoder and decoder begin as a linear codec of ``crops`` [n, 3, H, W]; the latents' deviations [M].

    The encoder's latents are scaled to unit variance. The decoder is the transpose of a chain of its own widths;
    its first projection maps latents to what that chain makes of the picture, by least squares, which is the
    transpose too where both sides have the same widths.
    """
    y, std = _start_encoder(g_a, crops)
    _start_entrance(g_s, y, _start_decoder(g_s, crops))
    return std


def _inwards(network: Analysis | Synthesis) -> list[Any]:
    """The projections from the picture inwards, the last one next to the latents."""
    stages: list[Any] = [stage for _, stage in sorted(network.stages.items())]
    stem = next(iter(network.stem.values()))
    resampling = [stage.resample for stage in stages]
    if isinstance(network, Analysis):
        return [stem, *resampling[1:], network.head]
    between = [network.renderer.resample] if isinstance(network.renderer, Renderer) else []
    return [stem, *between, *resampling]


def _start_encoder(g_a: Analysis, x: Tensor) -> tuple[Tensor, Tensor]:
    projections: list[Projection] = _inwards(g_a)
    *outer, head = projections
    for layer in outer:
        found = principal_components(x, layer.side, layer.out_channels)
        _put(layer, found.vectors, -found.vectors @ found.mean)
        x = layer(x)
    found = principal_components(x, head.side, head.out_channels)
    scaled = found.vectors / found.std[:, None]
    _put(head, scaled, -scaled @ found.mean)
    spare = found.std[-1].repeat(head.out_channels - len(found.std))
    return head(x), torch.cat([found.std, spare])


def _start_decoder(g_s: Synthesis, x: Tensor) -> Tensor:
    """Set all projections but the one next to the latents; returns what that one is to give."""
    projections: list[BackProjection] = _inwards(g_s)
    for layer in projections[:-1]:
        C, side = layer.out_channels, layer.side
        found = principal_components(x, side, layer.in_channels)
        layer.weight.zero_()
        layer.weight[: len(found.std)] = found.vectors.reshape(-1, C, side, side)
        layer.bias.copy_(found.mean[:: side**2])
        centred = pixel_unshuffle(x, side) - found.mean[:, None, None]
        features = torch.einsum("nk,bkhw->bnhw", found.vectors, centred)
        x = pad(features, (0, 0, 0, 0, 0, layer.in_channels - len(found.std)))
    return x


def _start_entrance(g_s: Synthesis, y: Tensor, wanted: Tensor) -> None:
    """The decoder's first projection: least squares from latents to the features ``wanted``."""
    entrance: BackProjection = _inwards(g_s)[-1]
    patches = pixel_unshuffle(wanted, entrance.side).transpose(0, 1).flatten(1).double()
    latents = y.transpose(0, 1).flatten(1).double()
    mean = wanted.double().mean((0, 2, 3)).repeat_interleave(entrance.side**2)[:, None]
    covariance = latents @ latents.T / latents.shape[1]
    ridge = LEAST * torch.eye(len(latents), dtype=torch.float64)
    cross = latents @ (patches - mean).T / latents.shape[1]
    weight = torch.linalg.solve(covariance + ridge, cross)
    entrance.weight.copy_(weight.reshape(entrance.weight.shape))
    entrance.bias.copy_(mean[:: entrance.side**2, 0])


def _put(layer: Projection, rows: Tensor, bias: Tensor) -> None:
    """Kernels of a projection; outputs beyond its components begin as faint noise."""
    n = len(rows)
    layer.weight.normal_(std=SPARE / rows.shape[1] ** 0.5)
    layer.weight[:n] = rows.reshape(n, *layer.weight.shape[1:])
    layer.bias.zero_()
    layer.bias[:n] = bias
