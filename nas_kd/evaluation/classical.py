"""Classical codecs through Pillow, to compare learned ones with; whole files, mean over pictures.

JPEG XL is there where the package pillow-jxl-plugin is installed.
"""

from __future__ import annotations

import importlib.util
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, features

from nas_kd.data.image_file import Image8
from nas_kd.data.images import ImageSet
from nas_kd.data.metrics import psnr_db
from nas_kd.errors import NasKdError, StudyError, UsageError
from nas_kd.evaluation.bd_rate import RDCurve, bd_rate, common_interval, quality_interval
from nas_kd.reasons import Reason

QUALITIES = (5, 8, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98)
"""Each codec adds its own ends: its curve reaches as far as it can be asked to."""

RATIOS = (1600, 1000, 630, 400, 250, 160, 100, 64, 40, 25, 16, 10, 6.4, 4, 2.5)
"""JPEG 2000 is asked for compression ratios, not for qualities."""

MIN_COMMON_DB = 1.0
"""Below so much of a common interval a BD-rate says nothing."""

JXL = "pillow_jxl"


class Classical(NamedTuple):
    """One of Pillow's codecs: its format, the feature of Pillow or package it needs, its points as options."""

    kind: str
    needs: str
    points: tuple[dict[str, Any], ...]


CODECS = {
    # 4:2:0, optimised Huffman tables.
    "jpeg": Classical(
        "JPEG", "jpg", tuple({"quality": q, "optimize": True} for q in (1, *QUALITIES, 100))
    ),
    # Irreversible 9/7 wavelet and colour transform (Pillow leaves it out by itself), one layer.
    "jpeg2000": Classical(
        "JPEG2000",
        "jpg_2000",
        tuple({"irreversible": True, "mct": 1, "quality_layers": [ratio]} for ratio in RATIOS),
    ),
    # Lossy, the slowest method.
    "webp": Classical(
        "WEBP", "webp", tuple({"quality": q, "method": 6} for q in (0, 2, *QUALITIES, 100))
    ),
    # 4:2:0, libavif's default speed.
    "avif": Classical(
        "AVIF", "avif", tuple({"quality": q, "speed": 6} for q in (0, *QUALITIES, 100))
    ),
    # Lossy (100 would be without loss), the plugin's default effort.
    "jpegxl": Classical(
        "JXL", JXL, tuple({"quality": q, "lossless": False} for q in (0, *QUALITIES, 99))
    ),
}


def check_names(names: list[str]) -> list[str]:
    """The names of known codecs; raises UsageError at another."""
    for name in names:
        if name not in CODECS:
            raise UsageError(f"codec '{name}' is unknown: choose from {', '.join(CODECS)}")
    return names


def lacking(name: str) -> str | None:
    """Why a codec cannot be used here; None where it can."""
    codec = CODECS[name]
    if codec.needs == JXL:
        if importlib.util.find_spec(JXL) is None:
            return "package pillow-jxl-plugin is not installed: pip install 'nas-kd[jpegxl]'"
        importlib.import_module(JXL)  # makes the format known to Pillow
        return None
    if not features.check(codec.needs):
        return f"this Pillow was built without {codec.kind}: install another build"
    return None


def classical_curve(name: str, images: ImageSet, every: int = 1) -> RDCurve:
    """The R-D curve of a codec by every so many of its points; raises NasKdError where it is not there.

    At the ends of its range a codec may give the same file again, or more bits for nothing: such points are left out.
    """
    if (reason := lacking(name)) is not None:
        raise NasKdError(reason)
    codec = CODECS[name]
    points = rising(
        [classical_point(images, codec.kind, options) for options in codec.points[::every]]
    )
    return RDCurve(tuple(p[0] for p in points), tuple(p[1] for p in points))


