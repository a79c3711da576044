"""Laws of BD-rate, held against published curves, closed forms and the `bjontegaard` package."""

import dataclasses
import json
import math
from pathlib import Path

import bjontegaard
import numpy as np
import pytest

from nas_kd.errors import StudyError
from nas_kd.evaluation.bd_rate import BDRate, RDCurve, bd_rate, bootstrap_bd_rate, quality_interval

KODAK = json.loads((Path(__file__).parents[1] / "expected" / "kodak_bd.json").read_text())
CURVES = {name: RDCurve.from_json(curve) for name, curve in KODAK["curves"].items()}
HYPERPRIOR = CURVES["bmshj2018-hyperprior"]
PUBLISHED = [
    (test, anchor, percent)
    for test, row in KODAK["bd_rate_percent"].items()
    for anchor, percent in row.items()
]
LINE = RDCurve((0.1, 0.2, 0.4, 0.8, 1.6), (28.0, 30.0, 32.0, 34.0, 36.0))


def shared_interval(a, b):
    return max(a.psnr_db[0], b.psnr_db[0]), min(a.psnr_db[-1], b.psnr_db[-1])


def part(curve, first, last):
    """The curve's qualities `first` to `last`, counted from 1."""
    return RDCurve(curve.bpp[first - 1 : last], curve.psnr_db[first - 1 : last])


def scaled(curve, factor):
    return RDCurve([factor * rate for rate in curve.bpp], curve.psnr_db)


def shifted(curve, gain_db):
    return RDCurve(curve.bpp, [quality + gain_db for quality in curve.psnr_db])


def by_package(function, anchor, test, method):
    points = (anchor.bpp, anchor.psnr_db, test.bpp, test.psnr_db)
    return function(*points, method=method, require_matching_points=False, min_overlap=0)


@pytest.mark.parametrize(("test", "anchor", "percent"), PUBLISHED)
def test_published_curves_give_the_published_bd_rates(test, anchor, percent):
    interval = shared_interval(CURVES[anchor], CURVES[test])
    result = bd_rate(CURVES[anchor], CURVES[test], interval)
    assert round(result.value, 2) == percent
    assert result.pchip == pytest.approx(percent, abs=0.1)


@pytest.mark.parametrize("test", sorted(CURVES))
@pytest.mark.parametrize("anchor", sorted(CURVES))
def test_over_the_shared_range_every_figure_is_the_packages(anchor, test):
    a, b = CURVES[anchor], CURVES[test]
    result = bd_rate(a, b, shared_interval(a, b))
    assert result.value == pytest.approx(by_package(bjontegaard.bd_rate, a, b, "akima"), abs=1e-6)
    assert result.pchip == pytest.approx(by_package(bjontegaard.bd_rate, a, b, "pchip"), abs=1e-6)
    gain_db = by_package(bjontegaard.bd_psnr, a, b, "akima")
    assert result.bd_psnr_db == pytest.approx(gain_db, abs=1e-6)


def test_the_quality_interval_decides_the_figure():
    mbt2018 = CURVES["mbt2018"]
    high = part(HYPERPRIOR, 3, 6), part(mbt2018, 3, 6)
    assert round(bd_rate(*high, shared_interval(*high)).value, 1) == -13.8
    low = part(HYPERPRIOR, 1, 3), part(mbt2018, 1, 3)
    assert round(by_package(bjontegaard.bd_rate, *low, "akima"), 1) == -21.4
    # Three points are refused; the whole curves over the same interval say nearly the same.
    assert bd_rate(HYPERPRIOR, low[1], shared_interval(*low)).reason == "too_few_points"
    assert round(bd_rate(HYPERPRIOR, mbt2018, shared_interval(*low)).value, 1) == -21.5


@pytest.mark.parametrize("name", sorted(CURVES))
def test_a_curve_against_itself_is_zero(name):
    result = bd_rate(CURVES[name], CURVES[name])
    assert (result.value, result.pchip, result.bd_psnr_db, result.uncovered_db) == (0, 0, 0, 0)
    assert result.interval_db == quality_interval(CURVES[name])


