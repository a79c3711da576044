import numpy as np
import pytest

from nas_kd.baselines import CODECS, check_names, classical_curve, compare, lacking
from nas_kd.bd import RDCurve
from nas_kd.data import BUILTIN, ImageSet, open_images
from nas_kd.errors import UsageError


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


def test_an_unknown_codec_is_named():
    with pytest.raises(UsageError, match="'bmp' is unknown: choose from jpeg, jpeg2000"):
        check_names(["jpeg", "bmp"])
