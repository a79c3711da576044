"""A sensor that looks part-time: gaps between iterations make readings right."""

from dataclasses import replace

import pytest
from energy_readings import measure

from nas_kd.measurement.calibration import Calibration
from nas_kd.measurement.counter import Sensor
from nas_kd.measurement.energy import (
    FULL,
)
from nas_kd.testing.fakes import FakeMeter, SimulatedDevice


def part_time(iteration_ms):
    """300 W, then 150 W, of which 25 of every 100 ms are seen."""
    return SimulatedDevice(iteration_ms=iteration_ms, update_ms=100, looks_ms=25, late_w=150)


PART_TIME = Calibration(Sensor(0.1, True), 60.0)
ALL_TIME = Calibration(Sensor(0.1, False), 60.0)


def test_without_gaps_an_iteration_as_long_as_a_period_shows_in_the_scatter_of_its_windows():
    device = part_time(100)
    reading = measure(device, known=ALL_TIME, mode=FULL)
    assert reading.state == "rejected"
    assert "the windows vary" in reading.reason


@pytest.mark.parametrize(
    "iteration_ms",
    [
        *(pytest.param(ms, marks=pytest.mark.thorough) for ms in (11, 20, 33, 50, 70.7, 130)),
        *(100, 200),
    ],
)
def test_gaps_make_long_iterations_right(iteration_ms):
    for seed in range(3):
        reading = measure(part_time(iteration_ms), known=PART_TIME, mode=FULL, seed=seed)
        error_mj = abs(reading.value - 225 * iteration_ms)
        assert error_mj <= 0.01 * reading.value
        assert error_mj <= 3 * reading.uncertainty
        assert reading.uncertainty <= 0.01 * reading.value
        assert all(window["gap_s"] > 0 for window in reading.details["windows"])


def test_gaps_cost_nothing_on_a_sensor_that_looks_all_the_time():
    device = SimulatedDevice(iteration_ms=100, update_ms=100, late_w=150)
    reading = measure(device, known=PART_TIME, mode=FULL)
    assert reading.value == pytest.approx(225 * 100, rel=1e-3)


@pytest.mark.parametrize("iteration_ms", [1, 2, 3.3, 5, 7, 9.9])
def test_short_iterations_need_no_gaps_and_say_what_may_be_left(iteration_ms):
    reading = measure(part_time(iteration_ms), known=PART_TIME, mode=FULL)
    assert abs(reading.value - 225 * iteration_ms) <= 2 * reading.uncertainty
    assert [window["gap_s"] for window in reading.details["windows"]] == [0] * 5


def test_an_unknown_sensor_is_taken_for_a_part_time_one():
    device = part_time(50)
    reading = measure(device, FakeMeter(device, part_time=None))
    assert reading.details["windows"][0]["gap_s"] > 0


def test_gaps_without_idle_power_are_rejected():
    device = SimulatedDevice(iteration_ms=50, update_ms=100, idle_w=0)
    reading = measure(device, known=replace(PART_TIME, idle_w=None))
    assert reading.state == "rejected"
    assert "idle power is unknown" in reading.reason
