"""Energy of a codec's passes: on this device, beside the teacher's, kept and looked up again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_kd.codec.arch import Arch
from nas_kd.codec.networks import FRAME, MEGAPIXELS, Pass, noise_frame, passes
from nas_kd.codec.student import Student
from nas_kd.data.image_file import Image8
from nas_kd.data.images import to_tensor
from nas_kd.device import numerics, synchroniser
from nas_kd.errors import MeterError
from nas_kd.measurement.calibration import Calibration, calibrate, known_for_an_hour, path_of
from nas_kd.measurement.counter import UnusableError
from nas_kd.measurement.device_lock import in_use
from nas_kd.measurement.energy import QUICK, Mode, Seen, Session, measured_twice_at_most
from nas_kd.measurement.energy_model import work_of
from nas_kd.measurement.graph_replay import replayed
from nas_kd.measurement.meter import Meter
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.reading import FAKE, Reading
from nas_kd.measurement.reading_cache import Key, Readings, read_record, write_record
from nas_kd.measurement.wishes import Wishes

EXCLUDED = "entropy coding (CPU)"
ENERGY = "energy.json"


def energy_of(meter: Meter, work: Pass, device: str, mode: Mode) -> Reading:
    """Energy of one pass in mJ; taken once more where it is rejected."""
    return Bench(meter, device).read(work, mode)


class Bench:
    """A device that this process has alone, and what is known of it; calibrated at the first reading.

    Args:
        meter: a working one of that device.
        device: as torch spells it.
    """

    def __init__(self, meter: Meter, device: str):
        self.meter, self.device = meter, device
        self._session: Session | None = None

    def session(self) -> Session:
        """The session of this process.

        Raises:
            MeterError: the counter cannot be read.
            UnusableError: it stalled or decreased.
        """
        if self._session is None:
            known = calibration_of(self.meter, self.device)
            synchronise, seen = synchroniser(self.device), seen_lately(self.meter)
            self._session = Session(self.meter, synchronise=synchronise, known=known, seen=seen)
        return self._session

    def read(self, work: Pass, mode: Mode) -> Reading:
        """Energy of one pass in mJ; taken once more where it is rejected."""

        def once() -> Reading:
            try:
                return self.session().read(work, mode)
            except MeterError as error:
                return Reading.unavailable(str(error))
            except UnusableError as error:
                return Reading.rejected(str(error))

        reading = measured_twice_at_most(once)
        if self._session is not None and self._session.seen is not None:
            keep_seen(self.meter, self._session.seen)
        return reading


SEEN_S = 600.0
"""For so long a look round holds, as long as no other process comes."""


def seen_lately(meter: Meter) -> Seen | None:
    """What the last reading on this device saw, by whatever process of this user."""
    path, key = path_of(meter)
    record = read_record(path.with_suffix(".seen"), key, SEEN_S)
    if record is None:
        return None
    return Seen(tuple(record["processes"]), record["temperature_c"])


def keep_seen(meter: Meter, seen: Seen) -> None:
    """Keep it for the next; a fake's is not kept."""
    path, key = path_of(meter)
    if meter.name != FAKE:
        write_record(path.with_suffix(".seen"), key, seen._asdict())


def calibration_of(meter: Meter, device: str) -> Calibration:
    """How the device's counter behaves and what it draws at rest, found once an hour under a load of products.

    Raises:
        MeterError: the counter cannot be read.
        UnusableError: it stalled or decreased.
    """
    side = 1024 if device.startswith("cuda") else 128  # well under a millisecond each
    a = torch.rand(side, side, device=device)

    def load() -> None:
        torch.mm(a, a)

    return known_for_an_hour(
        meter, lambda: calibrate(meter, load, synchronise=synchroniser(device))
    )


def per_megapixel(frame: Reading) -> Reading:
    """From mJ per frame to mJ per 10^6 pixels."""
    if frame.value is None or frame.uncertainty is None:
        return frame
    value, doubt = frame.value / MEGAPIXELS, frame.uncertainty / MEGAPIXELS
    return replace(frame, value=value, uncertainty=doubt, unit="mJ/Mpx", details={})


def energy_ratio(own: Reading, other: Reading) -> Reading:
    """Student over teacher; the sensor's gain error cancels."""
    missing = [r for r in (own, other) if r.value is None]
    if missing:
        return Reading.unavailable(f"one of the two is {missing[0].state}: {missing[0].reason}")
    pairs = [
        (r.value, r.uncertainty) for r in (own, other) if r.value and r.uncertainty is not None
    ]
    ratio = pairs[0][0] / pairs[1][0]
    doubt = ratio * math.hypot(*(u / v for v, u in pairs))
    return replace(own, value=ratio, uncertainty=doubt, unit="ratio", details={})


# ---------------------------------------------------------------- doctor, trials, exports


