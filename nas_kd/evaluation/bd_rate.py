"""BD-rate and BD-PSNR of one rate-distortion curve against another, or the reason there is none.

log10 rate is interpolated over PSNR (Bjontegaard, VCEG-M33) by Akima's method and by PCHIP, as in
the `bjontegaard` package, which integrates over whatever two curves happen to share. Students are
only comparable over one interval, so here the interval is given and nothing is extrapolated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator, PPoly

from nas_kd.errors import StudyError
from nas_kd.reasons import Reason

Interval = tuple[float, float]
Floats = NDArray[np.float64]

MIN_POINTS = 4
MIN_COVERAGE = 0.95
MAX_DISAGREEMENT_POINTS = 0.5  # percentage points between akima and pchip


@dataclass(frozen=True)
class RDCurve:
    """Rates and qualities of one codec, pair by pair; kept sorted by rate."""

    bpp: tuple[float, ...]
    psnr_db: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.bpp) != len(self.psnr_db):
            raise StudyError(
                f"R-D curve with {len(self.bpp)} rates and {len(self.psnr_db)} qualities: "
                "every point needs both"
            )
        pairs = sorted((float(r), float(q)) for r, q in zip(self.bpp, self.psnr_db, strict=True))
        object.__setattr__(self, "bpp", tuple(rate for rate, _ in pairs))
        object.__setattr__(self, "psnr_db", tuple(quality for _, quality in pairs))

    def to_json(self) -> dict[str, list[float | None]]:
        """The curve as a plain dict; what is not finite becomes null, which JSON can hold."""
        return {
            "bpp": [rate if math.isfinite(rate) else None for rate in self.bpp],
            "psnr_db": [quality if math.isfinite(quality) else None for quality in self.psnr_db],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Sequence[float | None]]) -> "RDCurve":
        """Undo `to_json`; null becomes nan.

        Raises:
            StudyError: a key is missing or a value is no number.
        """
        try:
            columns = [
                tuple(math.nan if value is None else float(value) for value in stored[key])
                for key in ("bpp", "psnr_db")
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise StudyError(
                f"stored R-D curve {stored!r:.80} cannot be read: it must hold the lists of "
                "numbers 'bpp' and 'psnr_db'"
            ) from error
        return cls(*columns)


@dataclass(frozen=True)
class BDRate:
    """BD-rate in percent (negative: fewer bits than the anchor), or the reason there is none.

    Without a value, `pchip` and `bd_psnr_db` are absent too; `bd_psnr_db` is taken over the rates
    both curves share, and absent where they share none. `uncovered_db` is what a curve lacks of
    the interval; for one wholly outside it is the interval's length plus the gap.
    """

    value: float | None
    reason: Reason | None
    pchip: float | None
    bd_psnr_db: float | None
    uncovered_db: float
    interval_db: Interval

    @property
    def constraint_db(self) -> float:
        """Above 0 where too little is covered: what to hand a sampler as the constraint.

        0 for every curve with a value, even one that lacks a few percent; also 0 for a curve that
        covers the interval and has no value for another reason.
        """
        return self.uncovered_db if self.value is None else 0.0


class BootstrapBDRate(NamedTuple):
    """Mean of per-image BD-rates in percent with its interval; None where it cannot be had."""

    mean: float | None
    low: float | None
    high: float | None
    n_valid: int


def quality_interval(anchor: RDCurve) -> Interval:
    """Lowest and highest PSNR of the anchor, in dB.

    Raises:
        StudyError: a curve that no BD-rate can be taken against.
    """
    if reason := _curve_defect(anchor):
        raise StudyError(
            f"anchor's R-D curve is {reason}: {list(anchor.psnr_db)} dB at {list(anchor.bpp)} bpp; "
            f"it needs {MIN_POINTS} points or more, with rate and PSNR both increasing: evaluate "
            "the anchor again, or at other levels"
        )
    return anchor.psnr_db[0], anchor.psnr_db[-1]


def common_interval(anchor: RDCurve, test: RDCurve) -> Interval:
    """The PSNR that both curves cover, in dB; its ends are not in order where they share none."""
    return _span(anchor, test, (-math.inf, math.inf))


def bd_rate(anchor: RDCurve, test: RDCurve, interval_db: Interval | None = None) -> BDRate:
    """BD-rate of `test` over `interval_db`, by default the anchor's whole quality interval.

    Raises:
        StudyError: an anchor that is no sound curve (it would void every figure), or an interval
            that is empty or not finite.
    """
    anchor_db = quality_interval(anchor)
    interval = anchor_db if interval_db is None else _checked(interval_db)
    uncovered_db = max(_uncovered_db(curve, interval) for curve in (anchor, test))
    reason = _curve_defect(test) or _coverage_defect(_span(anchor, test, interval), interval)
    if reason is None:
        akima, pchip = _rate_changes_percent(anchor, test, _span(anchor, test, interval))
        reason = _figure_defect(akima, pchip)
    if reason is not None:
        return BDRate(None, reason, None, None, uncovered_db, interval)
    return BDRate(akima, None, pchip, _bd_psnr_db(anchor, test), uncovered_db, interval)


def per_image_bd_rates(
    anchor_per_image: Sequence[RDCurve],
    test_per_image: Sequence[RDCurve],
    intervals_db: Sequence[Interval | None],
) -> list[float | None]:
    """BD-rate of each image in percent; None where there is none, or its anchor is no sound curve."""
    return [
        bd_rate(anchor, test, interval).value if _curve_defect(anchor) is None else None
        for anchor, test, interval in zip(
            anchor_per_image, test_per_image, intervals_db, strict=True
        )
    ]


def bootstrap_bd_rate(
    anchor_per_image: Sequence[RDCurve],
    test_per_image: Sequence[RDCurve],
    *,
    seed: int,
    intervals_db: Sequence[Interval] | None = None,
    resamples: int = 1000,
) -> BootstrapBDRate:
    """Mean per-image BD-rate with a 95 % bootstrap interval over images (BCa: Efron, JASA 1987).

    Images have quality ranges of their own, so each is integrated over its anchor's interval
    unless `intervals_db` says otherwise. Images without a BD-rate are left out and `n_valid`
    counts the rest; fewer than two give no interval.

    Raises:
        StudyError: the lists differ in length, or `resamples` is below 1.
    """
    intervals = [None] * len(anchor_per_image) if intervals_db is None else intervals_db
    counts = len(anchor_per_image), len(test_per_image), len(intervals)
    if len(set(counts)) > 1 or resamples < 1:
        raise StudyError(
            f"per-image BD-rate from {counts[0]} anchor curves, {counts[1]} test curves, "
            f"{counts[2]} intervals and {resamples} resamples: give one of each per image, and at "
            "least 1 resample"
        )
    figures = per_image_bd_rates(anchor_per_image, test_per_image, intervals)
    return _bootstrap(np.array([v for v in figures if v is not None]), seed, resamples)


def _bootstrap(values: Floats, seed: int, resamples: int) -> BootstrapBDRate:
    n_valid = len(values)
    mean = float(values.mean()) if n_valid else None
    if n_valid < 2:
        return BootstrapBDRate(mean, None, None, n_valid)
    if np.ptp(values) == 0:  # BCa corrects by how the values vary
        return BootstrapBDRate(mean, mean, mean, n_valid)
    from scipy.stats import bootstrap  # its import takes longer than all that a curve needs

    rng = np.random.default_rng(seed)
    found = bootstrap((values,), np.mean, n_resamples=resamples, method="BCa", rng=rng)
    low, high = found.confidence_interval
    return BootstrapBDRate(mean, float(low), float(high), n_valid)


def _curve_defect(curve: RDCurve) -> Reason | None:
    """What keeps log rate from being a function of PSNR, if anything does."""
    rates, qualities = np.array(curve.bpp), np.array(curve.psnr_db)
    if len(rates) < MIN_POINTS:
        return Reason.TOO_FEW_POINTS
    if not (np.isfinite(rates).all() and np.isfinite(qualities).all() and (rates > 0).all()):
        return Reason.NOT_FINITE  # a rate of zero has no finite logarithm
    if (np.diff(np.log10(rates)) <= 0).any() or (np.diff(qualities) <= 0).any():
        return Reason.NON_MONOTONE
    return None


def _checked(interval_db: Interval) -> Interval:
    low, high = interval_db
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise StudyError(
            f"quality interval ({low}, {high}) dB: give two finite PSNRs, the lower one first"
        )
    return float(low), float(high)


def _uncovered_db(curve: RDCurve, interval: Interval) -> float:
    """What the curve's range lacks below and above; length plus gap when it lies outside."""
    known = [quality for quality in curve.psnr_db if math.isfinite(quality)]
    low, high = interval
    if not known:
        return high - low
    return max(min(known) - low, 0.0) + max(high - max(known), 0.0)


