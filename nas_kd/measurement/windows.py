"""What windows between edges say: energy per iteration, and by how much it may be off."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from nas_kd.measurement.calibration import Calibration
from nas_kd.measurement.counter import Sensor, Slope, Trace, UnusableError, overlap_s, slope

LOOKS_FOR = 0.25  # of the period, sensors of A100 and H100 (Yang et al., arXiv 2312.02741)
MAX_DISAGREEMENT = 0.10  # between the counter and instant power
MIN_POWERS = 10
POWER_LAGS_S = 1.0  # where a driver has no instant power but its mean over the last second
TREND = 3.0  # standard errors of a slope over the windows that are no chance
STILL_S = 10.0  # for so long a drift is taken to go on as it is


def looks_away(sensor: Sensor) -> bool:
    """Whether a sensor looks only part of the time; one that nobody knows is taken for such."""
    return sensor.part_time is not False


def window(trace: Trace, known: Calibration) -> dict[str, Any]:
    """What one window says; its samples of instant power lie in ``powers_w`` until ``instant_w`` has seen them."""
    sensor, idle_w = known.sensor, known.gap_w
    busy_s = _length_s(trace.work_s) if trace.work_s else trace.duration_s
    iteration_s = busy_s / trace.steps
    found = slope(trace, sensor.period_s, 0.0 if trace.work_s else iteration_s)
    power_mw = _without_gaps(trace, found, idle_w) if trace.work_s else found.power_mw
    energy_mj = power_mw * iteration_s
    alias = _alias_of_places if trace.work_s else _alias
    clocks = [c.clock_mhz for c in trace.conditions if c.clock_mhz is not None]
    swing = max(0.0, 1 - 1000 * (idle_w or 0.0) / found.power_mw)
    part = swing * found.partly * iteration_s / (found.last_s - found.first_s) / math.sqrt(3)
    return {
        "mj": energy_mj,
        "edge_mj": energy_mj * found.relative_uncertainty,
        "alias_mj": energy_mj * math.hypot(alias(found, sensor, iteration_s, idle_w), part),
        "power_w": power_mw / 1000,
        "powers_w": trace.powers_w,
        "counter_w": found.power_mw / 1000,
        "iteration_s": iteration_s,
        "iterations": trace.steps,
        "edges": found.edges,
        "gap_s": trace.duration_s - busy_s,
        "clock_mhz": statistics.fmean(clocks) if clocks else None,
    }


def _without_gaps(trace: Trace, found: Slope, gap_w: float | None) -> float:
    """Mean power in mW of the work between the first and the last edge."""
    if gap_w is None:
        raise UnusableError("idle power is unknown, and the gaps of a part-time sensor need it")
    span_s = found.last_s - found.first_s
    work_s = overlap_s(trace.work_s, found.first_s, found.last_s)
    return (found.power_mw * span_s - 1000 * gap_w * (span_s - work_s)) / work_s


def _length_s(stretches: list[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in stretches)


def _alias(found: Slope, sensor: Sensor, iteration_s: float, idle_w: float | None) -> float:
    """Relative error of a part-time sensor that sees the same place of many iterations.

    A look of a quarter of the period sees up to half an iteration too much of its high part,
    whose power is at most as far over the mean as the mean over idle. Looks that drift through
    n iterations average that to 1 / (pi n); near a fraction with denominator q, to 1 / q.
    Windows begun elsewhere show it as scatter too, but not those of an exact resonance.
    """
    if not looks_away(sensor):
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


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Doubts:
    """Mean of the windows and what it may be off by, all in mJ but ``cv``."""

    mean_mj: float
    cv: float
    edge_mj: float
    repeat_mj: float
    alias_mj: float
    drift_mj: float

    @property
    def uncertainty_mj(self) -> float:
        """Windows begin at random moments of the sensor's pattern, so that their scatter shows the alias as well."""
        return math.hypot(self.edge_mj, max(self.repeat_mj, self.alias_mj), self.drift_mj)

    @property
    def relative(self) -> float:
        """The uncertainty as a share of the mean."""
        return self.uncertainty_mj / self.mean_mj


def doubts(windows: list[dict[str, Any]], groups: int) -> Doubts:
    """Of windows of one length; their CV is that of so many groups of them."""
    each_mj = [window["mj"] for window in windows]
    n, mean_mj = len(each_mj), statistics.fmean(each_mj)
    size = n // groups
    long_mj = [statistics.fmean(each_mj[i * size : (i + 1) * size]) for i in range(groups)]
    return Doubts(
        mean_mj,
        statistics.stdev(long_mj) / mean_mj,
        math.hypot(*(window["edge_mj"] for window in windows)) / n,
        statistics.stdev(each_mj) / math.sqrt(n) * (math.sqrt((n - 1) / (n - 3)) if n > 3 else 2.0),
        math.hypot(*(window["alias_mj"] for window in windows)) / n,
        _drift_mj(each_mj, [window["after_s"] for window in windows]),
    )


def _drift_mj(each_mj: list[float], after_s: list[float]) -> float:
    """How far the energy may still move, where the windows rise or fall by no chance; else 0.

    A chip that warms up draws more; it has settled where its power no longer rises.
    """
    n, middle_s = len(each_mj), statistics.fmean(after_s)
    if n < 4:
        return 0.0
    rise, start = statistics.linear_regression(after_s, each_mj)
    left = [mj - start - rise * at for at, mj in zip(after_s, each_mj, strict=True)]
    spread = sum((at - middle_s) ** 2 for at in after_s)
    doubt = math.sqrt(sum(x * x for x in left) / (n - 2) / spread)
    return abs(rise) * STILL_S if abs(rise) > TREND * doubt else 0.0


def instant_w(windows: list[dict[str, Any]]) -> float | None:
    """Mean instant power over the windows; it must agree with the counter. Its samples leave the windows."""
    powers = [(window, window.pop("powers_w")) for window in windows]
    told = [(w, p) for w, p in powers if p and w["after_s"] >= POWER_LAGS_S]
    samples_w = [power_w for _, several in told for power_w in several]
    for window, several in powers:
        window["instant_w"] = statistics.fmean(several) if several else None
    if len(samples_w) < MIN_POWERS:
        return None
    mean_w = statistics.fmean(samples_w)
    counter_w = statistics.fmean(window["counter_w"] for window, _ in told)
    if abs(mean_w - counter_w) > MAX_DISAGREEMENT * counter_w:
        raise UnusableError(
            f"the counter says {counter_w:.1f} W and instant power {mean_w:.1f} W: "
            f"more than {MAX_DISAGREEMENT:.0%} apart"
        )
    return mean_w
