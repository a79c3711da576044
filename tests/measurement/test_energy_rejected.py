"""Readings that are rejected, with the reason, and taken once more."""

from dataclasses import replace

import pytest
from energy_readings import CALM, measure

from nas_kd.errors import MeterError
from nas_kd.measurement.energy import (
    FULL,
    QUICK,
    measured_twice_at_most,
)
from nas_kd.measurement.reading import Reading
from nas_kd.testing.fakes import FakeMeter, SimulatedDevice


def rejected(device, meter, *words, **settings):
    reading = measure(device, meter, **{"mode": FULL, **settings})
    assert (reading.state, reading.value) == ("rejected", None)
    assert all(word in reading.reason for word in words), reading.reason
    return reading


def test_a_window_too_short_is_rejected():
    device = SimulatedDevice(update_ms=100, iteration_ms=10)
    short = replace(QUICK, window_s=0.2, window_periods=0)
    rejected(device, FakeMeter(device), "fewer than", mode=short)


# Quiet, idle and warm-up take 16 s, or 18 with a look round, and each window 10: the second runs at 30 s.
def test_a_stalled_counter_is_rejected():
    device = SimulatedDevice()
    reading = rejected(device, FakeMeter(device, stalls_s=30.0), "stalled")
    assert len(reading.raw["windows"]) == 1


def test_a_counter_that_never_moves_is_rejected():
    device = SimulatedDevice()
    rejected(device, FakeMeter(device, stalls_s=0.0), "stalled")


def test_a_reset_counter_is_rejected():
    device = SimulatedDevice()
    rejected(device, FakeMeter(device, resets_s=30.0), "decreased")


@pytest.mark.parametrize(("max_cv", "state"), [(0.03, "rejected"), (0.06, "measured")])
def test_windows_that_disagree_are_rejected_with_their_figures(max_cv, state):
    device = SimulatedDevice(iteration_ms=10)

    def iteration():
        device.load_w = 330 if 36 < device.clock() < 47 else 300  # in the third of five windows
        device.iteration()

    mode = replace(FULL, max_cv=max_cv)
    reading = measure(device, iteration=iteration, mode=mode)
    figures = reading.raw or reading.details
    assert reading.state == state
    assert figures["cv"] == pytest.approx(0.044, abs=0.005)
    assert max(w["mj"] for w in figures["windows"]) == pytest.approx(3300)
    assert len(figures["windows"]) == 5


@pytest.mark.parametrize(("power_share", "state"), [(0.95, "measured"), (0.85, "rejected")])
def test_counter_and_instant_power_must_agree(power_share, state):
    device = SimulatedDevice(queued=2)
    reading = measure(device, FakeMeter(device, power_share=power_share), mode=FULL)
    assert reading.state == state
    if state == "rejected":
        assert "the counter says 300.0 W and instant power 255.0 W" in reading.reason
    else:
        assert reading.details["windows"][0]["instant_w"] == pytest.approx(285)


def changing(**changes):
    """Conditions that change for 0.6 s in the second window."""
    return lambda now_s: CALM._replace(**changes) if 30.0 < now_s < 30.6 else CALM


def test_a_slowdown_is_rejected():
    device = SimulatedDevice()
    meter = FakeMeter(device, conditions=changing(slowdown=("thermal slowdown by software",)))
    reading = rejected(device, meter, "slowed down", "thermal")
    assert len(reading.raw["windows"]) == 2


def test_a_power_cap_is_kept_and_flagged():
    device = SimulatedDevice()
    meter = FakeMeter(device, conditions=changing(power_capped=True))
    capped = measure(device, meter, mode=FULL)
    assert (capped.state, capped.details["power_capped"]) == ("measured", True)
    calm = measure(device, FakeMeter(device, conditions=lambda now_s: CALM))
    assert calm.details["power_capped"] is False
    assert calm.details["clock_mhz"] == 1980
    assert calm.details["temperature_c"] == 50


def test_a_second_process_is_rejected():
    device = SimulatedDevice()
    rejected(device, FakeMeter(device, conditions=changing(processes=(7, 8))), "shared", "1 before")


def test_another_process_in_the_place_of_one_is_rejected():
    device = SimulatedDevice()
    rejected(device, FakeMeter(device, conditions=changing(processes=(8,))), "shared")


def test_a_process_that_was_there_from_the_start_shows_while_this_one_rests():
    device = SimulatedDevice()
    busy = FakeMeter(device, conditions=lambda now_s: CALM._replace(busy_percent=40))
    rejected(device, busy, "shared", "40 % busy")


def test_a_meter_lost_in_a_window_is_unavailable():
    device = SimulatedDevice()
    reading = measure(device, FakeMeter(device, lost_s=30.0), mode=FULL)
    assert reading == Reading.unavailable("the GPU is lost")


def test_a_broken_meter_is_not_read():
    device = SimulatedDevice()
    meter = FakeMeter(device, broken="MIG is on")
    assert measure(device, meter) == Reading.unavailable("MIG is on")
    assert meter.reads == 0


def test_one_window_has_no_scatter():
    with pytest.raises(MeterError, match="windows is 1"):
        replace(QUICK, windows=1)


def in_turn(*readings):
    waiting = iter(readings)
    return lambda: next(waiting)


GOOD = Reading.measured(5, 1, "mJ", "nvml")


def test_a_rejected_reading_is_taken_once_more():
    reading = measured_twice_at_most(in_turn(Reading.rejected("shared"), GOOD))
    assert (reading.value, reading.details["first_attempt"]) == (5, "shared")


def test_twice_rejected_is_rejected_for_the_second_reason():
    twice = in_turn(Reading.rejected("shared"), Reading.rejected("stalled"), GOOD)
    assert measured_twice_at_most(twice).reason == "stalled"


@pytest.mark.parametrize("reading", [GOOD, Reading.unavailable("no meter")])
def test_what_is_not_rejected_is_taken_once(reading):
    assert measured_twice_at_most(in_turn(reading)) == reading
