"""A fake meter and simulated devices with exact clocks; what they measure is source "fake"."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nas_kd.errors import MeterError
from nas_kd.measurement.counter import Timing
from nas_kd.measurement.meter import Conditions, Identity


class SimulatedDevice:
    """A device of known power whose energy counter shows a new value every update period.

    Time is in whole microseconds and energy in whole nanojoules, so that joules are exact.
    ``iteration`` returns as soon as no more than ``queued`` iterations wait to be done.

    Args:
        load_w: power of an iteration.
        idle_w: power between iterations.
        iteration_ms: how long an iteration takes.
        update_ms: the counter's update period.
        looks_ms: the sensor sees so much at the end of each period and takes it for the whole.
        late_w: power of the second half of an iteration; as the first unless given.
        queued: see above.
    """

    def __init__(
        self,
        *,
        load_w: int = 300,
        idle_w: int = 60,
        iteration_ms: float = 10,
        update_ms: int = 20,
        looks_ms: int | None = None,
        late_w: int | None = None,
        queued: int = 0,
    ):
        self.load_w, self.idle_w, self.late_w = load_w, idle_w, late_w
        self.iteration_us, self.update_us = round(1000 * iteration_ms), 1000 * update_ms
        self.looks_us = 1000 * (looks_ms or update_ms)
        self.queued = queued
        self.now_us = self.busy_from_us = self.busy_until_us = 0
        self.energy_nj = self.looked_nj = self.counted_nj = self.shown_nj = 0
        self._timers: dict[object, tuple[int, int, Callable[[], None]]] = {}

    @property
    def timing(self) -> Timing:
        return Timing(self.clock, self.sleep, self.every)

    @property
    def power_w(self) -> int:
        if self.now_us >= self.busy_until_us:
            return self.idle_w
        late = (self.now_us - self.busy_from_us) % self.iteration_us >= self.iteration_us // 2
        return self.late_w if late and self.late_w is not None else self.load_w

    def clock(self) -> float:
        return self.now_us / 1e6

    def sleep(self, seconds: float) -> None:
        self._advance(self.now_us + round(seconds * 1e6))

    @contextmanager
    def every(self, period_s: float, call: Callable[[], None]) -> Iterator[None]:
        """As a side thread would: the call comes in the midst of whatever goes on."""
        key, period_us = object(), round(period_s * 1e6)
        self._timers[key] = (self.now_us + period_us, period_us, call)
        try:
            yield
        finally:
            del self._timers[key]

    def iteration(self) -> None:
        if self.busy_until_us <= self.now_us:
            self.busy_from_us = self.busy_until_us = self.now_us
        self.busy_until_us += self.iteration_us
        self._advance(self.busy_until_us - self.queued * self.iteration_us)

    def synchronise(self) -> None:
        self._advance(self.busy_until_us)

    def _advance(self, until_us: int) -> None:
        while self.now_us < until_us:
            now_us = self.now_us
            update_us = (now_us // self.update_us + 1) * self.update_us
            look_us = update_us - self.looks_us
            stops = [until_us, update_us, *(due for due, _, _ in self._timers.values())]
            stops += [look_us] if look_us > now_us else []
            if now_us < self.busy_until_us:
                stops.append(self.busy_until_us)
                if self.late_w is not None:
                    half_us = self.iteration_us // 2
                    stops.append(now_us + half_us - (now_us - self.busy_from_us) % half_us)
            self._step(max(now_us, min(stops)), looking=now_us >= look_us)
            if self.now_us == update_us:
                self._update()
            self._call_timers()

    def _step(self, to_us: int, looking: bool) -> None:
        spent_nj = 1000 * self.power_w * (to_us - self.now_us)
        self.energy_nj += spent_nj
        self.looked_nj += spent_nj if looking else 0
        self.now_us = to_us

    def _update(self) -> None:
        self.counted_nj += self.looked_nj * self.update_us // self.looks_us
        self.shown_nj, self.looked_nj = self.counted_nj, 0

    def _call_timers(self) -> None:
        for key, (due_us, period_us, call) in list(self._timers.items()):
            if due_us <= self.now_us:
                self._timers[key] = (self.now_us + period_us, period_us, lambda: None)
                call()
                if key in self._timers:
                    self._timers[key] = (max(due_us, self.now_us) + period_us, period_us, call)


class LivelyDevice(SimulatedDevice):
    """A simulated device that warms up, changes its clock, trembles, and has neighbours.

    Args:
        drift: by what share a cold device draws less than a warm one under load, which it approaches with ``tau_s``.
        tau_s: see above.
        clocks: moments (s) with the clock from then on, as a share of the full one; power goes with its square.
        tremble: standard deviation of the power from one update period to the next, as a share.
        neighbours: from when to when (s) another process draws how many W more.
        tail_w: power for ``TAIL_S`` after load, where it takes the device so long to lower its clocks.
        seed: of what trembles.
    """

    TAIL_S = 2.0
    FULL_MHZ = 1980

    def __init__(
        self,
        *,
        drift: float = 0.0,
        tau_s: float = 3.0,
        clocks: tuple[tuple[float, float], ...] = (),
        tremble: float = 0.0,
        neighbours: tuple[tuple[float, float, int], ...] = (),
        tail_w: int | None = None,
        seed: int = 0,
        **device: Any,
    ):
        super().__init__(**device)
        self.drift, self.tau_s, self.clocks, self.tremble = drift, tau_s, clocks, tremble
        self.neighbours, self.tail_w = neighbours, tail_w
        self.heat, self._draw, self._tremor = 0.0, random.Random(seed), 1.0
        self._base_us = self.iteration_us

    @property
    def share(self) -> float:
        """The clock's, of the full one."""
        return next((c for at, c in reversed(self.clocks) if self.now_us >= 1e6 * at), 1.0)

    @property
    def others_w(self) -> int:
        return sum(w for a, b, w in self.neighbours if 1e6 * a <= self.now_us < 1e6 * b)

    @property
    def power_w(self) -> int:
        own_w = float(super().power_w)
        if self.now_us < self.busy_until_us:
            own_w *= self.share**2 * (1 + self.drift * (self.heat - 1)) * self._tremor
        elif self.tail_w is not None and self.now_us < self.busy_until_us + 1e6 * self.TAIL_S:
            own_w = self.tail_w
        return round(own_w) + self.others_w

    def conditions(self, now_s: float) -> Conditions:
        """What it says of itself: clock, processes, and how busy it is without this process's work."""
        there = (8,) if any(a <= now_s < b for a, b, _ in self.neighbours) else ()
        busy = 60 if there and self.now_us >= self.busy_until_us else 0
        clock_mhz = round(self.FULL_MHZ * self.share)
        return Conditions(clock_mhz, round(40 + 25 * self.heat), (), False, (7, *there), busy)

    def iteration(self) -> None:
        self.iteration_us = round(self._base_us / self.share)
        super().iteration()

    def _step(self, to_us: int, looking: bool) -> None:
        to_us = min(to_us, self.now_us + 20_000)
        passed_s, is_busy = (to_us - self.now_us) / 1e6, self.now_us < self.busy_until_us
        super()._step(to_us, looking)
        self.heat += (is_busy - self.heat) * (1 - math.exp(-passed_s / self.tau_s))

    def _update(self) -> None:
        super()._update()
        if self.tremble:
            self._tremor = max(0.0, self._draw.gauss(1.0, self.tremble))


