"""Energy of a codec's passes: on this device, beside the teacher's, kept and looked up again."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_kd.codec.student import Student
from nas_kd.data.images import Image8, ImageSet, to_tensor
from nas_kd.device import best_device, numerics, synchroniser
from nas_kd.errors import MeterError
from nas_kd.files import write_text
from nas_kd.measurement.counter import Sensor, UnusableError, find_sensor
from nas_kd.measurement.device_lock import in_use
from nas_kd.measurement.energy import FULL, QUICK, Mode, measure_energy, measured_twice_at_most
from nas_kd.measurement.meters import Meter, find_meter
from nas_kd.measurement.networks import FRAME, MEGAPIXELS, Pass, noise_frame, passes
from nas_kd.measurement.reading import Reading, require_real
from nas_kd.measurement.reading_cache import Key, Readings

EXCLUDED = "entropy coding (CPU)"
ENERGY = "energy.json"
MAX_FRAMES = 24  # as many as the Kodak set has; they lie on the device


def energy_of(meter: Meter, work: Pass, device: str, mode: Mode) -> Reading:
    """Energy of one pass in mJ; taken once more where it is rejected."""
    synchronise = synchroniser(device)

    def once() -> Reading:
        try:
            sensor = sensor_of(device)
        except MeterError as error:
            return Reading.unavailable(str(error))
        except UnusableError as error:
            return Reading.rejected(str(error))
        return measure_energy(meter, work, synchronise=synchronise, mode=mode, sensor=sensor)

    return measured_twice_at_most(once)


@cache
def sensor_of(device: str) -> Sensor:
    """How the device's counter behaves, found once per process under a load of products.

    Raises:
        MeterError: there is no meter.
        UnusableError: the counter stalled or decreased.
    """
    meter = find_meter(device)
    if isinstance(meter, Reading):
        raise MeterError(meter.reason)
    side = 1024 if device.startswith("cuda") else 128  # well under a millisecond each
    a = torch.rand(side, side, device=device)

    def load() -> None:
        torch.mm(a, a)

    return find_sensor(meter, load, synchronise=synchroniser(device))


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
            sensor = sensor_of(device)
    except (MeterError, UnusableError) as error:
        return f"{meter.name}, unusable: {error}"
    looks = {True: "part of the time", False: "all the time", None: "it is not known how often"}
    period = f"a new value every {1000 * sensor.period_s:.3g} ms (measured)"
    return f"{meter.name}, {period}, its sensor looks {looks[sensor.part_time]}"


def frame_energy(student: Student, device: str, mode: Mode = QUICK, part: str = "both") -> Reading:
    """Energy of a part (encoder, decoder, both) on a 768x512 frame in mJ, from the cache where it is known.

    Waits until it has the device alone: not while this process shares it.
    """
    meter = find_meter(device)
    if isinstance(meter, Reading):
        return meter
    try:
        key = _key(student, meter, device, mode, part)
    except MeterError as error:
        return Reading.unavailable(str(error))
    if (known := Readings().get(key)) is not None:
        return known
    work = passes(student.eval().to(device), [noise_frame(device)])[part]
    with in_use(device).exclusive():
        reading = energy_of(meter, work, device, mode)
    Readings().put(key, reading)
    return reading


def _key(student: Student, meter: Meter, device: str, mode: Mode, part: str) -> Key:
    identity = meter.identity()
    return Key(
        arch=student.arch.key,
        part=part,
        device=identity.device,
        driver=identity.driver,
        torch=torch.__version__,
        dtype=str(next(student.parameters()).dtype),
        shape=FRAME,
        mode=mode.name,
        numerics=numerics(device),
    )


def as_frame(image: Image8) -> Tensor:
    """A picture as a frame: repeated to fill it, then cut at its corner."""
    x = to_tensor(image)
    down, across = (math.ceil(FRAME[2 + i] / x.shape[2 + i]) for i in (0, 1))
    return x.repeat(1, 1, down, across)[..., : FRAME[2], : FRAME[3]].contiguous()


def write_front_energy(
    folder: Path, student: Student, images: ImageSet, search: Any, device: str | None = None
) -> None:
    """Measure a trained student on real pictures; ``energy.json`` keeps both figures.

    Args:
        folder: an export's; written only where the search measured energy.
        student: with its trained weights.
        images: real ones, taken in turn.
        search: the reading that the search used, or None where it used none.
        device: the best there is, unless given.
    """
    if search is None:
        return
    device = device or best_device()
    meter, named = find_meter(device), None
    reading = meter if isinstance(meter, Reading) else _on_pictures(meter, student, images, device)
    if not isinstance(meter, Reading):
        with suppress(MeterError):
            named = meter.identity().device
    require_real(reading)
    both = {
        "in_search": search,
        "trained_on_pictures": reading.to_json(),
        "device": named,
        "frame": list(FRAME),
        "excluded": EXCLUDED,
        "data_fingerprint": images.fingerprint,
    }
    write_text(folder / ENERGY, json.dumps(both, indent=1) + "\n")


def _on_pictures(meter: Meter, student: Student, images: ImageSet, device: str) -> Reading:
    frames = [as_frame(image).to(device) for image in images.images[:MAX_FRAMES]]
    work = passes(student.to(device), frames)["both"]
    with in_use(device).exclusive():
        reading = energy_of(meter, work, device, FULL)
    student.cpu()
    return reading
