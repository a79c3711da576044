import threading
import time

import pytest

from nas_kd.errors import MeterError
from nas_kd.measurement.counter import REAL_TIME, UnusableError, find_sensor, overlap_s, record
from nas_kd.testing.fakes import FakeMeter, SimulatedDevice


def find(device, **settings):
    meter = FakeMeter(device, **{"part_time": None, **settings})
    work = {"synchronise": device.synchronise, "timing": device.timing}
    return find_sensor(meter, device.iteration, **work).sensor


@pytest.mark.parametrize("update_ms", [10, 20, 97, 100])
def test_the_update_period_is_measured(update_ms):
    sensor = find(SimulatedDevice(iteration_ms=1, update_ms=update_ms))
    assert sensor.period_s == pytest.approx(update_ms / 1000, abs=0.002)


@pytest.mark.parametrize(
    ("looks_ms", "is_part_time"), [(25, True), (50, True), (90, False), (100, False)]
)
def test_a_sensor_that_looks_part_time_is_found_out(looks_ms, is_part_time):
    sensor = find(SimulatedDevice(iteration_ms=1, update_ms=100, looks_ms=looks_ms))
    assert sensor.part_time is is_part_time


def test_what_a_meter_knows_of_its_sensor_is_not_tried():
    sensor = find(SimulatedDevice(iteration_ms=1), part_time=False)
    assert (sensor.part_time, sensor.swing) == (False, None)


def test_a_stalled_counter_has_no_period():
    with pytest.raises(UnusableError, match="stalled"):
        find(SimulatedDevice(iteration_ms=1), stalls_s=0.0)


def test_overlap_is_what_two_spans_share():
    assert overlap_s([(0, 2), (3, 5), (7, 9)], 1, 4) == 2


class Clockwork:
    """A meter that is read in a real thread, and lost at the given read."""

    name = "fake"

    def __init__(self, lost_at=None):
        self.lost_at, self.threads = lost_at, []

    def read_mj(self):
        self.threads.append(threading.current_thread())
        if len(self.threads) == self.lost_at:
            raise MeterError("the GPU is lost")
        return float(len(self.threads))

    def power_w(self):
        return None

    def conditions(self):
        return ()


def test_the_counter_is_read_beside_the_work():
    meter = Clockwork()
    trace = record(meter, REAL_TIME, lambda: None, 0.001, lambda trace: time.sleep(0.1))
    assert {thread is threading.main_thread() for thread in meter.threads[1:-1]} == {False}
    assert trace.times_s == sorted(trace.times_s)
    assert len(trace.values_mj) == len(meter.threads)


def test_a_meter_lost_beside_the_work_is_an_error_after_it():
    with pytest.raises(MeterError, match="lost"):
        record(Clockwork(2), REAL_TIME, lambda: None, 0.001, lambda trace: time.sleep(0.05))
