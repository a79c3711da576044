"""The front's energy once more, with trained weights on real pictures, and what its entropy coding costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from nas_kd.codec.networks import FRAME
from nas_kd.codec.student import Student
from nas_kd.data.images import ImageSet
from nas_kd.device import best_device
from nas_kd.errors import MeterError
from nas_kd.files import write_text
from nas_kd.measurement.codec_energy import ENERGY, EXCLUDED, as_frame, energy_of, pass_of
from nas_kd.measurement.device_lock import in_use
from nas_kd.measurement.energy import FULL
from nas_kd.measurement.entropy_coding_cost import coding_cost
from nas_kd.measurement.latency import QUICK_RUNS
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.reading import Reading, require_real
from nas_kd.objectives import TABLE, of_kind

MAX_FRAMES = 24  # as many as the Kodak set has; they lie on the device


def write_front_energy(
    folder: Path,
    student: Student,
    images: ImageSet,
    in_search: Mapping[str, Reading],
    device: str | None = None,
) -> None:
    """Measure a trained student on real pictures; ``energy.json`` keeps both figures and entropy coding's.

    Args:
        folder: an export's; written only where the search measured energy.
        student: with its trained weights and its coding tables.
        images: real ones, taken in turn.
        in_search: by objective, the readings that the search used.
        device: the best there is, unless given.
    """
    names = [name for name in of_kind(tuple(TABLE), "energy") if name in in_search]
    if not names:
        return
    device = device or best_device()
    readings = {name: _on_pictures(student, images, device, name) for name in names}
    for reading in readings.values():
        require_real(reading)
    coding = coding_cost(student.cpu(), as_frame(images.images[0]), QUICK_RUNS["cpu"])
    both = {
        "in_search": in_search[names[0]].to_json(),
        "trained_on_pictures": readings[names[0]].to_json(),
        "parts": {
            name: {
                "in_search": in_search[name].to_json(),
                "trained_on_pictures": readings[name].to_json(),
            }
            for name in names
        },
        "device": _device_named(device),
        "entropy_coding": coding,
        "frame": list(FRAME),
        "excluded": EXCLUDED,
        "data_fingerprint": images.fingerprint,
    }
    write_text(folder / ENERGY, json.dumps(both, indent=1) + "\n")


def _device_named(device: str) -> str | None:
    meter = find_meter(device)
    if isinstance(meter, Reading):
        return None
    with suppress(MeterError):
        return meter.identity().device
    return None


def _on_pictures(student: Student, images: ImageSet, device: str, name: str) -> Reading:
    meter = find_meter(device)
    if isinstance(meter, Reading):
        return meter
    frames = [as_frame(image).to(device) for image in images.images[:MAX_FRAMES]]
    with in_use(device).exclusive():
        work = pass_of(student.to(device), frames, TABLE[name].part, device)
        reading = energy_of(meter, work, device, FULL)
    student.cpu()
    return reading