def meter_in_words(device: str) -> str:
    """The meter, how its counter behaves, or why there is none."""
    meter = find_meter(device)
    if isinstance(meter, Reading):
        return f"no meter: {meter.reason}"
    try:
        with in_use(device).exclusive():
            sensor = calibration_of(meter, device).sensor
    except (MeterError, UnusableError) as error:
        return f"{meter.name}, unusable: {error}"
    looks = {True: "part of the time", False: "all the time", None: "it is not known how often"}
    period = f"a new value every {1000 * sensor.period_s:.3g} ms (measured)"
    return f"{meter.name}, {period}, its sensor looks {looks[sensor.part_time]}"


def frame_energy(student: Student, device: str, mode: Mode = QUICK, part: str = "both") -> Reading:
    """Energy of a part (encoder, decoder, both) on a 768x512 frame in mJ, from the cache where it is known.

    On a GPU the pass is the replay of a CUDA graph. Waits until it has the device alone: not while this process
    shares it. While it has it, what others wait for is measured as well.
    """
    meter = find_meter(device)
    if isinstance(meter, Reading):
        return meter
    try:
        key = _key(student, meter, device, mode, part)
        return _measured(Wished(student, part, key), meter, device, mode)
    except MeterError as error:
        return Reading.unavailable(str(error))


class Wished(NamedTuple):
    """A student's part whose energy is wanted, and the name of its reading."""

    student: Student
    part: str
    key: Key

    def to_json(self) -> dict[str, Any]:
        """What another process needs to measure it."""
        lmbdas = list(self.student.lmbdas)
        return {"arch": self.student.arch.to_json(), "lmbdas": lmbdas, "part": self.part}


def _measured(wanted: Wished, meter: Meter, device: str, mode: Mode) -> Reading:
    kept, wishes = Readings(), Wishes(wanted.key.device)
    if (known := kept.get(wanted.key)) is not None:
        return known
    bench = Bench(meter, device)
    with (
        wishes.filed(wanted.key.digest, wanted.to_json()),
        in_use(device).exclusive(lambda: kept.get(wanted.key) is not None) as alone,
    ):
        if not alone and (known := kept.get(wanted.key)) is not None:
            return known  # another process has measured it meanwhile
        reading = _of_part(bench, wanted, mode)
        kept.put(wanted.key, reading)
        serve(
            [w for w in wishes.open() if w["name"] != wanted.key.digest],
            lambda other: _for_another(other, bench, mode, kept),
        )
    return reading


MAX_SERVED = 16
"""Wishes that are granted in one go: trainings wait meanwhile."""


def serve(wishes: list[dict[str, Any]], measure: Callable[[dict[str, Any]], bool]) -> int:
    """Grant others' wishes until one fails: theirs to find out why. Returns how many were granted."""
    granted = itertools.takewhile(bool, map(measure, wishes[:MAX_SERVED]))
    return sum(1 for _ in granted)


def _for_another(wish: dict[str, Any], bench: Bench, mode: Mode, kept: Readings) -> bool:
    student = Student(Arch.from_json(wish["arch"]), tuple(wish["lmbdas"])).eval()
    key = _key(student, bench.meter, bench.device, mode, wish["part"])
    if key.digest != wish["name"] or kept.get(key) is not None:
        return True  # of another mode or precision, or known by now
    return kept.put(key, _of_part(bench, Wished(student, wish["part"], key), mode))


def _of_part(bench: Bench, wanted: Wished, mode: Mode) -> Reading:
    frame = noise_frame(bench.device)
    student = wanted.student.eval().to(bench.device)
    try:
        work = pass_of(student, [frame], wanted.part, bench.device)
    except RuntimeError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return Reading.unavailable(f"its {wanted.part} cannot be captured as a CUDA graph ({said})")
    reading = bench.read(work, mode)
    if reading.state != "measured":
        return reading
    done = asdict(work_of(student, wanted.part, frame))
    return replace(reading, details=reading.details | {"pass": wanted.key.part, "work": done})


def pass_of(student: Student, frames: list[Tensor], part: str, device: str) -> Pass:
    """The pass whose energy is a student's: the replay of a CUDA graph on a GPU, else the part itself."""
    if device.startswith("cuda"):
        return replayed(student, frames, part)
    return passes(student, frames)[part]


def _key(student: Student, meter: Meter, device: str, mode: Mode, part: str) -> Key:
    identity = meter.identity()
    return Key(
        arch=student.arch.key,
        part=f"{part}_graph" if device.startswith("cuda") else part,
        device=identity.device,
        driver=identity.driver,
        torch=torch.__version__,
        dtype=str(next(student.parameters()).dtype),
        shape=FRAME,
        mode=mode.name,
        numerics=numerics(device),
        levels=student.levels,
    )


def as_frame(image: Image8) -> Tensor:
    """A picture as a frame: repeated to fill it, then cut at its corner."""
    x = to_tensor(image)
    down, across = (math.ceil(FRAME[2 + i] / x.shape[2 + i]) for i in (0, 1))
    return x.repeat(1, 1, down, across)[..., : FRAME[2], : FRAME[3]].contiguous()
