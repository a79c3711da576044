from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_codec import ARCH, LMBDAS, tiny
from torch import nn

from nas_kd.codec.arch import Transform
from nas_kd.codec.bitstream import decode, encode
from nas_kd.codec.student import Student
from nas_kd.codec.tiling import LAYERS, STRIPS, analysis, in_strips, sight, synthesis
from nas_kd.data.images import to_image, to_tensor
from nas_kd.data.metrics import padded, psnr_db


def waves(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    planes = [128 + 120 * np.sin(rows / (7 + i) + columns / (11 - i)) for i in range(3)]
    return np.stack(planes, 2).astype(np.uint8)


def test_sight_is_the_sum_of_the_kernels():
    three = nn.Conv2d(2, 2, 3, padding=1)
    net = nn.Sequential(three, three, nn.LeakyReLU(), three)
    assert sight(net, 2, 1, 1) == 3
    assert sight(nn.Conv2d(3, 2, 16, stride=16), 3, 16, 1) == 0
    assert sight(nn.ConvTranspose2d(2, 3, 32, stride=16, padding=8), 2, 1, 16) == 1


def test_a_network_that_sees_everything_is_not_tiled():
    with pytest.raises(ValueError, match="in tiles"):
        sight(lambda x: x + x.mean(), 2, 1, 1)


UNSHUFFLED = Transform("unshuffle4", (0, 4, 4), kernel=3)
DEEP = Transform("conv", (2, 4, 4), (0, 1, 1), (False, False, True), "residual", "gdn", 5)


RENDER = Transform("trunk4-render", (0, 6, 0, 8), (0, 2, 0, 1), block="gated", kernel=3)
GATES = Transform("trunk16", (0, 0, 0, 8), (0, 0, 0, 2), (False,) * 3 + (True,), "summed")


@pytest.mark.parametrize(
    "side",
    [ARCH.decoder, UNSHUFFLED, DEEP, GATES, RENDER],
    ids=["trunk4", "unshuffle4", "conv", "trunk16", "render"],
)
@torch.no_grad()
def test_tiles_are_the_whole_picture(side: Transform):
    torch.manual_seed(0)
    encoder = replace(side, stem="trunk16") if side.renders else side
    student = Student(replace(ARCH, encoder=encoder, decoder=side), LMBDAS).eval()
    limits = STRIPS if in_strips(student) else LAYERS
    image = waves(600, limits.whole_pixels // 600 + 9)
    height, width = image.shape[:2]
    y, z = analysis(student, image)
    whole = student.analysis(padded(to_tensor(image)))
    assert torch.allclose(y, whole, atol=1e-5, rtol=1e-4)
    assert torch.allclose(z, student.h_a(whole), atol=1e-5, rtol=1e-4)
    tiled = synthesis(student, whole, height, width)
    expected = to_image(student.synthesis(whole)[..., :height, :width])
    assert np.abs(tiled.astype(int) - expected).max() <= 1
    assert psnr_db(tiled, expected) > 70


def test_a_picture_of_many_tiles_there_and_back():
    student = tiny("checkerboard")
    image = waves(700, 1700)
    decoded = decode(student, encode(student, image, 3))
    assert decoded.shape == image.shape
    errors = (decoded.astype(float) - image) ** 2
    rows, columns = errors.mean((1, 2)), errors.mean((0, 2))
    at_seams = np.mean([rows[511:513].mean(), columns[511:513].mean(), columns[1023:1025].mean()])
    assert at_seams < 1.5 * errors.mean()
