import json
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_kd.codec.arch import Arch, Transform, prim
from nas_kd.codec.cost import count
from nas_kd.codec.student import Student
from nas_kd.errors import NasKdError, UsageError

SMALL = (1, 3, 64, 64)
SMALL_PER_KODAK = 512 * 768 // 64**2

# Student width N, GMAC at 512x768 and parameters in millions: table 1 of arXiv 2509.10366.
PRIM = (
    (128, 34.2421, 5.08),
    (112, 26.7039, 4.07),
    (96, 20.0965, 3.17),
    (64, 9.6743, 1.69),
    (32, 2.9755, 0.64),
    (16, 1.0223, 0.27),
)

ARCHS = {
    "scale": prim(8, 16),
    "mean-scale": Arch(
        Transform("unshuffle4", (0, 8, 8), block="residual", depths=(0, 1, 0)),
        Transform("unshuffle4", (0, 8, 8), activation="leaky_relu", kernel=3),
        M=16,
        hyper=8,
    ),
    "checkerboard": Arch(
        Transform("unshuffle2", (8, 8, 8), depths=(1, 1, 1), block="depthwise"),
        Transform("conv", (8, 8, 8), attention=(False, False, True)),
        M=16,
        hyper=8,
        entropy="checkerboard",
        shortcut=True,
    ),
    "trunk": Arch(
        Transform("trunk8", (0, 0, 8), depths=(0, 0, 1, 1), block="gated", kernel=5),
        Transform("trunk2", (8, 8, 8), depths=(1, 1, 1, 0)),
        M=16,
        hyper=8,
    ),
}


@pytest.fixture(params=ARCHS)
def student(request: pytest.FixtureRequest) -> Student:
    return Student(ARCHS[request.param], (0.01, 0.02))


@pytest.mark.parametrize(("N", "gmac", "parameters_m"), PRIM)
def test_prims_students_cost_what_its_table_says(N: int, gmac: float, parameters_m: float):
    cost = count(Student(prim(N), (0.025,)), SMALL)
    assert cost.gmac * SMALL_PER_KODAK == pytest.approx(gmac, abs=5.1e-5)
    assert cost.parameters / 1e6 == pytest.approx(parameters_m, abs=5.1e-3)


def test_the_default_shape_is_the_tables_and_macs_are_proportional_to_the_area():
    student = Student(prim(16), (0.025,))
    cost = count(student)
    assert cost.gmac == pytest.approx(1.0223, abs=5.1e-5)
    assert cost.macs == count(student, SMALL).macs * SMALL_PER_KODAK
    assert cost.kmac_per_px == pytest.approx(1.0223e6 / (512 * 768), abs=2e-4)


@pytest.mark.thorough
def test_torchs_own_counter_sees_twice_as_many_operations(student: Student):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student.eval()(torch.zeros(SMALL))
    assert counter.get_total_flops() == 2 * count(student, SMALL).macs


def test_parts_add_up_and_both_sides_run_the_hyper_decoder(student: Student):
    cost = count(student, SMALL)
    shared = sum(cost.parts.get(p, 0) for p in ("h_s", "entropy_parameters", "context"))
    assert sum(cost.parts.values()) == cost.macs
    likelihoods = cost.parts["entropy_bottleneck"]
    assert cost.encoder_macs + cost.decoder_macs == cost.macs + shared - likelihoods
    assert shared > 0


def test_the_transposed_convolution_of_the_shortcut_is_counted_by_its_input():
    cost = count(Student(ARCHS["checkerboard"]), SMALL)
    assert cost.parts["linear_s"] == cost.parts["linear_a"] == 16 * 3 * 64 * 64


def test_modes_of_the_modules_are_restored(student: Student):
    student.train()
    student.g_s.eval()
    before = {name: module.training for name, module in student.named_modules()}
    count(student, SMALL)
    assert {name: module.training for name, module in student.named_modules()} == before


def test_the_cost_survives_json(student: Student):
    cost = count(student, SMALL)
    data = json.loads(json.dumps(cost.to_json()))
    assert data["macs"] == cost.macs
    assert data["gmac"] == cost.gmac
    assert tuple(data["shape"]) == SMALL
    assert re.fullmatch(r"fvcore \d[\w.]*", data["tool"])


class Unlisted(nn.Module):
    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(y, 1)


def test_an_operation_nobody_knows_is_an_error():
    student = Student(ARCHS["scale"])
    student.g_a.head = nn.Sequential(student.g_a.head, Unlisted())
    with pytest.raises(NasKdError, match="cumsum"):
        count(student, SMALL)


class Beside(Student):
    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        y = super().analysis(x)
        return y + nn.functional.conv2d(y, torch.zeros(16, 16, 1, 1))


def test_work_outside_the_parts_is_an_error():
    with pytest.raises(NasKdError, match="the parts have"):
        count(Beside(ARCHS["scale"]), SMALL)


@pytest.mark.parametrize("shape", [(1, 3, 64, 65), (1, 1, 64, 64), (0, 3, 64, 64), (3, 64, 64)])
def test_a_shape_no_student_takes_is_refused(shape: tuple[int, ...]):
    with pytest.raises(UsageError, match="multiples of 64"):
        count(Student(ARCHS["scale"]), shape)  # type: ignore[arg-type]