def rising(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (rate, quality) pairs by rate, without those that are no better than one of less rate."""
    kept: list[tuple[float, float]] = []
    for rate, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or quality > kept[-1][1]:
            kept.append((rate, quality))
    return kept


def to_file(image: Image8, kind: str, options: dict[str, Any]) -> bytes:
    """A picture as a whole file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def from_file(data: bytes) -> Image8:
    """The picture in a file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def webp_of_size(image: Image8, size: int) -> bytes:
    """The lossy WebP file whose length is nearest to so many bytes, of all its qualities."""
    low, high, files = 0, 100, dict[int, bytes]()
    while low <= high:
        middle = (low + high) // 2
        files[middle] = to_file(image, "WEBP", {"quality": middle, "method": 6})
        if len(files[middle]) < size:
            low = middle + 1
        else:
            high = middle - 1
    return min(files.values(), key=lambda data: abs(len(data) - size))


def compare(name: str, images: ImageSet, curve: RDCurve) -> dict[str, Any]:
    """BD-rate of a curve against a codec over the curve's own quality interval, or the reason why not."""
    try:
        anchor = classical_curve(name, images)
    except StudyError as error:
        return {"bd_rate": None, "reason": f"unsound curve: {error}", "curve": None}
    except NasKdError as error:
        return {"bd_rate": None, "reason": str(error), "curve": None}
    return against(anchor, curve)


def against(anchor: RDCurve, curve: RDCurve) -> dict[str, Any]:
    """BD-rate of a curve against an anchor's over the curve's own quality interval, or the reason why not.

    Where the anchor covers only a part of it, ``common`` has the BD-rate over that part, with the part: another figure,
    which compares with no other's.
    """
    try:
        found = bd_rate(anchor, curve, quality_interval(curve))
    except StudyError as error:
        return {"bd_rate": None, "reason": f"unsound curve: {error}", "curve": None}
    partly = found.reason == Reason.PARTIAL_OVERLAP
    return {
        "common": _over_common(anchor, curve) if partly else None,
        "bd_rate": found.value,
        "reason": found.reason,
        "pchip": found.pchip,
        "bd_psnr_db": found.bd_psnr_db,
        "interval_db": list(found.interval_db),
        "curve": anchor.to_json(),
    }


def _over_common(anchor: RDCurve, curve: RDCurve) -> dict[str, Any] | None:
    low, high = common_interval(anchor, curve)
    if high - low < MIN_COMMON_DB:
        return None
    found = bd_rate(anchor, curve, (low, high))
    return {"bd_rate": found.value, "reason": found.reason, "interval_db": [low, high]}


def in_words(found: dict[str, Any]) -> str:
    """What ``compare`` found, for people: never one interval's figure for another's."""
    if found["bd_rate"] is not None:
        return f"{found['bd_rate']:+.2f} %"
    said = f"absent ({found['reason']})"
    if not (common := found.get("common")) or common["bd_rate"] is None:
        return said
    (low, high), (own_low, own_high) = common["interval_db"], found["interval_db"]
    return (
        f"{said} over its own {own_low:.2f} to {own_high:.2f} dB; "
        f"{common['bd_rate']:+.2f} % over the {low:.2f} to {high:.2f} dB that both cover"
    )


def beside(images: ImageSet) -> dict[str, RDCurve]:
    """The curves that stand beside learned ones in plots: JPEG's, WebP's and AVIF's, where this Pillow has them.

    By every second point: a plot needs no more, and AVIF takes its time.
    """
    there = {"JPEG": "jpeg", "WebP": "webp", "AVIF": "avif"}
    return {
        label: classical_curve(name, images, every=2)
        for label, name in there.items()
        if lacking(name) is None
    }


def jpeg_curve(images: ImageSet) -> RDCurve:
    """Pillow's JPEG."""
    return classical_curve("jpeg", images)


def webp_curve(images: ImageSet) -> RDCurve:
    """Pillow's lossy WebP."""
    return classical_curve("webp", images)


def classical_point(images: ImageSet, kind: str, options: dict[str, Any]) -> tuple[float, float]:
    """Mean bits per pixel of whole files and mean PSNR of one of Pillow's formats with these options."""
    rates, qualities = [], []
    for image in images.images:
        data = to_file(image, kind, options)
        rates.append(8 * len(data) / (image.shape[0] * image.shape[1]))
        qualities.append(psnr_db(from_file(data), image))
    return float(np.mean(rates)), float(np.mean(qualities))
