"""A picture's file gives its pixels, upright, in sRGB, whole or not at all."""

import struct

import numpy as np
import pytest
from colours import GAMMA, SRGB, near, profile, saved, srgb_of_adobe, to_srgb
from PIL import Image, ImageCms

from nas_kd.data.image_file import in_srgb, opened
from nas_kd.data.images import photograph

"""X, Y and Z of red, green and blue, adapted to D50 (as in those profiles)."""


def from_srgb(value: np.ndarray) -> np.ndarray:
    """Linear light of sRGB's values (IEC 61966-2-1)."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def table() -> bytes:
    steps = (65535 * from_srgb(np.linspace(0, 1, 256))).round().astype(">u2")
    return b"curv" + struct.pack(">II", 0, 256) + steps.tobytes()


def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


# --- colour -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_wide_profile_is_converted_as_by_its_definition(kind: str):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(colours()), kind, icc_profile=profile(), **options)
    picture, unusable = in_srgb(opened(data))
    assert unusable is None
    expected = srgb_of_adobe(colours())
    assert np.abs(expected - colours()).max() > 30
    assert near(picture, expected)


@pytest.mark.parametrize(
    "sort",
    [
        profile(SRGB, table()),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        opened(photograph("scikit-image/chelsea.png")).info["icc_profile"],  # IEC 61966-2.1
    ],
    ids=["three primaries", "LittleCMS", "IEC"],
)
def test_profiles_of_srgb_change_no_pixel(sort: bytes):
    for image in (Image.fromarray(colours()), Image.fromarray(colours()).quantize(16)):
        stored = opened(saved(image, icc_profile=sort))
        assert in_srgb(stored) == (stored, None)
        assert in_srgb(stored)[0] is stored


def test_grey_with_a_profile_is_converted_and_stays_grey():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = 255 * to_srgb((grey / 255) ** GAMMA)
    for sort in (profile(()), profile()):  # of grey, and of colours
        picture, _ = in_srgb(opened(saved(Image.fromarray(grey), icc_profile=sort)))
        assert picture.mode == "L"
        assert near(picture, expected)


def test_transparency_survives_a_conversion():
    alpha = colours()[..., :1]
    rgba = Image.fromarray(np.concatenate([colours(), alpha], axis=2))
    picture, _ = in_srgb(opened(saved(rgba, icc_profile=profile())))
    assert near(np.asarray(picture)[..., :3], srgb_of_adobe(colours()))
    assert np.array_equal(np.asarray(picture)[..., 3:], alpha)
    palette = Image.fromarray(colours()).quantize(16)
    keyed = opened(saved(palette, icc_profile=profile(), transparency=3))
    picture, _ = in_srgb(keyed)
    assert np.array_equal(np.asarray(picture)[..., 3] == 0, np.asarray(palette) == 3)
    assert near(np.asarray(picture)[..., :3], srgb_of_adobe(np.asarray(palette.convert("RGB"))))


@pytest.mark.parametrize("sort", [b"no profile", profile()[:200], profile(())])
def test_a_profile_that_cannot_be_used_is_told_and_the_pixels_kept(sort: bytes):
    stored = opened(saved(Image.fromarray(colours()), icc_profile=sort))
    picture, unusable = in_srgb(stored)
    assert picture is stored
    assert unusable


# --- whole or not -----------------------------------------------------------------------------


def jpeg(**options) -> bytes:
    waves = 128 + 90 * np.sin(np.add.outer(np.arange(40) / 5, np.arange(56) / 7))
    return saved(Image.fromarray(waves.astype(np.uint8)).convert("RGB"), "JPEG", **options)


@pytest.mark.parametrize("lacking", [1, 2])
def test_a_jpeg_without_its_end_marker_is_whole(lacking: int):
    for data in (jpeg(), jpeg(quality=30, subsampling=0), jpeg(restart_marker_blocks=4)):
        assert np.array_equal(opened(data[:-lacking]), opened(data))


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 4}, {"subsampling": 0}])
def test_a_jpeg_cut_anywhere_before_its_end_marker_is_refused(options: dict[str, int]):
    data = jpeg(**options)
    for length in range(2, len(data) - 2, 3):
        with pytest.raises((OSError, SyntaxError)):
            opened(data[:length])


def test_a_progressive_jpeg_without_its_end_may_lack_a_scan_and_is_refused():
    with pytest.raises(OSError, match="truncated"):
        opened(jpeg(progressive=True)[:-2])


def test_of_a_phones_several_pictures_the_first_is_taken():
    first, second = Image.fromarray(colours()), Image.new("RGB", (8, 8))
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert np.array_equal(opened(data), opened(saved(first, "JPEG")))
