"""What a cumulative counter shows over time: its edges, its slope, and how its sensor samples.

A counter only shows a new value every update period. So energy is taken between the moments at
which it changes, its edges, and never at the ends of a window, where up to one period of energy
is still hidden.
"""

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from nas_kd.measurement.meter import Conditions, Meter

MIN_EDGES = 5  # of one window; all windows of a reading together have MIN_EDGES_IN_ALL
MIN_EDGES_IN_ALL = 20
STALL_PERIODS = 10  # a counter that stands still for so many update periods has stalled
FIND_PERIOD_POLL_S = 0.002
WINDOW_POLL_S = 0.002
MAX_POLL_SHARE = 0.01  # of the time: reading the counter must not slow the launching thread
POWER_EVERY_S = 0.05
CONDITIONS_EVERY_S = 0.5
FIND_PERIOD_S = 3.0
MAX_PART_TIME_S = 20.0
PART_TIME_PERIODS = 40
PART_TIME_DETUNING = 17 / 16
"""Length of an on-off cycle in update periods: its phase passes every place 2.5 times in 40."""
PART_TIME_SWING = 0.5
"""A sensor that looks all the time sees half a load in every period, give or take 3 %; one that
looks for a quarter of the period sees all or nothing."""


class UnusableError(Exception):
    """What the counter showed cannot be turned into a figure."""


