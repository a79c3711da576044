"""Energy per iteration by a cumulative counter: measured with its uncertainty, or a reason.

::

    look round - warm up until settled - windows between edges, until they agree - checks - mJ +- mJ

A sensor that looks only part of each update period (A100, H100: 25 of 100 ms) may look at the
same place of every iteration. So longer iterations are started at places spread evenly over the
period, and the energy of the gaps is taken out again.
"""

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from nas_kd.errors import MeterError
from nas_kd.measurement.calibration import Calibration, without_load
from nas_kd.measurement.counter import (
    FIND_PERIOD_POLL_S,
    MAX_POLL_SHARE,
    MIN_EDGES_IN_ALL,
    REAL_TIME,
    WINDOW_POLL_S,
    Sensor,
    Timing,
    Trace,
    UnusableError,
    record,
)
from nas_kd.measurement.meter import Conditions, Meter
from nas_kd.measurement.reading import Reading
from nas_kd.measurement.settling import (
    CHUNK_S,
    HEAT_S,
    LONG_ITERATION,
    WARM_CONDITIONS_EVERY_S,
    clock_moved,
    heat_settled,
    require_full_speed,
    settled,
    summary,
)
from nas_kd.measurement.windows import doubts, instant_w, looks_away, window

WARMUP_ITERATIONS = 5
WARMUP_ITERATIONS_S = 5.0  # long iterations need not be so many
MAX_WARMUP_S = 30.0
COLDER_C = 3
"""A chip is taken for cold where it is so many degrees below what it had after the last reading."""
COLD_WINDOW_S = 0.25
"""Windows of a device that may be cold last so long at least: in shorter ones its drift is not seen."""
WINDOW_ITERATIONS = 3
GOLDEN = (math.sqrt(5) - 1) / 2
"""Steps of this length around a circle are the most even; against gaps drawn at random they took
the scatter of a 10 s window from 3.0 to 0.5 % (simulated: 100 ms iterations, 25 of 100 ms seen)."""
LOOK_QUIET_S, LOOK_S = 1.0, 0.5  # what NVML calls utilisation looks back for up to a second
BUSY_WHILE_IDLE_PERCENT = 5
GAIN_ERROR = 0.05  # of the sensor; the same for all students on one card


@dataclass(frozen=True)
class Mode:
    """How long to measure, and what scatter to believe.

    Windows last ``window_s`` or ``window_periods`` update periods, whichever is longer. There are ``windows`` of
    them, then twice as many and so on, until the relative uncertainty is ``target`` or ``max_s`` would be passed.
    ``max_cv`` is of ``windows`` long ones, each put together from those that follow each other; above AGREE_CV they
    go on as well.
    """

    name: str
    windows: int
    window_s: float
    window_periods: int
    max_cv: float
    target: float = 0.01
    max_s: float = 20.0
    warmup_s: float = 0.5

    def __post_init__(self) -> None:
        if self.windows < 2:
            raise MeterError(f"windows is {self.windows}: the scatter needs 2 or more; ask for 3")


FULL = Mode("full", 5, 10.0, 100, 0.02, target=0.0, max_s=50.0, warmup_s=5.0)
QUICK = Mode("quick", 4, 0.12, 6, 0.03, warmup_s=0.3)
AGREE_CV = 0.02


class Seen(NamedTuple):
    """What the device said after a reading: the next need not look round again among the same processes.

    temperature_c: None where it is not told.
    """

    processes: tuple[int, ...]
    temperature_c: int | None


