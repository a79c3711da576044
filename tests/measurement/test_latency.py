import pytest

from nas_kd.measurement.latency import latency_ratio, measure_latency
from nas_kd.measurement.reading import Reading


class Clock:
    """Time that passes only in works."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def work(self, *times_ms):
        """Work that takes these times in turn."""
        state = {"calls": 0}

        def run():
            self.now_s += times_ms[state["calls"] % len(times_ms)] / 1000
            state["calls"] += 1

        return run


def measure(clock, works, runs=20):
    return measure_latency(works, synchronise=lambda: None, runs=runs, clock=clock)


def test_the_median_is_the_time_of_a_run():
    clock = Clock()
    readings = measure(clock, {"a": clock.work(40), "b": clock.work(10)})
    assert readings["a"].value == pytest.approx(40)
    assert readings["a"].uncertainty == pytest.approx(0, abs=1e-9)
    assert (readings["a"].unit, readings["a"].details["runs"]) == ("ms", 60)
    assert latency_ratio(readings["a"], readings["b"]).value == pytest.approx(4)


def test_percentiles_bound_the_middle_of_the_runs():
    clock = Clock()
    # Each round: one run to refill the caches, then ten; three warm-up runs were enough (0.5 s).
    found = measure(clock, {"a": clock.work(*range(200, 300, 10))}, runs=10)["a"]
    assert found.details["p10_ms"] == pytest.approx(200)
    assert found.details["p90_ms"] == pytest.approx(290)
    assert found.details["median_ms"] == pytest.approx(245)


def test_rounds_that_differ_are_rejected_with_their_figures():
    clock = Clock()
    slower = iter([10.0] * 56 + [10.2] * 20 + [10.8] * 1000)

    def work():
        clock.now_s += next(slower) / 1000

    reading = measure(clock, {"a": work})["a"]
    assert (reading.state, reading.value) == ("rejected", None)
    assert "rounds differ by" in reading.reason
    assert len(reading.raw["rounds_ms"]) == 3


def test_a_drift_that_both_share_cancels_in_the_ratio():
    def drifting(scale):
        rounds = [scale * ms for ms in (10, 11, 12)]
        return Reading.rejected("rounds differ", {"rounds_ms": rounds})

    ratio = latency_ratio(drifting(3), drifting(1))
    assert (ratio.state, ratio.value) == ("measured", pytest.approx(3))


def test_without_rounds_there_is_no_ratio():
    nothing = Reading.unavailable("it did not run")
    assert latency_ratio(nothing, nothing) == nothing


def test_works_wait_for_the_device_before_and_after_each_run():
    clock, order = Clock(), []

    def work():
        order.append("work")
        clock.now_s += 0.2

    measure_latency({"a": work}, synchronise=lambda: order.append("wait"), runs=1, clock=clock)
    assert set("".join(order).split("waitworkwait")) == {""}
