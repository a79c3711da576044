"""Pointwise convolutions of maps [h, w, C], which matrix products want so, by the quickest library there is.

PyTorch gives a convolution of one picture on one thread to the matrix product of its BLAS, which takes up to twice
oneDNN's time on processors that are not Intel's; what looks like several pictures goes to oneDNN.
"""

from __future__ import annotations

from torch import Tensor, nn

BATCH = 16
"""As so many pictures a map is seen."""


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution of [h, w, C] by [C', C]; what it returns is another map."""
    h, w, C = x.shape
    batch = BATCH if h * w % BATCH == 0 else 1
    places = x.reshape(batch, -1, 1, C).permute(0, 3, 1, 2)
    found = nn.functional.conv2d(places, weight[:, :, None, None], bias)
    return found.permute(0, 2, 3, 1).reshape(h, w, -1)


def convolved(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """[h, w, C] by a layer of kernel 1."""
    return pointwise(x, layer.weight[:, :, 0, 0], layer.bias)


def planes(x: Tensor) -> Tensor:
    """A map as PyTorch's layers want it, [1, C, h, w]."""
    return x[None].permute(0, 3, 1, 2)  # the other way round its layout would not be known
