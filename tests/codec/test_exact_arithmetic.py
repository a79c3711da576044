import math
from dataclasses import replace

import pytest
import torch
from compressai.models.google import get_scale_table
from tiny_codec import ARCH, LMBDAS, tiny
from torch import nn

from nas_kd.codec.compressai_light import EntropyBottleneck, GaussianConditional
from nas_kd.codec.entropy_coding import anchors, make_tables
from nas_kd.codec.exact_arithmetic import (
    FRACTION,
    ExactHyper,
    ExactTables,
    exact_context,
    exact_gain,
    exact_layer,
    scale_indexes,
    scale_logs,
    scale_table,
    snap,
)
from nas_kd.codec.hyperprior import CheckerboardContext
from nas_kd.codec.student import Gain, Student


def permuted(layer: nn.Module, order: torch.Tensor) -> nn.Module:
    """The same layer with its input channels in another order."""
    axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
    layer.weight.data = layer.weight.data.index_select(axis, order)
    return layer


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 300.0])
def test_the_order_of_summation_does_not_matter(kind: type, magnitude: float):
    torch.manual_seed(0)
    layer = kind(96, 8, 5, stride=2, padding=2)
    layer.weight.data *= magnitude
    x = snap(torch.randn(1, 96, 9, 9).double() * 2000)
    order = torch.randperm(96)
    first = exact_layer(layer)(x)
    assert torch.equal(first, exact_layer(permuted(layer, order))(x[:, order]))
    inexact = layer.double()(x[:, order])
    assert not torch.equal(inexact, permuted(layer, torch.argsort(order))(x))


@torch.no_grad()
def test_the_context_of_anchors_alone_is_the_masked_convolution():
    torch.manual_seed(0)
    layer = CheckerboardContext(9, 5)
    x = snap(torch.randn(1, 9, 7, 10).double() * 50)
    for phase in (0, 1):
        seen = anchors(x, phase)
        whole = exact_layer(layer)(x * seen)
        ours = exact_context(layer)(x, seen)
        assert torch.equal(ours, whole)


@pytest.mark.parametrize("logarithmic", [True, False])
def test_scales_on_a_bound_and_beside_it_find_the_table_that_counting_finds(logarithmic: bool):
    bounds = torch.tensor(scale_logs() if logarithmic else scale_table(), dtype=torch.float64)
    away = torch.tensor([-1e9, 0.0, 1e9, math.inf], dtype=torch.float64)
    just = [torch.nextafter(bounds, torch.full_like(bounds, side)) for side in (-1e9, 1e9)]
    middles = (bounds[1:] + bounds[:-1]) / 2
    scales = torch.cat([away if logarithmic else away.clamp(min=0), bounds, *just, middles])
    counted = torch.bucketize(scales, bounds[:-1])
    assert torch.equal(scale_indexes(scales, logarithmic).long(), counted)


def beside_bounds(n: int) -> torch.Tensor:
    """Logarithms on the bounds of tables, the next numbers above and below, and others, [n]."""
    bounds = torch.tensor(scale_logs(), dtype=torch.float64)
    just = [torch.nextafter(bounds, torch.full_like(bounds, side)) for side in (-1e9, 1e9)]
    some = torch.cat([bounds, *just])
    return torch.cat([some, torch.randn(n - len(some), dtype=torch.float64)])


@pytest.mark.parametrize("magnitude", [0.0, 1e-3, 1.0, 30.0, 1e4])
@torch.no_grad()
def test_tables_found_in_float32_are_those_of_exact_arithmetic(magnitude: float):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(16, 240, 4, stride=4)
    nn.init.zeros_(layer.bias)
    z = snap(torch.randn(16, 5, 9).double() * magnitude)
    log_gain = beside_bounds(240)
    scales = exact_layer(layer)(z[None])[0].clamp(-8, 8)
    expected = scale_indexes(scales + log_gain[:, None, None], logarithmic=True)
    assert torch.equal(ExactTables(layer)(z, log_gain).int(), expected)
    assert magnitude == 1e4 or len(expected.unique()) > 60  # at 1e4 the clamp leaves few


def test_a_convolution_is_the_one_in_whole_numbers():
    torch.manual_seed(0)
    layer = nn.Conv2d(7, 3, 3, padding=1)
    x = snap(torch.randn(1, 7, 5, 5).double())
    unit = 2.0**20
    weight = torch.round(layer.weight.detach().double() * unit).long()
    bias = torch.round(layer.bias.detach().double() * FRACTION).long() * int(unit)
    layer.weight.data = (weight / unit).float()
    whole = nn.functional.conv2d((x * FRACTION).long(), weight, bias, padding=1)
    expected = torch.round(whole.double() / unit) / FRACTION
    assert torch.equal(exact_layer(layer)(x), expected)


@pytest.mark.parametrize("entropy", ["scale", "mean-scale", "checkerboard"])
@torch.no_grad()
def test_the_exact_networks_are_the_students_own_but_for_rounding(entropy: str):
    torch.manual_seed(0)
    student = Student(replace(ARCH, entropy=entropy), LMBDAS).eval()
    exact = ExactHyper(student.h_s, student.entropy_parameters, student.context)
    z_hat = torch.randn(1, 4, 2, 3) * 3
    features = exact.features(snap(z_hat.double()))
    scales, means = exact.parameters(features)
    theirs = student.entropy_parameters(student.h_s(z_hat))
    ours = scales if entropy == "scale" else torch.exp(scales)
    assert torch.allclose(ours, theirs[0].double(), atol=1e-3)
    assert (means is None) == (theirs[1] is None)
    if means is not None:
        assert torch.allclose(means, theirs[1].double(), atol=1e-3)


@pytest.mark.parametrize("level", [1, 1.3, 2, 2.999, 3])
def test_exact_gains_are_the_gain_units(level: float):
    gain = Gain(3, 5)
    nn.init.normal_(gain.log_gain)
    log, value = exact_gain(gain.log_gain, level)
    assert torch.allclose(value[..., None], gain(level)[0].double(), rtol=1e-5)
    assert torch.allclose(log.exp(), value, rtol=1e-12)


def test_the_table_of_scales_is_compressais():
    assert scale_table() == pytest.approx(get_scale_table().tolist(), rel=1e-6)


def test_scales_find_the_tables_that_compressai_gives_them():
    conditional = GaussianConditional(None)
    make_tables(EntropyBottleneck(2), conditional, update_quantiles=False)
    scales = torch.exp(torch.linspace(math.log(0.05), math.log(400), 997))
    theirs = conditional.build_indexes(scales).tolist()
    assert scale_indexes(scales.double(), logarithmic=False).tolist() == theirs
    assert scale_indexes(scales.double().log(), logarithmic=True).tolist() == theirs


@torch.no_grad()
def test_tables_are_compressais_to_the_last_bits():
    student = tiny("mean-scale")
    ours = [m._quantized_cdf.clone() for m in _models(student)]
    lengths = [m._cdf_length.clone() for m in _models(student)]
    student.entropy_bottleneck.update(force=True)
    student.gaussian_conditional.update_scale_table(get_scale_table(), force=True)
    for cdf, length, model in zip(ours, lengths, _models(student), strict=True):
        assert torch.equal(length, model._cdf_length)
        assert int((cdf - model._quantized_cdf).abs().max()) <= 2


def _models(student: Student) -> tuple:
    return student.entropy_bottleneck, student.gaussian_conditional
