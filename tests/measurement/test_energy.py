import math
import statistics
from dataclasses import replace

import pytest
from energy_readings import CALM, measure

from nas_kd.measurement.calibration import Calibration, calibrate
from nas_kd.measurement.counter import Sensor
from nas_kd.measurement.energy import (
    FULL,
    QUICK,
    Session,
    differ,
)
from nas_kd.measurement.reading import Reading, require_real
from nas_kd.testing.fakes import FakeMeter, LivelyDevice, SimulatedDevice

# ---------------------------------------------------------------- the figure


@pytest.mark.parametrize(("mode", "iterations"), [(QUICK, 25), (FULL, 1000)])
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
    assert reading.uncertainty <= 0.01 * reading.value


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
    assert measure(device, mode=FULL).value == pytest.approx(3000, rel=0.002)


def test_twice_the_work_costs_twice_the_energy():
    once, twice = (measure(SimulatedDevice(iteration_ms=ms)) for ms in (20, 40))
    assert twice.value == pytest.approx(2 * once.value, rel=1e-9)


def test_an_iteration_longer_than_many_updates_is_resolved():
    device = SimulatedDevice(iteration_ms=700, update_ms=1)
    assert measure(device).value == pytest.approx(300 * 700, rel=1e-9)


@pytest.mark.parametrize("update_ms", [20, 97])
def test_an_edge_is_known_to_a_poll(update_ms):
    reading = measure(SimulatedDevice(iteration_ms=10, update_ms=update_ms), mode=FULL)
    doubts_mj = reading.value * 0.002 * math.sqrt(2 / 12) / 10.0
    assert reading.details["edge_mj"] == pytest.approx(doubts_mj / math.sqrt(5), rel=0.05)


def test_the_uncertainty_joins_edges_drift_and_the_worse_of_scatter_and_alias():
    device = LivelyDevice(iteration_ms=7, update_ms=20, tremble=0.02)
    reading = measure(device, FakeMeter(device, part_time=None))
    edge, repeat, alias, drift = (
        reading.details[f"{name}_mj"] for name in ("edge", "repeat", "alias", "drift")
    )
    windows_mj = [window["mj"] for window in reading.details["windows"]]
    n = len(windows_mj)
    few = math.sqrt((n - 1) / (n - 3))
    assert repeat == pytest.approx(statistics.stdev(windows_mj) / math.sqrt(n) * few)
    assert min(edge, repeat, alias) > 0
    assert reading.uncertainty == pytest.approx(math.hypot(edge, max(repeat, alias), drift))
    assert reading.details["gain_error_mj"] == pytest.approx(0.05 * reading.value)


def test_full_windows_last_a_hundred_update_periods():
    device = SimulatedDevice(iteration_ms=10, update_ms=200)
    assert measure(device, mode=FULL).details["windows"][0]["iterations"] in (2000, 2001)


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


KNOWN = Calibration(Sensor(0.02, False), 60.0)


@pytest.mark.parametrize(("iteration_ms", "seconds"), [(200, 1.0), (4, 0.3), (1500, 6.0)])
def test_warm_up_takes_five_iterations_or_five_seconds(iteration_ms, seconds):
    device, begun = SimulatedDevice(iteration_ms=iteration_ms), []

    def iteration():
        begun.append(device.clock())
        device.iteration()

    reading = measure(device, iteration=iteration, known=KNOWN)
    windowed = sum(w["iterations"] for w in reading.details["windows"])
    warmup_s = begun[-windowed] - begun[1]
    assert seconds <= warmup_s <= seconds + max(0.3, 2.5 * iteration_ms / 1000)


@pytest.mark.parametrize(
    ("settles_s", "seconds", "settled"), [(0, 3.7, True), (8, 9.5, True), (99, 34, False)]
)
def test_warm_up_waits_for_the_clock_but_not_for_ever(settles_s, seconds, settled):
    def conditions(now_s):
        return CALM._replace(
            temperature_c=None,
            clock_mhz=1980 if now_s >= settles_s else (1400, 1700)[int(5 * now_s) % 2],
        )

    device = SimulatedDevice()
    reading = measure(device, FakeMeter(device, conditions=conditions), known=KNOWN)
    figures = reading.details or reading.raw
    assert figures["settled"] is settled
    if settled:
        assert figures["seconds"] == pytest.approx(seconds, abs=1)


def test_warm_up_waits_for_the_power():
    device = LivelyDevice(iteration_ms=4, drift=0.3, tau_s=1.0)
    reading = measure(device, known=KNOWN)
    assert reading.value == pytest.approx(1200, rel=0.01)
    cold = LivelyDevice(iteration_ms=4, drift=0.3, tau_s=1.0)
    assert (
        reading.details["seconds"] > measure(cold, known=KNOWN, mode=QUICK).details["seconds"] / 2
    )
    assert reading.details["seconds"] > 3


def test_a_chip_that_still_gets_hotter_is_warmed_up_once():
    device = LivelyDevice(iteration_ms=4, drift=0.08, tau_s=3.0)
    meter = FakeMeter(device, conditions=device.conditions)
    session = Session(meter, synchronise=device.synchronise, timing=device.timing, known=KNOWN)
    first, second = (session.read(device.iteration, QUICK) for _ in range(2))
    assert first.details["seconds"] > 6
    assert second.details["seconds"] < 3
    assert first.value == pytest.approx(1200, rel=0.01)
    assert second.value == pytest.approx(1200, rel=0.005)