@pytest.mark.parametrize("factor", [0.5, 1.1, 3.0])
def test_scaling_all_rates_changes_the_bd_rate_by_that_factor(factor):
    result = bd_rate(HYPERPRIOR, scaled(HYPERPRIOR, factor))
    assert result.value == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert result.pchip == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_a_gain_in_psnr_is_the_bd_psnr_and_its_slope_the_bd_rate():
    # LINE doubles its rate every 2 dB, so 0.05 dB are 2 ** (-0.025) of the rate.
    result = bd_rate(LINE, shifted(LINE, 0.05))
    assert result.bd_psnr_db == pytest.approx(0.05)
    assert result.value == pytest.approx(100 * (2**-0.025 - 1))


def test_exchanging_the_curves_inverts_the_ratio():
    a, b = CURVES["cheng2020-anchor"], CURVES["mbt2018"]
    interval = shared_interval(a, b)
    there, back = bd_rate(a, b, interval).value, bd_rate(b, a, interval).value
    assert (1 + there / 100) * (1 + back / 100) == pytest.approx(1)


def test_bd_psnr_is_absent_where_no_rate_is_shared():
    result = bd_rate(HYPERPRIOR, scaled(HYPERPRIOR, 20))
    assert result.value == pytest.approx(1900)
    assert result.bd_psnr_db is None


def test_only_the_interval_counts():
    inside = bd_rate(HYPERPRIOR, CURVES["vtm"], (30.0, 32.0)).value
    outside = RDCurve(CURVES["vtm"].bpp, [*CURVES["vtm"].psnr_db[:-1], 60.0])
    assert bd_rate(HYPERPRIOR, outside, (30.0, 32.0)).value == pytest.approx(inside, abs=1e-9)


BAD = {
    "too_few_points": part(LINE, 2, 4),
    "not_finite": RDCurve(LINE.bpp, (28.0, 30.0, math.nan, 34.0, 36.0)),
    "non_monotone": RDCurve(LINE.bpp, (28.0, 30.0, 33.0, 32.9, 36.0)),
    "no_overlap": shifted(LINE, -9.0),
    "partial_overlap": shifted(LINE, -0.5),
    "interpolators_disagree": RDCurve((0.1, 0.11, 0.9, 0.95, 1.6), LINE.psnr_db),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_curve_at_fault_gives_its_reason_and_no_figure(reason):
    result = bd_rate(LINE, BAD[reason])
    assert (result.value, result.pchip, result.bd_psnr_db) == (None, None, None)
    assert result.reason == reason


@pytest.mark.parametrize(
    ("bpp", "psnr_db", "reason"),
    [
        ((), (), "too_few_points"),
        ((0.0, 0.2, 0.4, 0.8, 1.6), LINE.psnr_db, "not_finite"),
        ((-0.1, 0.2, 0.4, 0.8, 1.6), LINE.psnr_db, "not_finite"),
        ((0.1, 0.2, 0.4, 0.8, math.inf), LINE.psnr_db, "not_finite"),
        ((math.nan, 0.2, 0.4, 0.8, 1.6), LINE.psnr_db, "not_finite"),
        ((math.nan,) * 5, (math.nan,) * 5, "not_finite"),
        ((0.1, 0.2, 0.4, 0.8, 1.6), (28, 30, 32, 34, math.inf), "not_finite"),
        ((1e306, 2e306, 4e306, 8e306, 16e306), LINE.psnr_db, "not_finite"),
        ((0.1, 0.2, 0.2, 0.8, 1.6), LINE.psnr_db, "non_monotone"),
        ((0.1, 0.2, 0.4, 0.8, 1.6), (28, 30, 30, 34, 36), "non_monotone"),
        ((0.1, 0.2, 0.4, 0.8, 1.6), (36, 34, 32, 30, 28), "non_monotone"),
    ],
)
def test_what_is_no_curve_is_refused(bpp, psnr_db, reason):
    anchor = scaled(LINE, 1e-10) if max(bpp, default=0) > 1e300 else LINE
    assert bd_rate(anchor, RDCurve(bpp, psnr_db)).reason == reason


@pytest.mark.parametrize("seed", range(50))
def test_a_non_monotone_curve_never_yields_a_number(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 9))
    quality = np.linspace(27, 37, n)
    at = int(rng.integers(n - 1))
    quality[at + 1] = quality[at] - rng.exponential(0.5)
    result = bd_rate(LINE, RDCurve(np.geomspace(0.1, 2, n), quality))
    assert (result.value, result.reason) == (None, "non_monotone")