@contextmanager
def _in_a_thread(period_s: float, call: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(period_s):
            call()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Timing:
    """A monotonic clock in seconds, how to sleep by it, and how to call something beside the work."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    every: Callable[[float, Callable[[], None]], AbstractContextManager[None]] = _in_a_thread


REAL_TIME = Timing()


@dataclass
class Trace:
    """What the meter showed while something ran ``steps`` times.

    work_s: begin and end of each stretch of work, where there were gaps between them.
    between_s: edges outside of it do not count.
    """

    times_s: list[float] = field(default_factory=list)
    values_mj: list[float] = field(default_factory=list)
    powers_w: list[float] = field(default_factory=list)
    conditions: list[Conditions] = field(default_factory=list)
    work_s: list[tuple[float, float]] = field(default_factory=list)
    between_s: tuple[float, float] = (-math.inf, math.inf)
    reading_s: float = 0.0
    steps: int = 0
    duration_s: float = 0.0


class _Recorder:
    """Polls a meter into a trace; what goes wrong in its thread is raised at the end."""

    def __init__(self, meter: Meter, now: Callable[[], float], conditions_every_s: float):
        self.meter, self.now, self.trace = meter, now, Trace()
        self.conditions_every_s = conditions_every_s
        # Not at the ends, where the device rests for a moment.
        self.power_due_s, self.conditions_due_s = now() + POWER_EVERY_S, -math.inf
        self.error: Exception | None = None

    def poll(self) -> None:
        if self.error is None:
            try:
                self._read()
            except Exception as error:
                self.error = error

    def _read(self) -> None:
        trace, before_s = self.trace, self.now()
        value_mj = self.meter.read_mj()
        after_s = self.now()
        trace.values_mj.append(value_mj)
        trace.times_s.append((before_s + after_s) / 2)
        trace.reading_s += after_s - before_s
        if after_s >= self.power_due_s:
            self.power_due_s = after_s + POWER_EVERY_S
            if (power_w := self.meter.power_w()) is not None:
                trace.powers_w.append(power_w)
        if after_s >= self.conditions_due_s:
            self.conditions_due_s = after_s + self.conditions_every_s
            trace.conditions.append(self.meter.conditions())


def record(
    meter: Meter,
    timing: Timing,
    synchronise: Callable[[], None],
    poll_s: float,
    work: Callable[[Trace], None],
    conditions_every_s: float = CONDITIONS_EVERY_S,
) -> Trace:
    """Do some work, which counts its own steps, while the counter is read every ``poll_s``.

    Raises:
        MeterError: the counter could not be read.
    """
    synchronise()
    recorder = _Recorder(meter, timing.now, conditions_every_s)
    start_s = timing.now()
    recorder.poll()
    with timing.every(poll_s, recorder.poll):
        work(recorder.trace)
        synchronise()
    recorder.trace.duration_s = timing.now() - start_s
    recorder.power_due_s = math.inf
    recorder.poll()
    if recorder.error is not None:
        raise recorder.error
    return recorder.trace


# ---------------------------------------------------------------- edges


class Edge(NamedTuple):
    """The counter showed ``mj`` from some moment in the ``width_s`` before ``seen_s``."""

    seen_s: float
    width_s: float
    mj: float

    @property
    def time_s(self) -> float:
        """The middle of what is possible."""
        return self.seen_s - self.width_s / 2


class Slope(NamedTuple):
    """Mean power between two edges; ``partly`` is the part of an iteration by which they are off whole ones."""

    power_mw: float
    relative_uncertainty: float
    edges: int
    first_s: float
    last_s: float
    partly: float = 0.0


def slope(
    trace: Trace, period_s: float, iteration_s: float = 0.0, fewest: int = MIN_EDGES
) -> Slope:
    """Mean power between the first edge and one of the last, as whole a number of iterations later as there is one.

    Raises:
        UnusableError: the counter decreased or stalled, or changed fewer times than that.
    """
    begin_s, end_s = trace.between_s
    edges = [e for e in find_edges(trace, period_s) if begin_s <= e.time_s <= end_s]
    if len(edges) < fewest:
        raise UnusableError(
            f"the counter changed {len(edges)} times in a window of {trace.duration_s:.3g} s, "
            f"fewer than {fewest}: use a longer window"
        )
    first, (last, partly) = edges[0], _after_whole_iterations(edges, iteration_s)
    span_s = last.time_s - first.time_s
    # An edge lies anywhere in its width with equal chance: standard deviation width / sqrt(12).
    doubt_s = math.hypot(first.width_s, last.width_s) / math.sqrt(12)
    power_mw = (last.mj - first.mj) / span_s
    return Slope(power_mw, doubt_s / span_s, len(edges), first.time_s, last.time_s, partly)


def _after_whole_iterations(edges: list[Edge], iteration_s: float) -> tuple[Edge, float]:
    """An iteration whose power is uneven counts in part where a window ends inside of it."""
    last = edges[-1]
    if iteration_s <= 0 or last.time_s - edges[0].time_s < 2 * iteration_s:
        return last, 0.5 if iteration_s > 0 else 0.0

    def partly(edge: Edge) -> float:
        passed = (edge.time_s - edges[0].time_s) / iteration_s
        return abs(passed - round(passed))

    late = [e for e in edges if e.time_s > last.time_s - 1.5 * iteration_s] or [last]
    best = min(reversed(late), key=partly)
    return best, partly(best)


def recent_powers_mw(trace: Trace, period_s: float, chunk_s: float, chunks: int) -> list[float]:
    """Mean power in each of the latest chunks of a trace that still grows; none where it is too short."""
    n = len(trace.times_s)  # of the two lists the one that grows last
    since = next(
        (i for i in range(n) if trace.times_s[i] > trace.times_s[n - 1] - chunk_s * (chunks + 1)), 0
    )
    edges = find_edges(Trace(trace.times_s[since:n], trace.values_mj[since:n]), period_s)
    if not edges or edges[-1].time_s - edges[0].time_s < chunks * chunk_s:
        return []
    ends_s = [edges[-1].time_s - k * chunk_s for k in range(chunks, -1, -1)]
    near = [min(edges, key=lambda e, at=at: abs(e.time_s - at)) for at in ends_s]  # type: ignore[misc]
    if any(b.time_s <= a.time_s for a, b in pairwise(near)):
        return []
    return [(b.mj - a.mj) / (b.time_s - a.time_s) for a, b in pairwise(near)]


def find_edges(trace: Trace, period_s: float) -> list[Edge]:
    """Every change of the counter; it must not decrease, nor stand still."""
    edges = []
    changed_s = trace.times_s[0]
    reads = zip(trace.times_s, trace.values_mj, strict=True)
    for (before_s, before_mj), (now_s, now_mj) in pairwise(reads):
        if now_mj < before_mj:
            raise UnusableError(f"the counter decreased from {before_mj:.0f} to {now_mj:.0f} mJ")
        if now_mj > before_mj:
            edges.append(Edge(now_s, min(now_s - before_s, period_s), now_mj))
            changed_s = now_s
        elif now_s - changed_s > STALL_PERIODS * period_s:
            raise UnusableError(
                f"the counter stalled: no change for {now_s - changed_s:.3g} s, "
                f"with an update period of {period_s:.3g} s"
            )
    return edges


def update_period_s(traces: list[Trace]) -> float:
    """The smallest median gap between changes: polls see a change late, never early."""
    medians_s = []
    for trace in traces:
        seen_s = [edge.seen_s for edge in find_edges(trace, math.inf)]
        if gaps_s := [later - earlier for earlier, later in pairwise(seen_s)]:
            medians_s.append(statistics.median(gaps_s))
    if not medians_s:
        raise UnusableError("the counter stalled: it hardly changed before the windows began")
    return min(medians_s)


def overlap_s(stretches: list[tuple[float, float]], first_s: float, last_s: float) -> float:
    """How much of the stretches lies between two moments."""
    return sum(max(0.0, min(end, last_s) - max(begin, first_s)) for begin, end in stretches)


# ---------------------------------------------------------------- the sensor


@dataclass(frozen=True)
class Sensor:
    """How a counter behaves: found by a load, once per device, driver and hour.

    part_time: whether it looks only part of each period; None: not known, and assumed.
    swing: what the on-off load showed, 0 (it looks all the time) to 1; None where not tried.
    """

    period_s: float
    part_time: bool | None
    swing: float | None = None


class Look(NamedTuple):
    """What ``find_sensor`` saw: the sensor, and the power of rest right after load, where it could be told."""

    sensor: Sensor
    pause_w: float | None


def find_sensor(
    meter: Meter,
    load: Callable[[], None],
    *,
    synchronise: Callable[[], None],
    timing: Timing = REAL_TIME,
) -> Look:
    """The update period under 3 s of load, and whether the sensor looks part-time.

    Args:
        meter: a working one.
        load: a piece of work far shorter than an update period.
        synchronise: waits for all that was queued.
        timing: clock.

    Raises:
        MeterError: the counter cannot be read.
        UnusableError: it stalled or decreased.
    """

    def busy(seconds: float) -> None:
        end_s = timing.now() + seconds
        while timing.now() < end_s:
            load()
            synchronise()

    def seen(work: Callable[[Trace], None]) -> Trace:
        return record(meter, timing, synchronise, FIND_PERIOD_POLL_S, work)

    loaded = seen(lambda trace: busy(FIND_PERIOD_S))
    period_s = update_period_s([loaded])
    length_s = PART_TIME_PERIODS * period_s
    pause = seen(lambda trace: timing.sleep(min(length_s, MAX_PART_TIME_S)))
    if meter.part_time is not None or length_s > MAX_PART_TIME_S:
        return Look(Sensor(period_s, meter.part_time), _power_w(pause, period_s))

    def on_and_off(trace: Trace) -> None:
        start_s, half_s = timing.now(), period_s * PART_TIME_DETUNING / 2
        for cycle in range(PART_TIME_PERIODS):
            off_s = start_s + (2 * cycle + 1) * half_s
            busy(max(0.0, off_s - timing.now()))
            timing.sleep(max(0.0, off_s + half_s - timing.now()))

    swing = _swing(loaded, pause, seen(on_and_off), period_s)
    sensor = Sensor(period_s, None if swing is None else swing > PART_TIME_SWING, swing)
    return Look(sensor, _power_w(pause, period_s))


def _power_w(trace: Trace, period_s: float) -> float | None:
    try:
        return slope(trace, period_s).power_mw / 1000
    except UnusableError:
        return None  # a counter may sleep while its device does


def _swing(loaded: Trace, idle: Trace, mixed: Trace, period_s: float) -> float | None:
    """From the least to the most that one period of the on-off load shows, as a share of a load."""
    high, low = _increments_mj(loaded, period_s), _increments_mj(idle, period_s)
    seen = _increments_mj(mixed, period_s)
    if len(seen) < PART_TIME_PERIODS // 2 or not high:
        return None
    load_mj = statistics.median(high) - (statistics.median(low) if low else 0.0)
    ordered = sorted(seen)
    tenth = len(ordered) // 10
    return (ordered[-1 - tenth] - ordered[tenth]) / load_mj if load_mj > 0 else None


def _increments_mj(trace: Trace, period_s: float) -> list[float]:
    """What single updates added; where an update was missed, nothing."""
    pairs = pairwise(find_edges(trace, math.inf))
    return [b.mj - a.mj for a, b in pairs if b.seen_s - a.seen_s < 1.5 * period_s]
