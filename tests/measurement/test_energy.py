import math
import statistics
from dataclasses import replace

import pytest

from nas_kd.errors import MeterError
from nas_kd.measurement.counter import Sensor
from nas_kd.measurement.energy import FULL, QUICK, differ, measure_energy, measured_twice_at_most
from nas_kd.measurement.meters import Conditions
from nas_kd.measurement.reading import Reading, require_real
from nas_kd.testing.fakes import FakeMeter, SimulatedDevice

CALM = Conditions(clock_mhz=1980, temperature_c=50, processes=(7,), busy_percent=0)


def measure(device, meter=None, *, iteration=None, mode=QUICK, **settings):
    return measure_energy(
        meter or FakeMeter(device),
        iteration or device.iteration,
        synchronise=device.synchronise,
        timing=device.timing,
        mode=mode,
        **settings,
    )


# ---------------------------------------------------------------- the figure


@pytest.mark.parametrize(("mode", "iterations"), [(QUICK, 500), (FULL, 1000)])
def test_energy_is_power_times_time(mode, iterations):
    device = SimulatedDevice(load_w=300, idle_w=60, iteration_ms=10, update_ms=20)
    reading = measure(device, mode=mode)
    assert (reading.state, reading.unit, reading.source) == ("measured", "mJ", "fake")
    assert reading.value == pytest.approx(300 * 10, rel=1e-9)
    assert reading.details["net_mj"] == pytest.approx((300 - 60) * 10, rel=1e-9)
    assert reading.details["idle_w"] == pytest.approx(60, rel=1e-9)
    assert reading.details["power_w"] == pytest.approx(300, rel=1e-9)
    assert reading.details["sensor"]["period_s"] == pytest.approx(0.020, rel=1e-9)
    assert len(reading.details["windows"]) == mode.windows
    assert {w["iterations"] for w in reading.details["windows"]} <= {iterations, iterations + 1}


@pytest.mark.parametrize("queued", [0, 50])
@pytest.mark.parametrize("update_ms", [3, 20, 97])
@pytest.mark.parametrize("iteration_ms", [1, 7, 101])
def test_the_uncertainty_covers_the_error(iteration_ms, update_ms, queued):
    device = SimulatedDevice(iteration_ms=iteration_ms, update_ms=update_ms, queued=queued)
    reading = measure(device)
    error_mj = abs(reading.value - 300 * iteration_ms)
    assert error_mj <= 3 * reading.uncertainty
    assert error_mj <= 0.005 * reading.value
    assert reading.uncertainty <= 0.005 * reading.value


def test_edges_beat_reading_at_the_ends_of_a_window():
    device = SimulatedDevice(iteration_ms=10, update_ms=97)
    meter = FakeMeter(device)
    errors = []
    for _ in range(40):
        device.sleep(0.013)
        before_mj, start_s = meter.read_mj(), device.clock()
        for _ in range(100):
            device.iteration()
        errors.append((meter.read_mj() - before_mj) / (300 * (device.clock() - start_s)) / 1000 - 1)
    assert max(map(abs, errors)) > 0.05
    assert measure(device).value == pytest.approx(3000, rel=0.002)


def test_twice_the_work_costs_twice_the_energy():
    once, twice = (measure(SimulatedDevice(iteration_ms=ms)) for ms in (20, 40))
    assert twice.value == pytest.approx(2 * once.value, rel=1e-9)


def test_an_iteration_longer_than_many_updates_is_resolved():
    device = SimulatedDevice(iteration_ms=700, update_ms=1)
    assert measure(device).value == pytest.approx(300 * 700, rel=1e-9)


@pytest.mark.parametrize("update_ms", [20, 97])
def test_an_edge_is_known_to_a_poll(update_ms):
    reading = measure(SimulatedDevice(iteration_ms=10, update_ms=update_ms))
    doubts_mj = reading.value * 0.005 * math.sqrt(2 / 12) / 5.0
    assert reading.details["edge_mj"] == pytest.approx(doubts_mj / math.sqrt(3), rel=0.05)


def test_the_uncertainty_joins_edges_scatter_and_alias():
    device = SimulatedDevice(iteration_ms=7, update_ms=97)
    reading = measure(device, FakeMeter(device, part_time=None))
    budget_mj = [reading.details[f"{name}_mj"] for name in ("edge", "repeat", "alias")]
    windows_mj = [window["mj"] for window in reading.details["windows"]]
    assert budget_mj[1] == pytest.approx(statistics.stdev(windows_mj) / math.sqrt(3))
    assert min(budget_mj) > 0
    assert reading.uncertainty == pytest.approx(math.hypot(*budget_mj))
    assert reading.details["gain_error_mj"] == pytest.approx(0.05 * reading.value)


