from dataclasses import replace
from functools import partial

import pytest
import torch

from nas_kd.codec.arch import prim
from nas_kd.codec.checkpoint import ready
from nas_kd.codec.networks import passes
from nas_kd.codec.student import Student


def student(entropy="scale", shortcut=False):
    torch.manual_seed(3)
    built = Student(replace(prim(8, 16), entropy=entropy, shortcut=shortcut))
    with torch.no_grad():  # latents of more than one value
        built.gain_y.log_gain.add_(4.0)
        built.gain_z.log_gain.add_(4.0)
    return ready(built)


PICTURE = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
LEVEL = torch.ones(1)


@pytest.mark.parametrize("entropy", ["scale", "mean-scale", "checkerboard", "dual"])
def test_the_passes_compute_what_is_coded_and_what_is_decoded(entropy):
    codec = student(entropy)
    with torch.inference_mode():
        y_hat, z_hat = codec.rounded(PICTURE, LEVEL)
        x_hat = codec.restored(y_hat, z_hat, LEVEL)
    codec.coder.encode = partial(
        codec.coder.encode, quiet=0
    )  # every symbol, also where 0 is foretold
    codec.coder.decode = partial(codec.coder.decode, quiet=0)
    coded = codec.compress(PICTURE, 1.0)
    decoded = codec.decompress(coded["strings"], coded["shape"], 1.0)
    assert len(torch.unique(y_hat)) > 2
    # The coder's own networks are rounded to binary fractions (exact.py): its means differ a little.
    torch.testing.assert_close(y_hat, coded["y_hat"], atol=0.01, rtol=0)
    torch.testing.assert_close(x_hat, decoded["x_hat"], atol=2e-3, rtol=0)


def test_passes_take_the_frames_in_turn():
    codec, seen = student(), []
    codec.g_a.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean().item()))
    frames = [torch.full((1, 3, 64, 64), value) for value in (0.25, 0.75)]
    works = passes(codec, frames)
    del seen[:]
    for _ in range(4):
        works["both"]()
    assert sorted(seen) == [0.25, 0.25, 0.75, 0.75]
    assert seen[0] != seen[1]