@pytest.mark.parametrize(
    ("gain_db", "uncovered_db"),
    [(0.0, 0.0), (-0.25, 0.25), (-0.5, 0.5), (3.0, 3.0), (-8.0, 8.0), (-9.0, 9.0), (10.0, 10.0)],
)
def test_uncovered_decibels_grow_with_the_distance_from_the_interval(gain_db, uncovered_db):
    result = bd_rate(LINE, shifted(LINE, gain_db))
    assert result.uncovered_db == pytest.approx(uncovered_db)
    # LINE spans 8 dB, 5 % of which are 0.4 dB.
    assert result.constraint_db == pytest.approx(uncovered_db if uncovered_db > 0.4 else 0)
    assert (result.value is None) == (result.constraint_db > 0)


def test_curves_that_only_touch_do_not_overlap():
    assert bd_rate(LINE, shifted(LINE, -8.0)).reason == "no_overlap"
    assert bd_rate(LINE, shifted(LINE, -7.5)).reason == "partial_overlap"


def test_a_curve_inside_the_interval_lacks_both_ends():
    narrow = RDCurve(LINE.bpp, (29.0, 30.0, 31.0, 32.0, 33.0))
    assert bd_rate(LINE, narrow).uncovered_db == pytest.approx(1 + 3)


def test_a_curve_without_any_finite_quality_lacks_the_whole_interval():
    assert bd_rate(LINE, RDCurve((0.1,), (math.nan,))).uncovered_db == pytest.approx(8)


def test_nothing_is_extrapolated():
    # The missing 0.25 dB (3 %) do not enter: over the rest both curves are LINE.
    short = RDCurve((0.1 * 2**0.125, *LINE.bpp[1:]), (28.25, *LINE.psnr_db[1:]))
    assert bd_rate(LINE, short).value == pytest.approx(0, abs=1e-9)


def test_the_anchor_must_cover_the_interval_too():
    result = bd_rate(LINE, shifted(LINE, 1.0), (30.0, 37.0))
    assert (result.value, result.reason) == (None, "partial_overlap")
    assert result.constraint_db == pytest.approx(1)


@pytest.mark.parametrize("reason", ["too_few_points", "not_finite", "non_monotone"])
def test_an_unsound_anchor_is_an_error(reason):
    for use in (quality_interval, lambda anchor: bd_rate(anchor, LINE, (30.0, 32.0))):
        with pytest.raises(StudyError, match=f"^anchor's R-D curve is {reason}: [^\n]*$"):
            use(BAD[reason])


@pytest.mark.parametrize("interval", [(30.0, 30.0), (32.0, 30.0), (math.nan, 30.0), (30, math.inf)])
def test_a_bad_interval_is_an_error(interval):
    with pytest.raises(StudyError, match="quality interval"):
        bd_rate(LINE, LINE, interval)


def test_points_are_sorted_by_rate_pair_by_pair():
    assert RDCurve(LINE.bpp[::-1], LINE.psnr_db[::-1]) == LINE
    assert RDCurve(np.array([0.2, 0.1]), [30, 28]) == RDCurve((0.1, 0.2), (28.0, 30.0))
    listed = KODAK["curves"]["jpeg2000"]["bpp"]
    assert list(CURVES["jpeg2000"].bpp) == sorted(listed) != listed


def test_a_curve_survives_json():
    for curve in (LINE, HYPERPRIOR):
        assert RDCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve
    stored = json.dumps(BAD["not_finite"].to_json(), allow_nan=False)
    assert math.isnan(RDCurve.from_json(json.loads(stored)).psnr_db[2])


