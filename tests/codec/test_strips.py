"""A trunk in strips computes what its layers compute."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nas_kd.codec.arch import Transform
from nas_kd.codec.layers import Analysis, Synthesis
from nas_kd.codec.strips import analysed, synthesised
from nas_kd.data.images import to_image, to_tensor

M = 6
PLAIN = Transform("trunk4", (0, 64, 8, 12), (0, 2, 1, 1), block="depthwise", kernel=3)
"""512x384 px have three strips at 1/4."""
GATES = (False, True, False, True)
SIDES = {
    "depthwise": PLAIN,
    "gated, 5x5": replace(PLAIN, block="gated", kernel=5),
    "summed, ReLU6": replace(PLAIN, block="summed", activation="relu6"),
    "convolutions and gates": replace(PLAIN, block="residual", attention=GATES),
    "on the latents": replace(PLAIN, widths=(0, 64, 8), depths=(0, 1, 1, 2)),
    "1/2": replace(PLAIN, stem="trunk2", widths=(32, 8, 8), depths=(1, 1, 0, 0)),
    "1/16": replace(PLAIN, stem="trunk16", widths=(0, 0, 0, 12), depths=(0, 0, 0, 2)),
    "windows": replace(PLAIN, widths=(0, 32, 16), depths=(0, 1, 1, 0), block="window"),
    "renderer": replace(PLAIN, stem="trunk4-render", widths=(0, 64, 0, 8), depths=(0, 2, 0, 1)),
}


def _random(network):
    """Weights with which every layer says something."""
    made = torch.Generator().manual_seed(1)
    for p in network.parameters():
        p.copy_(torch.randn(p.shape, generator=made) * 0.5 * p[0].numel() ** -0.5)
    return network


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_strips_are_the_layers(side: Transform):
    side = side.canonical()
    image = np.random.default_rng(0).integers(0, 256, (512, 384, 3), np.uint8)
    if not side.renders:
        encoder = _random(Analysis(side, M))
        layers = encoder(to_tensor(image))
        assert layers.std() > 0.1
        off = (analysed(encoder, image) - layers).abs().max()
        assert off < 1e-5 * layers.abs().max()
    decoder = _random(Synthesis(side, M))
    y_hat = torch.randn(1, M, 32, 24, generator=torch.Generator().manual_seed(2))
    given = y_hat.clone()
    expected = to_image(decoder(y_hat))
    assert expected.std() > 10
    off = synthesised(decoder, y_hat).astype(int) - expected
    assert np.abs(off).max() <= 1
    assert np.abs(off).mean() < 1e-3
    assert y_hat.equal(given)
