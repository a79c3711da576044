"""The entropy model in passes: who codes what, and that no probability depends on a float's last bit."""

from dataclasses import replace

import pytest
import torch
from tiny_codec import ARCH, LMBDAS, tiny

from nas_kd.codec.arch import PASSES
from nas_kd.codec.dual import WIDEST_STEP, DualParameters, Predicted, part
from nas_kd.codec.dual_coding import _own, _put
from nas_kd.codec.student import Student, slice_params

SHAPE = torch.Size((1, 5, 6, 8))


@pytest.mark.parametrize("passes", [2, 4])
def test_every_latent_is_coded_once_and_its_neighbours_in_other_passes(passes: int):
    parts = torch.stack([part(SHAPE, passes, i) for i in range(passes)])
    assert bool((parts.sum(0) == 1).all())
    which = parts.int().argmax(0)
    for axis in range(3):
        length = which.shape[axis] - 1
        assert not (which.narrow(axis, 0, length) == which.narrow(axis, 1, length)).any()


def _student(entropy: str) -> Student:
    """One whose steps and later passes say something."""
    student = tiny(entropy)
    with torch.no_grad():
        for p in student.entropy_parameters.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    student.update(force=True, update_quantiles=True)
    return student


def _latents(student: Student) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    y = 3 * torch.randn(1, student.arch.M, 20, 28)
    return y, torch.randn(1, student.arch.hyper, 5, 7) * 3


@torch.no_grad()
@pytest.mark.parametrize("entropy", PASSES)
def test_a_machine_that_rounds_otherwise_reads_the_same_symbols(entropy: str):
    student = _student(entropy)
    y, z = _latents(student)
    coded = student.coder.encode(y, z, 2)
    other = _student(entropy)
    for network in (other.coder._h_s, *other.coder._passes):
        for p in network.parameters():
            p.mul_(1 + 1e-5 * torch.randn_like(p))
    decoded = other.coder.decode(coded.strings, (5, 7), 2)
    assert decoded.checksum == coded.checksum
    assert not torch.equal(decoded.y_hat, coded.y_hat)
    torch.testing.assert_close(decoded.y_hat, coded.y_hat, atol=1e-2, rtol=1e-3)


@torch.no_grad()
def test_a_larger_step_means_fewer_symbols_and_a_larger_error():
    y, z = _latents(tiny("dual"))
    errors, sizes = [], []
    for log_step in (-1.0, 0.0, 1.0):
        student = tiny("dual")
        for each in student.entropy_parameters.passes:
            each.steps.bias.fill_(log_step)
        student.entropy_parameters.scales.bias.fill_(1 - log_step)
        student.update(force=True, update_quantiles=True)
        coded = student.coder.encode(y, z, 3, quiet=0)
        errors.append(float((coded.y_hat - y).square().mean()))
        sizes.append(sum(map(len, coded.strings)))
    assert errors == sorted(errors)
    assert sizes == sorted(sizes, reverse=True)


def test_steps_stay_within_their_range():
    parameters = DualParameters(replace(ARCH, entropy="dual"))
    features = 1e4 * torch.randn(1, ARCH.hyper, 4, 4)
    for each in parameters.passes:
        torch.nn.init.normal_(each.steps.weight, std=100)
    steps = parameters(0, features, torch.zeros(1, ARCH.M, 4, 4)).steps
    assert 0 < steps.min() < 1 < steps.max()
    assert abs(float(steps.detach().max().log()) - WIDEST_STEP) < 1e-5


@torch.no_grad()
def test_an_untrained_one_predicts_unit_variance_and_steps_of_one():
    student = tiny("dual")
    y, z = _latents(student)
    means, steps = student.predicted(student.h_s(z), y, 1.0, 1.0)
    assert torch.equal(steps, torch.ones_like(y))
    assert not student.entropy_parameters.log_scales(z).any()
    assert means.shape == y.shape


def test_a_narrow_one_is_slices_of_a_wide_one():
    wide = Student(replace(ARCH, M=12, hyper=8, entropy="dual"), LMBDAS)
    narrow = Student(replace(ARCH, entropy="dual"), LMBDAS)
    slices = slice_params(dict(wide.named_parameters()), narrow)
    weight = "entropy_parameters.passes.1.decoded.weight"
    assert torch.equal(slices[weight], wide.get_parameter(weight)[:8, :6])


@pytest.mark.parametrize("passes", [2, 4])
def test_what_a_pass_codes_stands_channel_by_channel_and_row_by_row(passes: int):
    x = torch.arange(5 * 8 * 12).reshape(5, 8, 12)
    put = torch.zeros_like(x)
    for i in range(passes):
        own = _own(x, i, passes)
        assert torch.equal(own.flatten(), x[part(x.shape, passes, i)])
        _put(own, put, i, passes)
    assert torch.equal(put, x)


@torch.no_grad()
@pytest.mark.parametrize("entropy", PASSES)
def test_files_hold_what_the_networks_round(entropy: str):
    student = _student(entropy)
    y, z = _latents(student)
    gain_y, inverse_y, gain_z, inverse_z = student._gains(2)
    z_hat = student._round_z(z * gain_z) * inverse_z
    _, *found = student._in_passes(y, z_hat, gain_y, inverse_y)
    wanted = student._round_in_steps(y, Predicted(*found), gain_y, inverse_y)
    for side in (None, 2):
        y_hat = student.coder.encode(y, z, 2, side, quiet=0).y_hat
        # Where a float's rounding decides a symbol, what follows may differ too.
        assert ((y_hat - wanted).abs() < 1e-3).float().mean() > 0.99
