"""What a study's students are compared with: the teacher's curve or a classical codec's, and the interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nas_kd.data.images import ImageSet, open_images
from nas_kd.data.similarity import MIN_SIDE
from nas_kd.device import best_device
from nas_kd.errors import StudyError, UsageError
from nas_kd.evaluation.bd_rate import MIN_POINTS, BDRate, RDCurve, bd_rate, quality_interval
from nas_kd.evaluation.classical import beside, classical_curve
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.objectives import SIMILAR
from nas_kd.reasons import Reason
from nas_kd.study.events import Listen
from nas_kd.study.settings import TEACHER, Settings
from nas_kd.teachers.curve_cache import measured_once
from nas_kd.teachers.teacher import Teacher

Interval = tuple[float, float]

TRIM = 0.25
"""Share of the teacher's PSNR range left out at each end of the study's interval.

A student trained briefly falls short of the teacher's end points; over the middle half both can be compared."""

CURVES = "curves"
"""Folder of teachers' points in what studies share."""


@dataclass(frozen=True)
class TeacherRecord:
    """What a study keeps of its teacher; earlier versions kept only the name.

    rate: whether its rates are estimated. latent_widths: channels of y and z. curve: its own, whoever the anchor is.
    """

    name: str
    rate: str | None = None
    fingerprint: str | None = None
    latent_widths: tuple[int, ...] | None = None
    curve: RDCurve | None = None