@pytest.mark.parametrize(
    "stored",
    [{"bpp": [1]}, {"bpp": [1], "psnr_db": ["high"]}, {"bpp": 1, "psnr_db": 2}, None, [1, 2]],
)
def test_a_stored_curve_that_cannot_be_read_is_an_error(stored):
    with pytest.raises(StudyError, match="^stored R-D curve [^\n]*$"):
        RDCurve.from_json(stored)


def test_rates_and_qualities_come_in_pairs():
    with pytest.raises(StudyError, match="2 rates and 1 qualities"):
        RDCurve((0.1, 0.2), (30.0,))


def test_a_result_is_plain_json():
    result = bd_rate(HYPERPRIOR, CURVES["mbt2018-mean"])
    stored = json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))
    assert BDRate(**{**stored, "interval_db": tuple(stored["interval_db"])}) == result


def per_image(percents):
    """Anchors of different ranges, and tests that cost `percents` more."""
    anchors = [shifted(LINE, image) for image in range(len(percents))]
    return anchors, [scaled(a, 1 + p / 100) for a, p in zip(anchors, percents, strict=True)]


def test_bootstrap_brackets_the_mean_of_the_images():
    percents = np.random.default_rng(0).normal(5, 2, size=24)
    mean, low, high, n_valid = bootstrap_bd_rate(*per_image(percents), seed=1, resamples=4000)
    assert mean == pytest.approx(percents.mean())
    assert n_valid == 24
    # The normal approximation of the same interval, within the noise of 4,000 resamples.
    half = 1.96 * percents.std() / math.sqrt(24)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_bootstrap_depends_on_its_seed_alone():
    curves = per_image([1, 2, 3, 5, 8])
    assert bootstrap_bd_rate(*curves, seed=1) == bootstrap_bd_rate(*curves, seed=1)
    assert bootstrap_bd_rate(*curves, seed=1) != bootstrap_bd_rate(*curves, seed=2)


def test_bootstrap_of_equal_images_has_no_width():
    result = bootstrap_bd_rate(*per_image([10] * 6), seed=0)
    assert result == pytest.approx((10, 10, 10, 6))


def test_bootstrap_is_corrected_for_skew_and_not_the_percentiles():
    percents = np.array([1.0, 1.2, 1.1, 0.9, 1.0, 1.3, 9.0, 1.1])
    mean, low, high, _ = bootstrap_bd_rate(*per_image(percents), seed=1, resamples=4000)
    draws = np.random.default_rng(0).integers(8, size=(4000, 8))
    plain_low, plain_high = np.percentile(percents[draws].mean(axis=1), [2.5, 97.5])
    assert low > plain_low
    assert high > plain_high + 0.1 * (plain_high - plain_low)


def test_bootstrap_drops_and_counts_images_without_a_bd_rate():
    anchors, tests = per_image([1, 2, 3, 99, 99])
    tests[3] = BAD["non_monotone"]
    anchors[4] = BAD["non_monotone"]
    result = bootstrap_bd_rate(anchors, tests, seed=0)
    assert (result.mean, result.n_valid) == (pytest.approx(2), 3)


def test_bootstrap_claims_no_interval_it_cannot_have():
    assert bootstrap_bd_rate(*per_image([7]), seed=0) == (pytest.approx(7), None, None, 1)
    assert bootstrap_bd_rate([], [], seed=0) == (None, None, None, 0)


def test_bootstrap_uses_the_intervals_it_is_given():
    anchors, tests = per_image([1, 2])
    intervals = [(30.0, 34.0), (50.0, 60.0)]
    result = bootstrap_bd_rate(anchors, tests, seed=0, intervals_db=intervals)
    assert (result.mean, result.n_valid) == (pytest.approx(1), 1)


def test_bootstrap_needs_one_curve_of_each_kind_per_image():
    anchors, tests = per_image([1, 2])
    for bad in ({"test_per_image": tests[:1]}, {"intervals_db": [(30, 34)]}, {"resamples": 0}):
        arguments = {"anchor_per_image": anchors, "test_per_image": tests, "seed": 0, **bad}
        with pytest.raises(StudyError, match="per-image BD-rate from 2 anchor curves"):
            bootstrap_bd_rate(**arguments)