@dataclass(frozen=True)
class _Bench:
    """A meter and the work whose energy is wanted."""

    meter: Meter
    iteration: Callable[[], None]
    synchronise: Callable[[], None]
    timing: Timing

    def record(
        self, poll_s: float, work: Callable[[Trace], None], conditions_every_s: float
    ) -> Trace:
        return record(self.meter, self.timing, self.synchronise, poll_s, work, conditions_every_s)

    def warm_up(self, seconds: float, sensor: Sensor) -> Callable[[Trace], None]:
        """At least so long and some iterations, until clock and power have settled."""

        def work(trace: Trace) -> None:
            start_s = looked_s = self.timing.now()
            while (passed_s := self.timing.now() - start_s) < MAX_WARMUP_S or trace.steps < 1:
                iterations = WARMUP_ITERATIONS if passed_s < WARMUP_ITERATIONS_S else 1
                enough = passed_s >= seconds and trace.steps >= iterations
                if enough and start_s + passed_s - looked_s > CHUNK_S / 4:
                    looked_s = start_s + passed_s
                    if settled(trace, sensor, passed_s / trace.steps):
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
        cycle_s = max(period_s, chunk * iteration_s + period_s / 2)
        place, lead_s = draw.random(), cycle_s * (1 + (1 + GOLDEN) * draw.random())

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