class FakeMeter:
    """The counter of a simulated device, with the faults that real counters have.

    Args:
        device: whose counter this is.
        stalls_s: from then on the counter stands still.
        resets_s: from then on it counts from zero again.
        lost_s: from then on it cannot be read.
        read_us: what a read takes of the device's time.
        broken: why the meter is unusable from the start.
        conditions: what the device says of itself at a moment (s).
        power_share: instant power as a share of the device's, or None for a meter without it.
        part_time: what the meter knows of its sensor.
    """

    name = "fake"

    def __init__(
        self,
        device: SimulatedDevice,
        *,
        stalls_s: float = float("inf"),
        resets_s: float = float("inf"),
        lost_s: float = float("inf"),
        read_us: int = 0,
        broken: str | None = None,
        conditions: Callable[[float], Conditions] = lambda now_s: Conditions(),
        power_share: float | None = None,
        part_time: bool | None = False,
    ):
        self.device = device
        self.stalls_s, self.resets_s, self.lost_s = stalls_s, resets_s, lost_s
        self.read_us, self.broken, self.power_share = read_us, broken, power_share
        self.part_time, self._conditions = part_time, conditions
        self.reads = 0
        self._last_mj = self._zero_mj = 0.0

    def read_mj(self) -> float:
        self.reads += 1
        self.device.sleep(self.read_us / 1e6)
        now_s = self.device.clock()
        if now_s >= self.lost_s:
            raise MeterError("the GPU is lost")
        if now_s >= self.stalls_s:
            return self._last_mj
        if now_s >= self.resets_s and not self._zero_mj:
            self._zero_mj = self.device.shown_nj / 1e6
        self._last_mj = self.device.shown_nj / 1e6 - self._zero_mj
        return self._last_mj

    def power_w(self) -> float | None:
        return None if self.power_share is None else self.power_share * self.device.power_w

    def conditions(self) -> Conditions:
        return self._conditions(self.device.clock())

    def identity(self) -> Identity:
        return Identity("GPU-simulated", "simulated driver")

    def probe(self) -> str | None:
        return self.broken