def _span(anchor: RDCurve, test: RDCurve, interval: Interval) -> Interval:
    """The part of the interval that both curves cover; empty when its ends are not in order."""
    low = max(interval[0], anchor.psnr_db[0], test.psnr_db[0])
    return low, min(interval[1], anchor.psnr_db[-1], test.psnr_db[-1])


def _coverage_defect(span: Interval, interval: Interval) -> Reason | None:
    covered = (span[1] - span[0]) / (interval[1] - interval[0])
    if covered <= 0:
        return Reason.NO_OVERLAP
    return Reason.PARTIAL_OVERLAP if covered < MIN_COVERAGE else None


def _figure_defect(akima: float, pchip: float) -> Reason | None:
    if not (math.isfinite(akima) and math.isfinite(pchip)):
        return Reason.NOT_FINITE
    return Reason.INTERPOLATORS_DISAGREE if abs(akima - pchip) > MAX_DISAGREEMENT_POINTS else None


def _rate_changes_percent(anchor: RDCurve, test: RDCurve, span: Interval) -> tuple[float, float]:
    """BD-rate over the span by Akima and by PCHIP; infinite where the ratio overflows."""
    knots = [(np.array(curve.psnr_db), np.log10(curve.bpp)) for curve in (anchor, test)]
    gaps = [_mean_gap(method, knots, span) for method in (Akima1DInterpolator, PchipInterpolator)]
    with np.errstate(over="ignore"):
        akima, pchip = 100 * np.expm1(np.log(10) * np.array(gaps))
    return float(akima), float(pchip)


def _bd_psnr_db(anchor: RDCurve, test: RDCurve) -> float | None:
    """Mean PSNR gained at equal rate, by Akima over the shared rates; None where there are none."""
    knots = [(np.log10(curve.bpp), np.array(curve.psnr_db)) for curve in (anchor, test)]
    low, high = max(rate[0] for rate, _ in knots), min(rate[-1] for rate, _ in knots)
    return _mean_gap(Akima1DInterpolator, knots, (low, high)) if low < high else None


def _mean_gap(method: type[PPoly], knots: list[tuple[Floats, Floats]], span: Interval) -> float:
    """Mean over the span of the second interpolant minus the first."""
    anchor, test = (method(*pair).integrate(*span, extrapolate=False) for pair in knots)
    return float(test - anchor) / (span[1] - span[0])
