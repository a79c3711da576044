"""Energy on a real GPU: the laws that any measurement of it must obey."""

import subprocess
import sys
import time

import pytest
import torch

from nas_kd.codec.space import prim
from nas_kd.codec.student import Student
from nas_kd.measurement.codec_energy import energy_of, sensor_of
from nas_kd.measurement.energy import QUICK, measure_energy
from nas_kd.measurement.meters import NvmlMeter, cuda_uuid, find_meter
from nas_kd.measurement.networks import graph_replay, noise_frame, passes
from nas_kd.measurement.reading import Reading

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
INTRUDER = """
import time, torch
a = torch.rand(4096, 4096, device="cuda")
end_s = time.monotonic() + 60
while time.monotonic() < end_s:
    torch.mm(a, a)
    torch.cuda.synchronize()
"""


@pytest.fixture(scope="module")
def meter():
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    found = find_meter("cuda")
    if isinstance(found, Reading):
        pytest.skip(found.reason)
    return found


def products(count, side=2048):
    a = torch.rand(side, side, device="cuda")

    def work():
        for _ in range(count):
            torch.mm(a, a)

    return work


def energy(meter, work):
    reading = energy_of(meter, work, "cuda", QUICK)
    assert reading.state == "measured", reading
    return reading


def test_the_counter_of_a_real_gpu_advances(meter):
    assert NvmlMeter(cuda_uuid("cuda")).probe() is None
    assert 0.001 < sensor_of("cuda").period_s < 1


def test_twice_the_work_costs_twice_the_energy(meter):
    once, twice = (energy(meter, products(count)) for count in (10, 20))
    assert twice.value == pytest.approx(2 * once.value, rel=0.02)


def test_energy_is_linear_in_the_duty_cycle(meter):
    """Net energy of the same work is the same, however long the device rests after it."""
    base = products(20)
    seconds = energy(meter, base).details["iteration_s"]
    nets_mj = []
    for rest in (0.0, 1.0):

        def work(rest=rest):
            base()
            torch.cuda.synchronize()
            time.sleep(rest * seconds)

        nets_mj.append(energy(meter, work).details["net_mj"])
    # A GPU that rests for moments keeps its clocks up and draws more than at true rest.
    assert nets_mj[1] == pytest.approx(nets_mj[0], rel=0.15)


def test_order_does_not_matter(meter):
    a, b = products(10), products(13)
    first_a, first_b, second_b, second_a = (energy(meter, w).value for w in (a, b, b, a))
    assert second_a == pytest.approx(first_a, rel=0.02)
    assert second_b == pytest.approx(first_b, rel=0.02)
    assert (first_b + second_b) / (first_a + second_a) == pytest.approx(1.3, rel=0.03)


def test_an_intruder_is_rejected(meter):
    intruder = []
    work, begun_s = products(10), time.monotonic()

    def work_until_someone_comes():
        if not intruder and time.monotonic() - begun_s > 20:
            intruder.append(subprocess.Popen([sys.executable, "-c", INTRUDER]))
        work()

    try:
        reading = measure_energy(
            meter,
            work_until_someone_comes,
            synchronise=torch.cuda.synchronize,
            mode=QUICK,
            sensor=sensor_of("cuda"),
        )
    finally:
        for process in intruder:
            process.kill()
            process.wait()
    assert reading.state == "rejected", reading


def test_the_counter_agrees_with_integrated_instant_power(meter):
    windows = energy(meter, products(10)).details["windows"]
    if windows[0]["instant_w"] is None:
        pytest.skip("no instant power on this GPU")
    for window in windows:
        assert window["power_w"] == pytest.approx(window["instant_w"], rel=0.05)


def test_a_graph_costs_no_more_than_its_launches(meter):
    student = Student(prim(16)).eval().to("cuda")
    eager = passes(student, [noise_frame("cuda")])["both"]
    assert energy(meter, graph_replay(eager)).value <= 1.05 * energy(meter, eager).value
