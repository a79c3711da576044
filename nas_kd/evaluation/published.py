"""Curves that others published on Kodak, and the proof that a set of pictures is Kodak.

The pictures come without checksums, so the set is proved by what JPEG makes of them: CompressAI published rate and
PSNR of Pillow's JPEG at 19 qualities, and libjpeg-turbo's integer transform gives the same bits in every version.
``docs/published.md`` says what that tells apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from PIL import features

from nas_kd.data.images import ImageSet, held
from nas_kd.errors import StudyError, UsageError
from nas_kd.evaluation.bd_rate import RDCurve, bd_rate, common_interval
from nas_kd.evaluation.classical import CODECS, MIN_COMMON_DB, against, classical_point
from nas_kd.places import ASSETS

SHOWN = ("vtm", "cheng2020-anchor", "bmshj2018-hyperprior")
ANCHOR = "bmshj2018-hyperprior"
"""What published BD-rates are against here."""
FILE = ASSETS / "published.json"
QUALITY_STEP = 5
"""Between the published points of JPEG, which begin with it."""

RATE_BPP = 5e-4
"""By so much a mean rate may differ: 24 bytes a file, for headers that another Pillow writes otherwise."""
PSNR_DB = 5e-3
"""By so much a mean PSNR may differ: rounding; another picture among the 24 moves it further."""


class Published(NamedTuple):
    """A curve, whence it is, and of what kind its rates are: bpp (real), bpp_est, or unknown."""

    curve: RDCurve
    source: str
    rate: str


class Decoder(NamedTuple):
    """A published codec's decoder: kMAC per pixel, and BD-rate in per cent against ``ANCHOR`` on Kodak.

    converted: the BD-rate was published against another codec.
    """

    kmac_px: float
    bd_rate: float | None
    source: str
    converted: bool


@dataclass(frozen=True)
class Proof:
    """What a set must be: so many pictures of these (height, width), and JPEG's (bpp, dB) on them by quality."""

    name: str
    pictures: int
    sizes: frozenset[tuple[int, int]]
    jpeg: dict[int, tuple[float, float]]


@cache
def _data() -> dict[str, Any]:
    return json.loads(FILE.read_text())


@cache
def published() -> dict[str, Published]:
    """The curves by name."""
    return {
        name: Published(RDCurve.from_json(found), found["source"], found["rate"])
        for name, found in _data()["curves"].items()
    }


@cache
def decoders() -> dict[str, Decoder]:
    """Published codecs by name whose decoders' costs are known; BD-rates by their curves where there are curves."""
    return {
        name: Decoder(
            found["decoder_kmac_px"],
            found["bd_rate"]
            if "bd_rate" in found
            else against_anchor(published()[found["curve"]].curve),
            found["source"],
            found.get("converted", False),
        )
        for name, found in _data()["decoders"].items()
    }


def against_anchor(curve: RDCurve) -> float | None:
    """BD-rate of a curve on Kodak against ``ANCHOR``, over the PSNR that both cover; None where there is none."""
    anchor = published()[ANCHOR].curve
    low, high = common_interval(anchor, curve)
    if high - low < MIN_COMMON_DB:
        return None
    with suppress(StudyError):
        return bd_rate(anchor, curve, (low, high)).value
    return None


@cache
def kodak() -> Proof:
    """What Kodak's pictures are."""
    data = _data()
    curve = published()[data["proof"]["curve"]].curve
    points = list(zip(curve.bpp, curve.psnr_db, strict=True))
    jpeg = {q: points[q // QUALITY_STEP - 1] for q in data["proof"]["qualities"]}
    sizes = frozenset((height, width) for height, width in data["sizes"])
    return Proof("Kodak", data["pictures"], sizes, jpeg)


def shown() -> dict[str, RDCurve]:
    """The curves that a report draws, of real bitstreams: the standard, the zoo's anchor and its best."""
    return {name: published()[name].curve for name in SHOWN}


def split_names(text: str) -> tuple[list[str], list[str]]:
    """Of names by comma, each once: the classical codecs that are measured here, and the published curves.

    Raises:
        UsageError: a name that is neither.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if (reason := _data()["no_curve"].get(name)) is not None:
            raise UsageError(f"'{name}' cannot be compared with: {reason}")
        if name not in CODECS and name not in published():
            known = f"{', '.join(CODECS)}; on Kodak's pictures also {', '.join(published())}"
            raise UsageError(f"codec '{name}' is unknown: choose from {known}")
    return [n for n in names if n in CODECS], [n for n in names if n not in CODECS]


def require_kodak(images: ImageSet, names: list[str]) -> None:
    """Raise UsageError where curves are asked for by name that are not of these pictures."""
    if names and (reason := differs(images, kodak())) is not None:
        raise UsageError(
            f"{', '.join(names)}: published on Kodak's pictures, and {images.name} {reason}; judge on Kodak, "
            "or leave them out"
        )


def is_kodak(images: ImageSet) -> bool:
    """Whether the pictures are Kodak's, whatever they are called."""
    return differs(images, kodak()) is None


def differs(images: ImageSet, proof: Proof) -> str | None:
    """Why a set is not the one of the proof; None where it is. Names do not count, pixels do."""
    if len(images) != proof.pictures:
        return f"has {len(images)} picture{'s' * (len(images) != 1)}, not {proof.pictures}"
    if others := sorted(set(images.sizes) - proof.sizes):
        height, width = others[0]
        return f"has a picture of {width}x{height}, which none of {proof.name}'s is"
    if not features.check_feature("libjpeg_turbo"):
        return "cannot be proved to be it: this Pillow's JPEG is not libjpeg-turbo's"
    return next(_misses(held(images), proof), None)


def _misses(images: ImageSet, proof: Proof) -> Iterator[str]:
    for quality, (bpp, psnr_db) in proof.jpeg.items():
        found = classical_point(images, "JPEG", {"quality": quality})
        if abs(found[0] - bpp) > RATE_BPP or abs(found[1] - psnr_db) > PSNR_DB:
            yield (
                f"is another set: JPEG at quality {quality} takes {found[0]:.4f} bpp for {found[1]:.3f} dB there, "
                f"{bpp:.4f} bpp for {psnr_db:.3f} dB on {proof.name}"
            )


def against_published(name: str, curve: RDCurve) -> dict[str, Any]:
    """BD-rate of a curve on Kodak against a published one, with its source, or the reason why there is none."""
    other = published()[name]
    return against(other.curve, curve) | {"source": other.source, "rate": other.rate}
