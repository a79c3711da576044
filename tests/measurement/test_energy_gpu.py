"""Energy on a real GPU: the laws that any measurement of it must obey."""

import subprocess
import sys
import time

import pytest
import torch

from nas_kd.codec.arch import prim
from nas_kd.codec.networks import noise_frame, passes
from nas_kd.codec.student import Student
from nas_kd.measurement.codec_energy import Bench, calibration_of, pass_of
from nas_kd.measurement.energy import QUICK, Mode
from nas_kd.measurement.meters import NvmlMeter, cuda_uuid, find_meter
from nas_kd.measurement.reading import Reading

# All of it is to fit four minutes of a GPU: one calibration (15 to 21 s), some fifteen readings of 2 to 8 s, and the
# intruder, which takes 10 to 20 s to come.
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]
LONG = Mode("long", 8, 5.0, 0, 0.03, target=0.0, max_s=40.0)
SECONDS = Mode("seconds", 4, 2.0, 0, 0.03, target=0.0, max_s=8.0)
INTRUDER = """
import time, torch
a = torch.rand(4096, 4096, device="cuda")
end_s = time.monotonic() + 60
while time.monotonic() < end_s:
    torch.mm(a, a)
    torch.cuda.synchronize()
"""


@pytest.fixture(scope="module")
def bench():
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    found = find_meter("cuda")
    if isinstance(found, Reading):
        pytest.skip(found.reason)
    return Bench(found, "cuda")


def products(count, side=2048):
    a = torch.rand(side, side, device="cuda")

    def work():
        for _ in range(count):
            torch.mm(a, a)

    return work


def energy(bench, work, mode=QUICK):
    reading = bench.read(work, mode)
    assert reading.state == "measured", reading
    return reading


def test_the_counter_of_a_real_gpu_advances(bench):
    assert NvmlMeter(cuda_uuid("cuda")).probe() is None
    known = calibration_of(bench.meter, "cuda")
    assert 0.001 < known.sensor.period_s < 1
    assert known.idle_w is None or known.idle_w > 5


def test_a_reading_of_a_known_device_takes_less_than_ten_seconds(bench):
    energy(bench, products(10))
    reading = energy(bench, products(10))
    assert reading.details["seconds"] < 10
    assert reading.uncertainty <= 0.02 * reading.value


def test_twice_the_work_costs_twice_the_energy(bench):
    once, twice = (energy(bench, products(count)) for count in (10, 20))
    assert twice.value == pytest.approx(2 * once.value, rel=0.02)


def test_energy_is_linear_in_the_duty_cycle(bench):
    """Net energy of the same work is the same, however long the device rests after it."""
    base = products(20)
    seconds = energy(bench, base).details["iteration_s"]
    nets_mj = []
    for rest in (0.0, 1.0):

        def work(rest=rest):
            base()
            torch.cuda.synchronize()
            time.sleep(rest * seconds)

        nets_mj.append(energy(bench, work).details["net_mj"])
    # A GPU that rests for moments keeps its clocks up and draws more than at true rest.
    assert nets_mj[1] == pytest.approx(nets_mj[0], rel=0.15)


def test_order_does_not_matter(bench):
    a, b = products(10), products(13)
    first_a, first_b, second_b, second_a = (energy(bench, w).value for w in (a, b, b, a))
    assert second_a == pytest.approx(first_a, rel=0.02)
    assert second_b == pytest.approx(first_b, rel=0.02)
    assert (first_b + second_b) / (first_a + second_a) == pytest.approx(1.3, rel=0.03)


def test_the_counter_agrees_with_integrated_instant_power(bench):
    reading = energy(bench, products(10), SECONDS)
    if reading.details["instant_w"] is None:
        pytest.skip("no instant power on this GPU")
    assert reading.details["power_w"] == pytest.approx(reading.details["instant_w"], rel=0.05)


def test_a_graph_costs_no_more_than_its_launches(bench):
    student, frame = Student(prim(16)).eval().to("cuda"), noise_frame("cuda")
    eager = energy(bench, passes(student, [frame])["both"])
    graph = energy(bench, pass_of(student, [frame], "both", "cuda"))
    assert graph.value <= 1.05 * eager.value


def test_encoder_and_decoder_cost_what_both_do(bench):
    student, frame = Student(prim(64)).eval().to("cuda"), noise_frame("cuda")
    mj = {
        part: energy(bench, pass_of(student, [frame], part, "cuda")).value
        for part in ("encoder", "decoder", "both")
    }
    assert mj["encoder"] + mj["decoder"] == pytest.approx(mj["both"], rel=0.05)


def test_an_intruder_is_rejected(bench):
    intruder = subprocess.Popen([sys.executable, "-c", INTRUDER])
    try:
        reading = bench.session().read(products(10), LONG)
    finally:
        intruder.kill()
        intruder.wait()
    assert reading.state == "rejected", reading
