import numpy as np
import pytest

from nas_kd.data.images import BUILTIN, ImageSet, open_images
from nas_kd.errors import UsageError
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.evaluation.classical import (
    CODECS,
    _point,
    against,
    check_names,
    classical_curve,
    compare,
    in_words,
    lacking,
    rising,
)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    whole = open_images(BUILTIN, "eval")
    crop = np.ascontiguousarray(whole.images[0][50:178, 100:292])
    return ImageSet("crop", [crop], ("crop",), ((128, 192),), "0" * 64)


@pytest.mark.parametrize("name", list(CODECS))
def test_a_codec_gives_more_quality_for_more_bits(name: str, images: ImageSet):
    if (reason := lacking(name)) is not None:
        pytest.skip(reason)
    curve = classical_curve(name, images)
    assert list(curve.psnr_db) == sorted(curve.psnr_db)
    assert curve.psnr_db[-1] - curve.psnr_db[0] > 6
    assert curve.psnr_db[-1] < 60  # lossy


def test_a_codec_against_itself_is_nought_percent(images: ImageSet):
    curve = classical_curve("webp", images)
    assert compare("webp", images, curve)["bd_rate"] == pytest.approx(0, abs=1e-9)
    twice = RDCurve(tuple(2 * rate for rate in curve.bpp), curve.psnr_db)
    assert compare("webp", images, twice)["bd_rate"] == pytest.approx(100)


def test_without_overlap_the_reason_stands_for_the_figure(images: ImageSet):
    far = RDCurve((0.1, 0.2, 0.3, 0.4), (90, 91, 92, 93))
    found = compare("jpeg", images, far)
    assert (found["bd_rate"], found["reason"]) == (None, "no_overlap")
    few = compare("jpeg", images, RDCurve((0.1, 0.2), (30, 31)))
    assert few["bd_rate"] is None
    assert "too_few_points" in few["reason"]


ANCHOR = RDCurve((0.1, 0.2, 0.4, 0.8, 1.6), (28.0, 30.0, 32.0, 34.0, 36.0))


def test_where_a_part_is_covered_the_figure_over_it_stands_beside_with_that_part():
    """A curve of twice the rate that begins 6 dB below the anchor: 100 % wherever both are."""
    rates, qualities = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6), tuple(range(22, 35, 2))
    wider = RDCurve(rates, qualities)
    found = against(ANCHOR, wider)
    assert (found["bd_rate"], found["reason"]) == (None, "partial_overlap")
    assert found["common"]["bd_rate"] == pytest.approx(100)
    assert found["common"]["interval_db"] == [28.0, 34.0]
    said = in_words(found)
    assert "absent (partial_overlap) over its own 22.00 to 34.00 dB" in said
    assert "+100.00 % over the 28.00 to 34.00 dB that both cover" in said


def test_a_figure_over_its_own_interval_has_no_second_one():
    found = against(ANCHOR, RDCurve(tuple(2 * rate for rate in ANCHOR.bpp), ANCHOR.psnr_db))
    assert (found["common"], in_words(found)) == (None, "+100.00 %")


def test_less_than_a_decibel_in_common_is_no_figure():
    above = RDCurve((1.0, 2.0, 4.0, 8.0), (35.5, 38.0, 40.0, 42.0))
    found = against(ANCHOR, above)
    assert (found["reason"], found["common"]) == ("partial_overlap", None)
    assert in_words(found) == "absent (partial_overlap)"


def test_points_that_bring_nothing_are_left_out():
    points = [(0.2, 30.0), (0.1, 28.0), (0.1, 28.0), (0.3, 30.0), (0.4, 29.9), (0.5, 31.0)]
    assert rising(points) == [(0.1, 28.0), (0.2, 30.0), (0.5, 31.0)]


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif", "jpeg2000", "jpegxl"])
def test_a_codec_covers_all_that_a_student_may_come_to(name: str):
    """25.5 to 38 dB on the built-in photographs, where students and their teacher lie."""
    if (reason := lacking(name)) is not None:
        pytest.skip(reason)
    whole = open_images(BUILTIN, "eval")
    ends = [CODECS[name].points[0], CODECS[name].points[-1]]
    reached = [_point(whole, CODECS[name].kind, options)[1] for options in ends]
    assert reached[0] < 25.7
    assert reached[1] > 38


def test_an_unknown_codec_is_named():
    with pytest.raises(UsageError, match="'bmp' is unknown: choose from jpeg, jpeg2000"):
        check_names(["jpeg", "bmp"])