def test_full_windows_last_a_hundred_update_periods():
    device = SimulatedDevice(iteration_ms=10, update_ms=200)
    assert measure(device, mode=FULL).details["windows"][0]["iterations"] == 2000


def test_reading_a_slow_counter_takes_one_percent_of_the_time():
    device = SimulatedDevice(iteration_ms=10)
    reading = measure(device, FakeMeter(device, read_us=1000))
    times_s = [window["iteration_s"] for window in reading.details["windows"]]
    assert max(times_s) <= 0.0102
    assert reading.value == pytest.approx(3000, rel=0.005)


def test_a_sleeping_counter_leaves_net_energy_unknown():
    device = SimulatedDevice(idle_w=0)
    reading = measure(device)
    assert reading.value == pytest.approx(3000, rel=1e-9)
    assert reading.details["net_mj"] is None
    assert "stalled" in reading.details["idle_reason"]


def test_a_fake_measurement_is_no_result():
    with pytest.raises(ValueError, match="fake"):
        require_real(measure(SimulatedDevice()))


def test_two_energies_differ_by_more_than_two_standard_uncertainties():
    def of(value, uncertainty):
        return Reading.measured(value, uncertainty, "mJ", "nvml")

    assert differ(of(100, 3), of(111, 4))
    assert not differ(of(100, 3), of(109, 4))
    assert differ(of(100, 3), Reading.unavailable("no meter")) is None


# ---------------------------------------------------------------- warm-up


@pytest.mark.parametrize(("iteration_ms", "count"), [(200, 50), (10, 500)])
def test_warm_up_takes_five_seconds_and_fifty_iterations(iteration_ms, count):
    device = SimulatedDevice(iteration_ms=iteration_ms)
    calls = 0

    def iteration():
        nonlocal calls
        calls += 1
        device.iteration()

    reading = measure(device, iteration=iteration)
    assert calls == 1 + count + sum(w["iterations"] for w in reading.details["windows"])


@pytest.mark.parametrize(
    ("settles_s", "seconds", "settled"), [(0, 30, True), (19, 36, True), (99, 55, False)]
)
def test_warm_up_waits_for_the_clock_but_not_for_ever(settles_s, seconds, settled):
    def conditions(now_s):
        return CALM._replace(clock_mhz=1980 if now_s >= settles_s else 1400 + 40 * int(now_s))

    device = SimulatedDevice()
    reading = measure(device, FakeMeter(device, conditions=conditions))
    assert reading.details["seconds"] == pytest.approx(seconds, abs=1)
    assert reading.details["clock_settled"] is settled


# ---------------------------------------------------------------- a sensor that looks part-time


def part_time(iteration_ms):
    """300 W, then 150 W, of which 25 of every 100 ms are seen."""
    return SimulatedDevice(iteration_ms=iteration_ms, update_ms=100, looks_ms=25, late_w=150)


PART_TIME = Sensor(0.1, True)
ALL_TIME = Sensor(0.1, False)


def test_without_gaps_an_iteration_as_long_as_a_period_is_wrong_by_a_third():
    device = part_time(100)
    reading = measure(device, sensor=ALL_TIME, mode=FULL)
    assert abs(reading.value / (225 * 100) - 1) > 0.2
    assert reading.details["cv"] < 1e-3  # nothing in the figures shows it


@pytest.mark.parametrize("iteration_ms", [11, 20, 33, 50, 70.7, 100, 130, 200])
def test_gaps_make_long_iterations_right(iteration_ms):
    for seed in range(3):
        reading = measure(part_time(iteration_ms), sensor=PART_TIME, mode=FULL, seed=seed)
        error_mj = abs(reading.value - 225 * iteration_ms)
        assert error_mj <= 0.01 * reading.value
        assert error_mj <= 3 * reading.uncertainty
        assert reading.uncertainty <= 0.01 * reading.value
        assert all(window["gap_s"] > 0 for window in reading.details["windows"])


def test_gaps_cost_nothing_on_a_sensor_that_looks_all_the_time():
    device = SimulatedDevice(iteration_ms=100, update_ms=100, late_w=150)
    reading = measure(device, sensor=PART_TIME, mode=FULL)
    assert reading.value == pytest.approx(225 * 100, rel=1e-3)