# ---------------------------------------------------------------- windows that grow


def trembling(share, **device):
    return LivelyDevice(iteration_ms=4, tremble=share, **device)


def test_windows_grow_until_they_agree():
    counts = []
    for share in (0.0, 0.1):
        reading = measure(trembling(share), known=KNOWN)
        counts.append(len(reading.details["windows"]))
        assert reading.uncertainty <= 0.01 * reading.value
        assert reading.details["cv"] <= 0.02
    assert counts[0] == QUICK.windows < counts[1]


def test_a_reading_that_does_not_agree_in_time_says_what_it_has():
    reading = measure(trembling(0.3), known=KNOWN)
    assert reading.details["seconds"] < QUICK.max_s + 3
    assert 0.01 * reading.value < reading.uncertainty


def test_what_was_measured_at_another_clock_is_dropped():
    device = LivelyDevice(iteration_ms=4, clocks=((2.4, 0.8),))
    meter = FakeMeter(
        device, conditions=lambda now_s: device.conditions(now_s)._replace(temperature_c=None)
    )
    reading = measure(device, meter, known=KNOWN)
    assert reading.details["dropped"] > 0
    assert reading.value == pytest.approx(300 * 4 * 0.8, rel=0.01)


def test_a_drift_that_is_seen_is_in_the_uncertainty():
    device = LivelyDevice(iteration_ms=4, load_w=3000, idle_w=600, drift=0.2, tau_s=30)
    reading = measure(device, known=replace(KNOWN, idle_w=600.0))
    assert reading.details["drift_mj"] > 0.01 * reading.value


# ---------------------------------------------------------------- several in one session


def test_a_device_that_is_known_is_measured_in_under_six_seconds_and_then_in_one():
    device = LivelyDevice(iteration_ms=4, tau_s=20, update_ms=20)
    device.heat = 1.0
    meter, known = FakeMeter(device, conditions=device.conditions), KNOWN
    session = Session(meter, synchronise=device.synchronise, timing=device.timing, known=known)
    seconds = [session.read(device.iteration, QUICK).details["seconds"] for _ in range(3)]
    assert seconds[0] < 6
    assert max(seconds[1:]) < 1


def test_windows_of_a_chip_that_turns_out_to_get_hotter_do_not_count():
    device = LivelyDevice(iteration_ms=4)

    def conditions(now_s):  # it stands while it is warmed up, and rises in the windows
        return CALM._replace(temperature_c=50 + 2 * (now_s > 4.8))

    reading = measure(device, FakeMeter(device, conditions=conditions), known=KNOWN)
    assert reading.details["dropped"] > 0
    assert len(reading.details["windows"]) == QUICK.windows


def test_a_look_round_holds_while_no_other_process_comes():
    device = LivelyDevice(iteration_ms=4, tau_s=20, neighbours=((30.0, 99.0, 80),))
    device.heat = 1.0
    meter = FakeMeter(device, conditions=device.conditions)

    def once(seen):
        session = Session(
            meter,
            synchronise=device.synchronise,
            timing=device.timing,
            known=KNOWN,
            seen=seen,
        )
        return session.read(device.iteration, QUICK), session.seen

    first, seen = once(None)
    second, seen = once(seen)
    assert first.details["seconds"] > 5
    assert second.details["seconds"] < 2
    cold, _ = once(seen._replace(temperature_c=80))
    assert cold.details["seconds"] > 4
    device.sleep(30 - device.clock())
    with_neighbour, seen = once(seen)
    assert (with_neighbour.state, seen) == ("rejected", None)
    assert "60 % busy" in with_neighbour.reason


def test_rest_after_load_is_told_from_rest():
    device = LivelyDevice(iteration_ms=1, update_ms=20, tail_w=110)
    known = calibrate(
        FakeMeter(device), device.iteration, synchronise=device.synchronise, timing=device.timing
    )
    assert known.idle_w == pytest.approx(60)
    assert known.gap_w == pytest.approx(110)


def test_gaps_cost_what_rest_after_load_does():
    device = LivelyDevice(iteration_ms=100, update_ms=100, looks_ms=25, late_w=150, tail_w=110)
    known = Calibration(Sensor(0.1, True), 60.0, pause_w=110.0)
    reading = measure(device, known=known)
    assert reading.value == pytest.approx(22500, rel=0.02)
    wrong = measure(device, known=replace(known, pause_w=None))
    assert wrong.value is None or wrong.value > 1.05 * 22500


def test_a_neighbour_that_comes_ends_the_reading_and_the_next_looks_round_again():
    device = LivelyDevice(iteration_ms=4, tau_s=0.1, neighbours=((4.5, 5.5, 80),))
    meter = FakeMeter(device, conditions=device.conditions)
    session = Session(meter, synchronise=device.synchronise, timing=device.timing, known=KNOWN)
    first, second = (session.read(device.iteration, QUICK) for _ in range(2))
    assert first.state == "rejected"
    assert "shared" in first.reason
    assert second.value == pytest.approx(1200, rel=0.01)
