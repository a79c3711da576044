"""What a classical codec gives and costs on a set of pictures: rate, PSNR, MS-SSIM, time, energy of the CPU."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nas_kd.data.image_file import Image8
from nas_kd.data.images import ImageSet
from nas_kd.data.metrics import psnr_db
from nas_kd.data.similarity import in_db, ms_ssim
from nas_kd.evaluation.classical import CODECS, from_file, lacking, to_file
from nas_kd.measurement.codec_energy import energy_of
from nas_kd.measurement.device_lock import in_use
from nas_kd.measurement.energy import QUICK
from nas_kd.measurement.meter import Meter
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.reading import Reading


@dataclass(frozen=True)
class Point:
    """A codec at one setting: means over pictures; times per 10^6 pixels, on one thread where the codec allows."""

    options: dict[str, Any]
    bpp: float
    psnr_db: float
    ms_ssim: float | None
    encode_ms_per_mpx: float
    decode_ms_per_mpx: float


def measured(name: str, images: ImageSet) -> dict[str, Any]:
    """Every point of a codec, and the energy of its encoder and decoder at the middle one.

    Returns:
        codec; points, or the reason why there are none; energy: mJ per 10^6 pixels as readings, absent with a reason
        where the CPU has no meter (a GPU's is never read: these codecs do not run there).
    """
    if (reason := lacking(name)) is not None:
        return {"codec": name, "points": None, "reason": reason}
    kind, _, settings = CODECS[name]
    points = [_point(images, kind, options) for options in settings]
    middle = settings[len(settings) // 2]
    return {
        "codec": name,
        "points": [asdict(point) | {"ms_ssim_db": in_db(point.ms_ssim)} for point in points],
        "reason": None,
        "energy": {"options": middle} | energies(find_meter("cpu"), images, kind, middle),
    }


def _point(images: ImageSet, kind: str, options: dict[str, Any]) -> Point:
    """Means over pictures."""
    each = [_one(image, kind, options) for image in images.images]

    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in each]))

    small = any(one.ms_ssim is None for one in each)
    return Point(
        options,
        mean("bpp"),
        mean("psnr_db"),
        None if small else mean("ms_ssim"),
        mean("encode_ms_per_mpx"),
        mean("decode_ms_per_mpx"),
    )


def _one(image: Image8, kind: str, options: dict[str, Any]) -> Point:
    mpx = image.shape[0] * image.shape[1] / 1e6
    began = time.perf_counter()
    data = to_file(image, kind, options)
    between = time.perf_counter()
    restored = from_file(data)
    ended = time.perf_counter()
    return Point(
        options,
        8e-6 * len(data) / mpx,
        psnr_db(restored, image),
        ms_ssim(restored, image),
        1e3 * (between - began) / mpx,
        1e3 * (ended - between) / mpx,
    )


def energies(
    meter: Meter | Reading, images: ImageSet, kind: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Of encoder and decoder on the largest picture, in mJ per 10^6 pixels."""
    if isinstance(meter, Reading):
        return {"encoder": meter.to_json(), "decoder": meter.to_json()}
    image = max(images.images, key=lambda one: math.prod(one.shape))
    data = to_file(image, kind, options)

    def encode() -> None:
        to_file(image, kind, options)

    def decode() -> None:
        from_file(data)

    mpx = image.shape[0] * image.shape[1] / 1e6
    with in_use("cpu").exclusive():
        return {
            part: _per_megapixel(energy_of(meter, work, "cpu", QUICK), mpx).to_json()
            for part, work in (("encoder", encode), ("decoder", decode))
        }


def _per_megapixel(reading: Reading, mpx: float) -> Reading:
    if reading.value is None or reading.uncertainty is None:
        return reading
    value, doubt = reading.value / mpx, reading.uncertainty / mpx
    return replace(reading, value=value, uncertainty=doubt, unit="mJ/Mpx", details={})
