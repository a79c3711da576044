"""Energy per iteration by a cumulative counter: measured with its uncertainty, or a reason.

::

    context alive - quiet 5 s - idle 5 s - warm-up - K windows between edges - checks - mJ +- mJ

A sensor that looks only part of each update period (A100, H100: 25 of 100 ms) may look at the
same place of every iteration. So longer iterations are started at places spread evenly over the
period, and the idle energy of the gaps is taken out again.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from nas_kd.errors import MeterError
from nas_kd.measurement.counter import (
    FIND_PERIOD_POLL_S,
    MAX_POLL_SHARE,
    REAL_TIME,
    WINDOW_POLL_S,
    Sensor,
    Slope,
    Timing,
    Trace,
    UnusableError,
    overlap_s,
    record,
    slope,
    update_period_s,
)
from nas_kd.measurement.meters import Conditions, Meter
from nas_kd.measurement.reading import Reading

MIN_WARMUP_ITERATIONS = 50
MAX_WARMUP_S = 30.0
CLOCK_MOVES = 0.01
CLOCK_SETTLED_READS = 4  # 2 s, one read each 0.5 s
LONG_ITERATION = 0.1  # of an update period
GOLDEN = (math.sqrt(5) - 1) / 2
"""Steps of this length around a circle are the most even; against gaps drawn at random they took
the scatter of a 10 s window from 3.0 to 0.5 % (simulated: 100 ms iterations, 25 of 100 ms seen)."""
LOOKS_FOR = 0.25  # of the period, sensors of A100 and H100 (Yang et al., arXiv 2312.02741)
MAX_DISAGREEMENT = 0.10  # between the counter and instant power
MIN_POWERS = 10
BUSY_WHILE_IDLE_PERCENT = 5
GAIN_ERROR = 0.05  # of the sensor; the same for all students on one card


@dataclass(frozen=True)
class Mode:
    """How long to measure, and what scatter to believe.

    Windows last ``window_s`` or ``window_periods`` update periods, whichever is longer.
    """

    name: str
    windows: int
    window_s: float
    window_periods: int
    max_cv: float
    quiet_s: float = 5.0
    idle_s: float = 5.0
    warmup_s: float = 5.0

    def __post_init__(self) -> None:
        if self.windows < 2:
            raise MeterError(f"windows is {self.windows}: the scatter needs 2 or more; ask for 3")


FULL = Mode("full", 5, 10.0, 100, 0.02)
QUICK = Mode("quick", 3, 5.0, 0, 0.03)


@dataclass(frozen=True)
class _Bench:
    """A meter and the work whose energy is wanted."""

    meter: Meter
    iteration: Callable[[], None]
    synchronise: Callable[[], None]
    timing: Timing

    def record(self, poll_s: float, work: Callable[[Trace], None]) -> Trace:
        return record(self.meter, self.timing, self.synchronise, poll_s, work)

    def rest(self, seconds: float) -> Callable[[Trace], None]:
        """Work that is none."""
        return lambda trace: self.timing.sleep(seconds)

    def warm_up(self, seconds: float) -> Callable[[Trace], None]:
        """At least so long and 50 iterations, until the clock has settled."""

        def work(trace: Trace) -> None:
            start_s = self.timing.now()
            while (passed_s := self.timing.now() - start_s) < MAX_WARMUP_S or (
                trace.steps < MIN_WARMUP_ITERATIONS
            ):
                enough = passed_s >= seconds and trace.steps >= MIN_WARMUP_ITERATIONS
                if enough and _settled(trace.conditions):
                    break
                self.iteration()
                trace.steps += 1

        return work

    def steady(self, seconds: float) -> Callable[[Trace], None]:
        """Iterations without a pause, synchronised only at the ends."""

        def work(trace: Trace) -> None:
            start_s = self.timing.now()
            while self.timing.now() - start_s < seconds or trace.steps == 0:
                self.iteration()
                trace.steps += 1

        return work

    def spread(
        self, seconds: float, period_s: float, iteration_s: float, draw: random.Random
    ) -> Callable[[Trace], None]:
        """About a period of work at a time, each begun at another place of the period."""
        chunk = max(1, round(period_s / iteration_s))
        place, lead_s = draw.random(), period_s * (1 + (1 + GOLDEN) * draw.random())

        def work(trace: Trace) -> None:
            start_s = self.timing.now()
            # Limits at a random place of the pattern: its first and last work would be favoured.
            trace.between_s = (start_s + lead_s, start_s + lead_s + seconds)
            while self.timing.now() < trace.between_s[1] or trace.steps == 0:
                at_s = (place + GOLDEN * len(trace.work_s)) % 1 * period_s
                self.timing.sleep((at_s - (self.timing.now() - start_s)) % period_s)
                begin_s = self.timing.now()
                for _ in range(chunk):
                    self.iteration()
                self.synchronise()
                trace.work_s.append((begin_s, self.timing.now()))
                trace.steps += chunk

        return work


def measure_energy(
    meter: Meter,
    iteration: Callable[[], None],
    *,
    synchronise: Callable[[], None],
    mode: Mode = FULL,
    sensor: Sensor | None = None,
    timing: Timing = REAL_TIME,
    seed: int = 0,
) -> Reading:
    """Gross energy of one iteration in mJ: everything the device draws while it iterates.

    The net energy, idle power taken out, is in the details. The uncertainty is of one standard
    deviation; the sensor's gain error, the same for all that runs on one card, is not in it.

    Args:
        meter: of the device that iterates.
        iteration: queues or does one iteration; ``synchronise`` waits for all that is queued.
        synchronise: returns when the device is idle (nothing to do on a CPU).
        mode: how long.
        sensor: what ``find_sensor`` found; without it the update period comes from the warm-up.
        timing: clock.
        seed: of the places at which windows begin.
    """
    if (reason := meter.probe()) is not None:
        return Reading.unavailable(reason)
    bench = _Bench(meter, iteration, synchronise, timing)
    raw: dict[str, Any] = {"mode": mode.name, "windows": []}
    try:
        return _measure(bench, mode, sensor, random.Random(seed), raw)
    except MeterError as error:
        return Reading.unavailable(str(error))
    except UnusableError as error:
        return Reading.rejected(str(error), raw)


def _measure(
    bench: _Bench, mode: Mode, sensor: Sensor | None, draw: random.Random, raw: dict[str, Any]
) -> Reading:
    started_s = bench.timing.now()
    bench.iteration()  # the device's context is alive while its idle power is taken
    bench.synchronise()
    bench.timing.sleep(mode.quiet_s)
    resting = bench.record(FIND_PERIOD_POLL_S, bench.rest(mode.idle_s))
    warmup = bench.record(FIND_PERIOD_POLL_S, bench.warm_up(mode.warmup_s))
    if sensor is None:
        sensor = Sensor(update_period_s([resting, warmup]), bench.meter.part_time)
    raw |= {"sensor": asdict(sensor), "clock_settled": _settled(warmup.conditions)}
    raw |= _idle(resting, sensor.period_s)
    seen = resting.conditions + warmup.conditions
    for trace in _windows(bench, mode, sensor, warmup, draw):
        seen += trace.conditions
        _require_alone(resting.conditions, seen)
        raw["windows"].append(_window(trace, sensor, raw["idle_w"]))
        _require_full_speed(trace.conditions)
    raw |= _summary(seen[len(resting.conditions) :])
    raw["seconds"] = bench.timing.now() - started_s
    return _reading(bench.meter, raw, mode.max_cv)


def _windows(
    bench: _Bench, mode: Mode, sensor: Sensor, warmup: Trace, draw: random.Random
) -> Iterable[Trace]:
    poll_s = max(WINDOW_POLL_S, warmup.reading_s / len(warmup.times_s) / MAX_POLL_SHARE)
    seconds = max(mode.window_s, mode.window_periods * sensor.period_s)
    iteration_s = warmup.duration_s / warmup.steps
    for _ in range(mode.windows):
        if _looks_away(sensor) and iteration_s > LONG_ITERATION * sensor.period_s:
            work = bench.spread(seconds, sensor.period_s, iteration_s, draw)
        else:
            work = bench.steady(seconds)
        yield bench.record(poll_s, work)


def _looks_away(sensor: Sensor) -> bool:
    return sensor.part_time is not False


def _window(trace: Trace, sensor: Sensor, idle_w: float | None) -> dict[str, Any]:
    found = slope(trace, sensor.period_s)
    power_mw, busy_s = found.power_mw, trace.duration_s
    if trace.work_s:
        power_mw, busy_s = _without_gaps(trace, found, idle_w), _length_s(trace.work_s)
    iteration_s = busy_s / trace.steps
    energy_mj = power_mw * iteration_s
    alias = _alias_of_places if trace.work_s else _alias
    return {
        "mj": energy_mj,
        "edge_mj": energy_mj * found.relative_uncertainty,
        "alias_mj": energy_mj * alias(found, sensor, iteration_s, idle_w),
        "power_w": power_mw / 1000,
        "instant_w": _instant_w(trace, found),
        "iteration_s": iteration_s,
        "iterations": trace.steps,
        "edges": found.edges,
        "gap_s": trace.duration_s - busy_s,
    }


def _without_gaps(trace: Trace, found: Slope, idle_w: float | None) -> float:
    """Mean power in mW of the work between the first and the last edge."""
    if idle_w is None:
        raise UnusableError("idle power is unknown, and the gaps of a part-time sensor need it")
    span_s = found.last_s - found.first_s
    work_s = overlap_s(trace.work_s, found.first_s, found.last_s)
    return (found.power_mw * span_s - 1000 * idle_w * (span_s - work_s)) / work_s


def _length_s(stretches: list[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in stretches)


def _alias(found: Slope, sensor: Sensor, iteration_s: float, idle_w: float | None) -> float:
    """Relative error of a part-time sensor that sees the same place of many iterations.

    A look of a quarter of the period sees up to half an iteration too much of its high part,
    whose power is at most as far over the mean as the mean over idle. Looks that drift through
    n iterations average that to 1 / (pi n); near a fraction with denominator q, to 1 / q.
    Windows begun elsewhere show it as scatter too, but not those of an exact resonance.
    """
    if not _looks_away(sensor):
        return 0.0
    updates = max(1, round((found.last_s - found.first_s) / sensor.period_s))
    ratio = (found.last_s - found.first_s) / updates / iteration_s
    amplitude = min(1.0, iteration_s / (2 * LOOKS_FOR * sensor.period_s))
    swing = 1 - 1000 * (idle_w or 0.0) / found.power_mw
    drift = (updates * abs(q * ratio - round(q * ratio)) for q in range(1, 6))
    left = max(min(1.0, 1 / (math.pi * max(n, 1e-9))) / q for q, n in enumerate(drift, start=1))
    return max(0.0, amplitude * swing * left / math.sqrt(3))


def _alias_of_places(
    found: Slope, sensor: Sensor, iteration_s: float, idle_w: float | None
) -> float:
    """Relative error of places spread evenly: about one look at work instead of a gap, or back.

    In simulation windows scatter by no more: 1.1 to 1.5 % of 5 s, 0.4 to 0.6 % of 10 s.
    """
    swing = 1 - 1000 * (idle_w or 0.0) / found.power_mw
    return max(0.0, swing) * sensor.period_s / (found.last_s - found.first_s)


def _instant_w(trace: Trace, found: Slope) -> float | None:
    """Mean instant power; it must agree with the counter."""
    if len(trace.powers_w) < MIN_POWERS:
        return None
    instant_w, counter_w = statistics.fmean(trace.powers_w), found.power_mw / 1000
    if abs(instant_w - counter_w) > MAX_DISAGREEMENT * counter_w:
        raise UnusableError(
            f"the counter says {counter_w:.1f} W and instant power {instant_w:.1f} W: "
            f"more than {MAX_DISAGREEMENT:.0%} apart"
        )
    return instant_w


def _idle(trace: Trace, period_s: float) -> dict[str, Any]:
    """Idle power, or null and why; the gross energy stands without it."""
    try:
        return {"idle_w": slope(trace, period_s).power_mw / 1000}
    except UnusableError as error:
        return {"idle_w": None, "idle_reason": str(error)}


# ---------------------------------------------------------------- conditions


def _settled(conditions: list[Conditions]) -> bool:
    """Whether the clock moved under 1 % lately; a device that tells none counts as settled."""
    clocks = [c.clock_mhz for c in conditions if c.clock_mhz is not None]
    if len(clocks) < len(conditions) or not clocks:
        return True
    latest = clocks[-CLOCK_SETTLED_READS:]
    return len(latest) == CLOCK_SETTLED_READS and max(latest) <= (1 + CLOCK_MOVES) * min(latest)


def _require_alone(resting: list[Conditions], seen: list[Conditions]) -> None:
    """The same processes all the time, and nothing busy while this one rests."""
    for before, now in pairwise(seen):
        if before.processes != now.processes:
            counts = [len(c.processes or ()) for c in (before, now)]
            raise UnusableError(
                f"shared: the processes on the device changed while it was measured "
                f"({counts[0]} before, {counts[1]} after); measure when nothing else starts there"
            )
    busy = [c.busy_percent for c in resting if c.busy_percent is not None]
    if busy and statistics.median(busy) > BUSY_WHILE_IDLE_PERCENT:
        raise UnusableError(
            f"shared: the device is {statistics.median(busy):.0f} % busy while this process rests"
        )


def _require_full_speed(conditions: list[Conditions]) -> None:
    reasons = sorted({reason for c in conditions for reason in c.slowdown})
    if reasons:
        raise UnusableError(f"the device slowed down in a window: {', '.join(reasons)}")


def _summary(conditions: list[Conditions]) -> dict[str, Any]:
    """What the device said of itself under load; a power cap is kept and flagged."""
    clocks = [c.clock_mhz for c in conditions if c.clock_mhz is not None]
    heat = [c.temperature_c for c in conditions if c.temperature_c is not None]
    return {
        "clock_mhz": statistics.fmean(clocks) if clocks else None,
        "temperature_c": statistics.fmean(heat) if heat else None,
        "power_capped": any(c.power_capped for c in conditions),
        "processes": len(conditions[-1].processes or ()) if conditions else None,
    }


# ---------------------------------------------------------------- the reading


def _reading(meter: Meter, raw: dict[str, Any], max_cv: float) -> Reading:
    """The windows' mean with its uncertainty; the details keep what it was made of."""
    windows = raw["windows"]
    energies_mj = [window["mj"] for window in windows]
    mean_mj = statistics.fmean(energies_mj)
    scatter_mj = statistics.stdev(energies_mj)
    raw["cv"] = scatter_mj / mean_mj
    if raw["cv"] > max_cv:
        raise UnusableError(f"the windows vary by {raw['cv']:.1%}, more than {max_cv:.1%}")
    root = math.sqrt(len(windows))
    budget_mj = {
        "edge_mj": math.hypot(*(window["edge_mj"] for window in windows)) / len(windows),
        "repeat_mj": scatter_mj / root,
        "alias_mj": _alias_of_all(windows),
    }
    time_s = statistics.fmean(window["iteration_s"] for window in windows)
    idle_w = raw["idle_w"]
    details = raw | budget_mj
    details |= {
        "net_mj": None if idle_w is None else mean_mj - 1000 * idle_w * time_s,
        "gain_error_mj": GAIN_ERROR * mean_mj,
        "power_w": mean_mj / 1000 / time_s,
        "iteration_s": time_s,
        "identity": meter.identity()._asdict(),
    }
    return Reading.measured(mean_mj, math.hypot(*budget_mj.values()), "mJ", meter.name, details)


def _alias_of_all(windows: list[dict[str, Any]]) -> float:
    """Windows with places are independent of each other; those without share their resonance."""
    aliases_mj = [window["alias_mj"] for window in windows]
    if any(window["gap_s"] for window in windows):
        return math.hypot(*aliases_mj) / len(windows)
    return statistics.fmean(aliases_mj)


def differ(first: Reading, second: Reading) -> bool | None:
    """Whether two energies of one card differ: by more than two standard uncertainties.

    None where one of them is missing.
    """
    if first.value is None or second.value is None:
        return None
    doubts_mj = [u for u in (first.uncertainty, second.uncertainty) if u is not None]
    return abs(first.value - second.value) > 2 * math.hypot(*doubts_mj)


def measured_twice_at_most(measure: Callable[[], Reading]) -> Reading:
    """A rejected reading is taken once more; what comes then is final, and names the first."""
    reading = measure()
    if reading.state != "rejected":
        return reading
    again = measure()
    if again.state != "measured":
        return again
    return replace(again, details=again.details | {"first_attempt": reading.reason})