@pytest.mark.parametrize("iteration_ms", [1, 2, 3.3, 5, 7, 9.9])
def test_short_iterations_need_no_gaps_and_say_what_may_be_left(iteration_ms):
    reading = measure(part_time(iteration_ms), sensor=PART_TIME, mode=FULL)
    assert abs(reading.value - 225 * iteration_ms) <= 2 * reading.uncertainty
    assert [window["gap_s"] for window in reading.details["windows"]] == [0] * 5


def test_an_unknown_sensor_is_taken_for_a_part_time_one():
    device = part_time(50)
    reading = measure(device, FakeMeter(device, part_time=None))
    assert reading.details["windows"][0]["gap_s"] > 0


def test_gaps_without_idle_power_are_rejected():
    device = SimulatedDevice(iteration_ms=50, update_ms=100, idle_w=0)
    reading = measure(device, sensor=PART_TIME)
    assert reading.state == "rejected"
    assert "idle power is unknown" in reading.reason


# ---------------------------------------------------------------- rejections


def rejected(device, meter, *words, **settings):
    reading = measure(device, meter, **settings)
    assert (reading.state, reading.value) == ("rejected", None)
    assert all(word in reading.reason for word in words), reading.reason
    return reading


def test_a_window_too_short_is_rejected():
    device = SimulatedDevice(update_ms=100)
    rejected(device, FakeMeter(device), "fewer than 20", mode=replace(QUICK, window_s=1.0))


# Quiet, idle, warm-up and each window take 5 s: the second window runs at 22 s.
def test_a_stalled_counter_is_rejected():
    device = SimulatedDevice()
    reading = rejected(device, FakeMeter(device, stalls_s=22.0), "stalled")
    assert len(reading.raw["windows"]) == 1


def test_a_counter_that_never_moves_is_rejected():
    device = SimulatedDevice()
    rejected(device, FakeMeter(device, stalls_s=0.0), "stalled")


def test_a_reset_counter_is_rejected():
    device = SimulatedDevice()
    rejected(device, FakeMeter(device, resets_s=22.0), "decreased")


@pytest.mark.parametrize(("max_cv", "state"), [(0.03, "rejected"), (0.06, "measured")])
def test_windows_that_disagree_are_rejected_with_their_figures(max_cv, state):
    device = SimulatedDevice(iteration_ms=10)

    def iteration():
        device.load_w = 330 if device.clock() > 25 else 300  # in the third window
        device.iteration()

    reading = measure(device, iteration=iteration, mode=replace(QUICK, max_cv=max_cv))
    figures = reading.raw or reading.details
    assert reading.state == state
    assert figures["cv"] == pytest.approx(10 * 3**0.5 / 310, rel=1e-3)
    assert [round(w["mj"]) for w in figures["windows"]] == [3000, 3000, 3300]


@pytest.mark.parametrize(("power_share", "state"), [(0.95, "measured"), (0.85, "rejected")])
def test_counter_and_instant_power_must_agree(power_share, state):
    device = SimulatedDevice(queued=2)
    reading = measure(device, FakeMeter(device, power_share=power_share))
    assert reading.state == state
    if state == "rejected":
        assert "the counter says 300.0 W and instant power 255.0 W" in reading.reason
    else:
        assert reading.details["windows"][0]["instant_w"] == pytest.approx(285)


def changing(**changes):
    """Conditions that change for 0.6 s in the second window."""
    return lambda now_s: CALM._replace(**changes) if 22.0 < now_s < 22.6 else CALM


def test_a_slowdown_is_rejected():
    device = SimulatedDevice()
    meter = FakeMeter(device, conditions=changing(slowdown=("thermal slowdown by software",)))
    reading = rejected(device, meter, "slowed down", "thermal")
    assert len(reading.raw["windows"]) == 2


def test_a_power_cap_is_kept_and_flagged():
    device = SimulatedDevice()
    capped = measure(device, FakeMeter(device, conditions=changing(power_capped=True)))
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
    reading = measure(device, FakeMeter(device, lost_s=22.0))
    assert reading == Reading.unavailable("the GPU is lost")


def test_a_broken_meter_is_not_read():
    device = SimulatedDevice()
    meter = FakeMeter(device, broken="MIG is on")
    assert measure(device, meter) == Reading.unavailable("MIG is on")
    assert meter.reads == 0


def test_one_window_has_no_scatter():
    with pytest.raises(MeterError, match="windows is 1"):
        replace(QUICK, windows=1)


# ---------------------------------------------------------------- once more


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