@dataclass(frozen=True)
class Anchor:
    """What students are compared with: a curve, the teacher's or another's, and the quality interval, if any.

    baselines: curves that are drawn beside it. name: whose the curve is. per_image: the teacher's curve on each
    picture, where it is the anchor. similar: the same by MS-SSIM in dB, where a study has that objective.
    """

    curve: RDCurve
    interval_db: Interval | None
    baselines: Mapping[str, RDCurve] = field(default_factory=dict)
    name: str = TEACHER
    per_image: tuple[RDCurve, ...] = ()
    teacher: TeacherRecord = TeacherRecord(TEACHER)
    similar: Anchor | None = None

    def by(self, objective: str) -> Anchor:
        """What BD-rates of this objective are against."""
        if objective != SIMILAR:
            return self
        assert self.similar is not None, "the anchor of a study with this objective has it"
        return self.similar

    @property
    def teacher_curve(self) -> RDCurve:
        """The teacher's own."""
        return self.teacher.curve or self.curve

    def to_json(self) -> dict[str, Any]:
        """As a study keeps it."""
        teacher = self.teacher
        known = {
            "rate": teacher.rate,
            "teacher": teacher.name,
            "teacher_fingerprint": teacher.fingerprint,
            "latent_widths": teacher.latent_widths and list(teacher.latent_widths),
            "teacher_curve": teacher.curve and teacher.curve.to_json(),
        }
        return {
            "name": self.name,
            **{key: value for key, value in known.items() if value is not None},
            **self._compared(),
            "baselines": {name: curve.to_json() for name, curve in self.baselines.items()},
            **({} if self.similar is None else {"ms_ssim": self.similar._compared()}),
        }

    def _compared(self) -> dict[str, Any]:
        return {
            "curve": self.curve.to_json(),
            "interval_db": self.interval_db and list(self.interval_db),
            "per_image": [curve.to_json() for curve in self.per_image],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Anchor:
        """What a study keeps, also where an earlier version did."""
        low_high, baselines = stored["interval_db"], stored.get("baselines", {})
        similar = stored.get("ms_ssim")
        return cls(
            RDCurve.from_json(stored["curve"]),
            (low_high[0], low_high[1]) if low_high else None,
            {name: RDCurve.from_json(curve) for name, curve in baselines.items()},
            stored.get("name", TEACHER),
            tuple(RDCurve.from_json(curve) for curve in stored.get("per_image") or ()),
            _teacher(stored),
            None if similar is None else cls.from_json(similar),
        )


def _teacher(stored: Mapping[str, Any]) -> TeacherRecord:
    widths, curve = stored.get("latent_widths"), stored.get("teacher_curve")
    return TeacherRecord(
        stored.get("teacher", TEACHER),
        stored.get("rate"),
        stored.get("teacher_fingerprint"),
        None if widths is None else tuple(widths),
        None if curve is None else RDCurve.from_json(curve),
    )


def whole_interval(curve: RDCurve) -> Interval | None:
    """The curve's quality interval in dB; None where it has too few levels for any BD-rate."""
    return quality_interval(curve) if len(curve.bpp) >= MIN_POINTS else None


def interval_db(curve: RDCurve) -> Interval | None:
    """The middle of the teacher's PSNR range, over which students are compared, if it has one."""
    whole = whole_interval(curve)
    if whole is None:
        return None
    low, high = whole
    margin = TRIM * (high - low)
    return low + margin, high - margin


def bd_rate_of(anchor: Anchor, measured: Measured) -> BDRate:
    """BD-rate of a measured student over the study's interval, or the reason why there is none."""
    return _bd_rate(anchor, measured.curve())


def similar_bd_rate_of(anchor: Anchor, measured: Measured) -> BDRate:
    """The same with MS-SSIM in dB as quality; decibels that it lacks are such."""
    return _bd_rate(anchor.by(SIMILAR), measured.similarity_curve())


def _bd_rate(anchor: Anchor, curve: RDCurve) -> BDRate:
    if anchor.interval_db is None:
        return BDRate(None, Reason.TOO_FEW_POINTS, None, None, 0.0, (0.0, 0.0))
    return bd_rate(anchor.curve, curve, anchor.interval_db)


def anchor_of(settings: Settings, teacher: Teacher, listen: Listen, cache: Path) -> Anchor:
    """The teacher's estimated R-D curve, or a classical codec's in its place, and the interval.

    cache: the folder of what studies share.
    """
    similar = SIMILAR in settings.objectives
    listen("preparing", "teacher's rate-distortion curve")
    images = open_images(settings.eval_data, "eval")
    measured = measured_once(cache / CURVES, teacher, images, best_device(), similar)
    curve, widths = measured.curve(), tuple(teacher.latent_widths)
    own = TeacherRecord(teacher.name, measured.kind, teacher.fingerprint, widths, curve)
    per_image = tuple(measured.per_image())
    other = _by_similarity(measured) if similar else None
    interval = _interval(settings, curve)
    anchor = Anchor(curve, interval, beside(images), TEACHER, per_image, own, other)
    return anchor if settings.anchor == TEACHER else _classical(anchor, settings.anchor, images)


def _by_similarity(measured: Measured) -> Anchor:
    """The teacher's curve by MS-SSIM in dB, its interval, and the pictures' own curves."""
    curve = measured.similarity_curve()
    if not all(math.isfinite(db) for db in curve.psnr_db):
        raise UsageError(
            f"objective {SIMILAR}: an evaluation picture is under {MIN_SIDE} px on a side, and has no MS-SSIM; take "
            "larger ones (--eval-data)"
        )
    each = tuple(measured.similarity_per_image())
    return Anchor(curve, interval_db(curve), per_image=each)


def _interval(settings: Settings, curve: RDCurve) -> Interval | None:
    """The study's interval; none where no BD-rate is asked for and the curve cannot serve for one."""
    try:
        return interval_db(curve)
    except StudyError:
        if "bd_rate" in settings.objectives:
            raise
        return None


def _classical(anchor: Anchor, name: str, images: ImageSet) -> Anchor:
    """A classical codec in the teacher's place; the interval is the teacher's, as far as the codec reaches.

    Pictures' own BD-rates, and with them the report's bars, are left out.
    """
    curve, interval = classical_curve(name, images), anchor.interval_db
    low, high = quality_interval(curve)
    if interval is not None:
        interval = max(interval[0], low), min(interval[1], high)
        if not interval[0] < interval[1]:
            raise UsageError(
                f"anchor = {name}: its {low:.2f} to {high:.2f} dB lie outside the teacher's range; take another"
            )
    return replace(anchor, name=name, curve=curve, interval_db=interval, per_image=())
