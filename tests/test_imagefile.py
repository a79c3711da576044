"""A picture's file gives its pixels, upright, in sRGB, whole or not at all."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from nas_kd.data import photograph
from nas_kd.imagefile import in_srgb, opened

ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
"""X, Y and Z of red, green and blue, adapted to D50 (as in those profiles)."""
GAMMA = 563 / 256


def from_srgb(value: np.ndarray) -> np.ndarray:
    """Linear light of sRGB's values (IEC 61966-2-1)."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def to_srgb(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def power() -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, 563) + bytes(2)


def table() -> bytes:
    steps = (65535 * from_srgb(np.linspace(0, 1, 256))).round().astype(">u2")
    return b"curv" + struct.pack(">II", 0, 256) + steps.tobytes()


def profile(colorants: tuple[tuple[float, ...], ...] = ADOBE, curve: bytes | None = None) -> bytes:
    """An ICC profile, version 2: of colours by three primaries, of grey by its curve alone."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ " + struct.pack(">I3i", 0, *(round(65536 * v) for v in values))

    curve = power() if curve is None else curve
    white = (0.9642, 1.0, 0.8249)
    tags = {b"wtpt": xyz(white)}
    if colorants:
        tags |= {c + b"XYZ": xyz(v) for c, v in zip((b"r", b"g", b"b"), colorants, strict=True)}
    tags |= {name: curve for name in ((b"rTRC", b"gTRC", b"bTRC") if colorants else (b"kTRC",))}
    entries, body, at = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        entries += struct.pack(">4sII", name, at + len(body), len(data))
        body += data
    space = b"RGB " if colorants else b"GRAY"
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"", 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + xyz(white)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def srgb_of_adobe(pixels: np.ndarray) -> np.ndarray:
    """By the definitions alone: power law, two matrices, sRGB's curve; uint8 values as floats."""
    xyz = (pixels / 255) ** GAMMA @ np.array(ADOBE)
    return 255 * to_srgb(xyz @ np.linalg.inv(np.array(SRGB)))


def near(a: np.ndarray, b: np.ndarray, most: float = 1.5) -> bool:
    return bool(np.abs(np.asarray(a, float) - b).max() <= most)


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
