"""Whether a device has settled under load: its clock, its power and its temperature; and what it said of itself."""

import statistics
from typing import Any

from nas_kd.measurement.counter import Sensor, Trace, UnusableError, recent_powers_mw
from nas_kd.measurement.meter import Conditions
from nas_kd.measurement.windows import looks_away

CLOCK_MOVES = 0.01
POWER_MOVES = 0.02  # from one chunk of the warm-up to the next
CHUNK_S, CHUNK_PERIODS, CHUNK_ITERATIONS, CHUNK_POLLS = 0.15, 5, 2, 60
"""A chunk of the warm-up lasts the longest of these: the later polls come, the less is known of its ends."""
CLOCK_SETTLED_READS = 4
HEAT_S, HEAT_C = 4.0, 1
"""A chip that was cold is warm where it gains no more than so many degrees in so many seconds."""
WARM_CONDITIONS_EVERY_S = 0.1
LONG_ITERATION = 0.1  # of an update period


def settled(trace: Trace, sensor: Sensor, iteration_s: float) -> bool:
    """Whether clock and power have settled lately.

    A device that tells no clock is judged by its power alone, and work at which a part-time sensor looks away is not
    judged by power.
    """
    told = list(trace.conditions)
    if not _clock_settled(told) or not heat_settled(told):
        return False
    if looks_away(sensor) and iteration_s > LONG_ITERATION * sensor.period_s:
        return True
    chunk_s = max(
        CHUNK_S,
        CHUNK_PERIODS * sensor.period_s,
        CHUNK_ITERATIONS * iteration_s,
        CHUNK_POLLS * _poll_s(trace),
    )
    powers_mw = recent_powers_mw(trace, sensor.period_s, chunk_s, 2)
    return bool(powers_mw) and max(powers_mw) <= (1 + POWER_MOVES) * min(powers_mw)


def _poll_s(trace: Trace) -> float:
    """The mean time between the latest polls, which a busy interpreter holds up."""
    latest_s = trace.times_s[-CHUNK_POLLS:]
    return (latest_s[-1] - latest_s[0]) / max(1, len(latest_s) - 1)


def _clock_settled(conditions: list[Conditions]) -> bool:
    clocks = [c.clock_mhz for c in conditions if c.clock_mhz is not None]
    if len(clocks) < len(conditions) or not clocks:
        return True
    latest = clocks[-CLOCK_SETTLED_READS:]
    return len(latest) == CLOCK_SETTLED_READS and max(latest) <= (1 + CLOCK_MOVES) * min(latest)


def heat_settled(conditions: list[Conditions]) -> bool:
    """Whether the temperature has stood for the last ``HEAT_S``, where it is told."""
    reads = round(HEAT_S / WARM_CONDITIONS_EVERY_S)
    heat = [c.temperature_c for c in conditions[-reads:] if c.temperature_c is not None]
    return not heat or heat[-1] - heat[0] <= HEAT_C


def require_full_speed(conditions: list[Conditions]) -> None:
    """Raise UnusableError where the device said that it slowed down."""
    reasons = sorted({reason for c in conditions for reason in c.slowdown})
    if reasons:
        raise UnusableError(f"the device slowed down in a window: {', '.join(reasons)}")


def summary(conditions: list[Conditions]) -> dict[str, Any]:
    """What the device said of itself under load; a power cap is kept and flagged."""
    clocks = [c.clock_mhz for c in conditions if c.clock_mhz is not None]
    heat = [c.temperature_c for c in conditions if c.temperature_c is not None]
    return {
        "clock_mhz": statistics.fmean(clocks) if clocks else None,
        "temperature_c": statistics.fmean(heat) if heat else None,
        "power_capped": any(c.power_capped for c in conditions),
        "processes": len(conditions[-1].processes or ()) if conditions else None,
    }


def clock_moved(before_mhz: float | None, now_mhz: float | None) -> bool:
    """Whether it is another clock; one that is not told is the same."""
    if before_mhz is None or now_mhz is None:
        return False
    return abs(now_mhz - before_mhz) > CLOCK_MOVES * before_mhz
