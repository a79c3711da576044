import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nas_kd.codec.arch import prim
from nas_kd.codec.student import Student
from nas_kd.measurement.energy_model import MIN_READINGS, Work, fitted, of_readings, work_of
from nas_kd.measurement.reading import Reading


def works(count, seed=0):
    draw = random.Random(seed)
    return [
        Work(draw.randrange(10**9, 10**10), draw.randrange(10**8, 10**9), draw.randrange(50, 250))
        for _ in range(count)
    ]


def energy(work):
    return 2e-8 * work.macs + 3e-7 * work.bytes + 0.4 * work.kernels + 10


def test_energies_that_are_such_a_sum_are_found_out():
    seen = works(30)
    model = fitted(seen, [energy(work) for work in seen])
    assert model.error_percent < 1e-3
    for work in works(5, seed=1):
        assert model.predict_mj(work) == pytest.approx(energy(work), rel=1e-5)
    assert model.to_json()["source"] == "model"


def test_its_error_is_that_on_readings_it_has_not_seen():
    seen, draw = works(40), random.Random(2)
    model = fitted(seen, [energy(work) * draw.gauss(1, 0.05) for work in seen])
    assert 2 < model.error_percent < 7
    nothing = fitted(seen, [draw.uniform(1, 1000) for _ in seen])
    assert nothing.error_percent > 30


def test_few_readings_make_no_model():
    few = works(MIN_READINGS - 1)
    assert fitted(few, [1.0] * len(few)) is None


def test_only_measured_readings_count():
    seen = works(MIN_READINGS + 1)
    readings = [
        Reading.measured(energy(work), 0.1, "mJ", "NVML", {"work": vars(work)}) for work in seen
    ]
    assert of_readings(readings).readings == len(seen)
    assert of_readings([*readings, Reading.unavailable("no meter")]).readings == len(seen)
    assert of_readings([*readings[:-2], Reading.rejected("noise")]) is None
    assert of_readings([]) is None


@pytest.mark.thorough
def test_the_work_of_a_pass_is_what_torch_counts():
    student, x = Student(prim(8, 16), (0.01,)).eval(), torch.rand(1, 3, 512, 768)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student.restored(*student.rounded(x, torch.ones(1)), torch.ones(1))
    parts = {part: work_of(student, part, x) for part in ("encoder", "decoder", "both")}
    assert 2 * parts["both"].macs == counter.get_total_flops()
    for name in ("macs", "bytes", "kernels"):
        sides = getattr(parts["encoder"], name) + getattr(parts["decoder"], name)
        assert getattr(parts["both"], name) == sides
    assert parts["both"].bytes > x.numel() * 4
    assert 20 < parts["both"].kernels < 400