class Session:
    """Readings one after the other on a device that is this process's own all the time.

    Args:
        meter: of the device that iterates.
        synchronise: returns when the device is idle (nothing to do on a CPU).
        known: the device's calibration; without it the counter is looked at while the device rests first.
        seen: what another session saw some minutes ago, at most.
        timing: clock.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        synchronise: Callable[[], None],
        known: Calibration | None = None,
        seen: Seen | None = None,
        timing: Timing = REAL_TIME,
    ):
        self.meter, self.synchronise, self.known, self.timing = meter, synchronise, known, timing
        self.seen = seen
        self._conditions: list[Conditions] = []
        self._is_warm = False

    def read(self, iteration: Callable[[], None], mode: Mode = FULL, seed: int = 0) -> Reading:
        """Gross energy of one iteration in mJ: everything the device draws while it iterates.

        The net energy, idle power taken out, is in the details. The uncertainty is of one standard
        deviation; the sensor's gain error, the same for all that runs on one card, is not in it.

        Args:
            iteration: queues or does one iteration; ``synchronise`` waits for all that is queued.
            mode: how long.
            seed: of the places at which windows begin.
        """
        if (reason := self.meter.probe()) is not None:
            return Reading.unavailable(reason)
        bench = _Bench(self.meter, iteration, self.synchronise, self.timing)
        raw: dict[str, Any] = {"mode": mode.name, "windows": []}
        try:
            return self._measure(bench, mode, random.Random(seed), raw)
        except MeterError as error:
            return Reading.unavailable(str(error))
        except UnusableError as error:
            self.seen, self._conditions, self._is_warm = None, [], False  # look round again
            return Reading.rejected(str(error), raw)

    def _measure(
        self, bench: _Bench, mode: Mode, draw: random.Random, raw: dict[str, Any]
    ) -> Reading:
        started_s = bench.timing.now()
        bench.iteration()  # the device's context is alive while it rests
        bench.synchronise()
        if self.known is None:
            self.known = without_load(bench.meter, bench.iteration, bench.synchronise, bench.timing)
        if not self._conditions:
            self._begin()
        self._conditions = self._conditions[-1:]
        known, watched_s = self.known, 0.0 if self._is_warm else self._heat_s()
        if not self._is_warm:
            mode = replace(mode, window_s=max(mode.window_s, COLD_WINDOW_S))
        # The last of the watch is the windows'.
        at_once_s = mode.windows * _window_s(mode, known.sensor.period_s)
        seconds = max(mode.warmup_s, watched_s - at_once_s)
        work = bench.warm_up(seconds, known.sensor)
        warmup = bench.record(FIND_PERIOD_POLL_S, work, WARM_CONDITIONS_EVERY_S)
        iteration_s = warmup.duration_s / warmup.steps
        raw |= asdict(known) | {"settled": settled(warmup, known.sensor, iteration_s)}
        self._see(warmup)
        loaded_s = bench.timing.now() - warmup.duration_s
        windows = _Windows(bench, mode, known, warmup, draw)
        watches = seconds < watched_s
        while not windows.suffice(lambda: not watches or heat_settled(self._conditions)):
            trace, found = windows.next(WARM_CONDITIONS_EVERY_S if watches else None)
            self._see(trace)
            found["after_s"] = bench.timing.now() - trace.duration_s - loaded_s
            raw["windows"] = windows.kept
            require_full_speed(trace.conditions)
        self._is_warm = True
        raw |= {"dropped": windows.dropped} | summary(self._conditions)
        raw["seconds"] = bench.timing.now() - started_s
        reading, last = _reading(bench.meter, raw, mode), self._conditions[-1]
        if last.processes is not None:
            self.seen = Seen(last.processes, last.temperature_c)
        return reading

    def _begin(self) -> None:
        """Look round, unless that was done lately among these processes; what tells nothing of others is not asked."""
        now, seen = self.meter.conditions(), self.seen
        if seen is not None and now.processes is not None and {*now.processes} <= {*seen.processes}:
            self._conditions = [now]
            self._is_warm = (now.temperature_c or 0) > (seen.temperature_c or 0) - COLDER_C
        elif now.processes is not None or now.busy_percent is not None:
            self._look_round()

    def _look_round(self) -> None:
        """Nothing else computes while this process rests."""
        self.timing.sleep(LOOK_QUIET_S)
        trace = record(
            *(self.meter, self.timing, self.synchronise, FIND_PERIOD_POLL_S),
            lambda trace: self.timing.sleep(LOOK_S),
            WARM_CONDITIONS_EVERY_S,
        )
        busy = [c.busy_percent for c in trace.conditions if c.busy_percent is not None]
        if busy and statistics.median(busy) > BUSY_WHILE_IDLE_PERCENT:
            raise UnusableError(
                f"shared: the device is {statistics.median(busy):.0f} % busy while this process rests"
            )
        self._see(trace)

    def _heat_s(self) -> float:
        """How long the temperature is to be looked at, where the device tells it."""
        return 0.0 if self.meter.conditions().temperature_c is None else HEAT_S

    def _see(self, trace: Trace) -> None:
        """The same processes all the time."""
        for before, now in pairwise([*self._conditions[-1:], *trace.conditions]):
            if before.processes != now.processes:
                counts = [len(c.processes or ()) for c in (before, now)]
                raise UnusableError(
                    f"shared: the processes on the device changed while it was measured "
                    f"({counts[0]} before, {counts[1]} after); measure when nothing else starts there"
                )
        self._conditions += trace.conditions


def measure_energy(
    meter: Meter,
    iteration: Callable[[], None],
    *,
    synchronise: Callable[[], None],
    mode: Mode = FULL,
    known: Calibration | None = None,
    timing: Timing = REAL_TIME,
    seed: int = 0,
) -> Reading:
    """One reading in a ``Session`` of its own."""
    session = Session(meter, synchronise=synchronise, known=known, timing=timing)
    return session.read(iteration, mode, seed)


# ---------------------------------------------------------------- windows


class _Windows:
    """Windows until they agree; those from before a change of the clock are dropped."""

    def __init__(
        self,
        bench: _Bench,
        mode: Mode,
        known: Calibration,
        warmup: Trace,
        draw: random.Random,
    ):
        self.bench, self.mode, self.known, self.draw = bench, mode, known, draw
        self.kept: list[dict[str, Any]] = []
        self.dropped = 0
        self.spent_s = 0.0
        self.iteration_s = warmup.duration_s / warmup.steps
        reads = max(1, len(warmup.times_s))
        self.poll_s = max(WINDOW_POLL_S, warmup.reading_s / reads / MAX_POLL_SHARE)
        sensor = known.sensor
        self.spread = looks_away(sensor) and (self.iteration_s > LONG_ITERATION * sensor.period_s)
        self.seconds = self._length_s()

    def _length_s(self) -> float:
        mode, period_s = self.mode, self.known.sensor.period_s
        # An edge is seen no sooner than the next poll.
        seconds = _window_s(mode, max(period_s, self.poll_s))
        seconds = max(seconds, WINDOW_ITERATIONS * self.iteration_s)
        if self.spread and mode.target:
            # About one look at work instead of a gap, in each of the windows.
            return max(seconds, period_s / mode.target / math.sqrt(mode.windows))
        return seconds

    def suffice(self, is_warm: Callable[[], bool]) -> bool:
        """Whether there are enough; asked only where there are ``windows`` of them, or twice as many, and so on.

        What was measured before the chip was warm does not count.
        """
        n, mode = len(self.kept), self.mode
        times, rest = divmod(n, mode.windows)
        if rest or times & (times - 1) or not times:
            return self.spent_s > 2 * mode.max_s
        if not is_warm() and 2 * self.spent_s < mode.max_s:
            self._drop(n)
            return False
        agree = doubts(self.kept, mode.windows)
        if agree.relative <= mode.target and agree.cv <= AGREE_CV:
            return True
        moves = agree.drift_mj > mode.target * agree.mean_mj
        if self.spent_s * (1.5 if moves else 2) > mode.max_s:
            return True
        if moves:  # not settled yet: the latest half counts
            self._drop(n // 2)
        return False

    def _drop(self, count: int) -> None:
        self.dropped += count
        self.kept = self.kept[count:]

    def next(self, every_s: float | None) -> tuple[Trace, dict[str, Any]]:
        """One more, the device's conditions read so often; the same work at another moment of the sensor's pattern."""
        bench, every_s = self.bench, every_s or max(0.1, min(0.5, self.seconds / 4))
        bench.timing.sleep(self.draw.random() * min(self.iteration_s, self.seconds / 4))
        if self.spread:
            period_s = self.known.sensor.period_s
            work = bench.spread(self.seconds, period_s, self.iteration_s, self.draw)
        else:
            work = bench.steady(self.seconds)
        trace = bench.record(self.poll_s, work, every_s)
        self.spent_s += trace.duration_s
        found = window(trace, self.known)
        if self.kept and clock_moved(self.kept[-1]["clock_mhz"], found["clock_mhz"]):
            self._drop(len(self.kept))
        self.kept.append(found)
        return trace, found


def _window_s(mode: Mode, period_s: float) -> float:
    return max(mode.window_s, mode.window_periods * period_s)


# ---------------------------------------------------------------- the reading


def _reading(meter: Meter, raw: dict[str, Any], mode: Mode) -> Reading:
    """The windows' mean with its uncertainty; the details keep what it was made of."""
    windows = raw["windows"]
    if (edges := sum(window["edges"] for window in windows)) < MIN_EDGES_IN_ALL:
        raise UnusableError(
            f"the counter changed {edges} times in all windows, fewer than {MIN_EDGES_IN_ALL}: use longer windows"
        )
    if len(windows) < mode.windows:
        raise UnusableError("the clock kept changing, so that no windows could be compared")
    found = doubts(windows, mode.windows)
    raw["cv"] = found.cv
    if found.cv > mode.max_cv:
        raise UnusableError(f"the windows vary by {found.cv:.1%}, more than {mode.max_cv:.1%}")
    raw["instant_w"] = instant_w(windows)
    time_s = statistics.fmean(window["iteration_s"] for window in windows)
    idle_w, mean_mj = raw["idle_w"], found.mean_mj
    details = raw | {k: v for k, v in asdict(found).items() if k not in ("mean_mj", "cv")}
    details |= {
        "net_mj": None if idle_w is None else mean_mj - 1000 * idle_w * time_s,
        "gain_error_mj": GAIN_ERROR * mean_mj,
        "power_w": mean_mj / 1000 / time_s,
        "iteration_s": time_s,
        "identity": meter.identity()._asdict(),
    }
    return Reading.measured(mean_mj, found.uncertainty_mj, "mJ", meter.name, details)


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
