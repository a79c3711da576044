"""What is known of a device for an hour: how its counter behaves, and what it draws at rest."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nas_kd.measurement.counter import (
    FIND_PERIOD_POLL_S,
    REAL_TIME,
    Sensor,
    Timing,
    Trace,
    UnusableError,
    find_sensor,
    record,
    slope,
    update_period_s,
)
from nas_kd.measurement.meter import Meter
from nas_kd.measurement.reading import FAKE
from nas_kd.measurement.reading_cache import cache_folder, read_record, write_record

VALID_S = 3600.0
QUIET_S = 5.0
IDLE_S = 5.0
MIN_IDLE_EDGES = 20
SOME_WORK_S = 1.0


@dataclass(frozen=True)
class Calibration:
    """A device's counter and its power at rest, in W; None with the reason where the counter sleeps then.

    pause_w: right after load, before it lowers its clocks; None where it was not seen.
    """

    sensor: Sensor
    idle_w: float | None
    idle_reason: str | None = None
    pause_w: float | None = None

    @property
    def gap_w(self) -> float | None:
        """Power in a moment without work."""
        return self.idle_w if self.pause_w is None else self.pause_w


def calibrate(
    meter: Meter,
    load: Callable[[], None],
    *,
    synchronise: Callable[[], None],
    timing: Timing = REAL_TIME,
) -> Calibration:
    """Some 15 to 20 s of load and rest; the device is this process's own meanwhile.

    Args:
        meter: a working one.
        load: a piece of work far shorter than an update period.
        synchronise: waits for all that was queued.
        timing: clock.

    Raises:
        MeterError: the counter cannot be read.
        UnusableError: it stalled or decreased.
    """
    found = find_sensor(meter, load, synchronise=synchronise, timing=timing)
    resting = rest(meter, synchronise, timing)
    return Calibration(found.sensor, *idle_power(resting, found.sensor.period_s), found.pause_w)


def without_load(
    meter: Meter, work: Callable[[], None], synchronise: Callable[[], None], timing: Timing
) -> Calibration:
    """The same of any work: the period as the counter shows it, the sensor as the meter says."""

    def some(trace: Trace) -> None:
        end_s = timing.now() + SOME_WORK_S
        while timing.now() < end_s:
            work()

    resting = rest(meter, synchronise, timing)
    loaded = record(meter, timing, synchronise, FIND_PERIOD_POLL_S, some)
    sensor = Sensor(update_period_s([resting, loaded]), meter.part_time)
    return Calibration(sensor, *idle_power(resting, sensor.period_s))


def rest(meter: Meter, synchronise: Callable[[], None], timing: Timing) -> Trace:
    """What a meter shows of its device at rest, after some quiet."""
    synchronise()
    timing.sleep(QUIET_S)
    return record(
        meter, timing, synchronise, FIND_PERIOD_POLL_S, lambda trace: timing.sleep(IDLE_S)
    )


def idle_power(resting: Trace, period_s: float) -> tuple[float | None, str | None]:
    """Idle power in W, or null and why; gross energies stand without it."""
    try:
        return slope(resting, period_s, fewest=MIN_IDLE_EDGES).power_mw / 1000, None
    except UnusableError as error:
        return None, str(error)


def known_for_an_hour(
    meter: Meter, measure: Callable[[], Calibration], folder: Path | None = None
) -> Calibration:
    """The calibration of a meter's device, measured only where none is kept that is younger than an hour.

    Args:
        meter: whose.
        measure: takes it; may raise.
        folder: where it is kept, by default in the cache of this user.
    """
    path, key = path_of(meter, folder)
    if (kept := read_record(path, key, VALID_S)) is not None and (known := _read(kept)) is not None:
        return known
    found = measure()
    if meter.name != FAKE:
        write_record(path, key, {"calibration": asdict(found)})
    return found


def path_of(meter: Meter, folder: Path | None = None) -> tuple[Path, dict[str, str]]:
    """The file of what is known of a meter's device, and the key that it is kept under."""
    key = {"meter": meter.name, **meter.identity()._asdict()}
    name = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:32]
    return (folder or cache_folder() / "devices") / f"{name}.json", key


def _read(record: dict[str, object]) -> Calibration | None:
    try:
        fields = dict(record["calibration"])  # type: ignore[call-overload]
        return Calibration(Sensor(**fields.pop("sensor")), **fields)
    except (KeyError, TypeError, ValueError):
        return None
