"""A picture's file opened: in which formats, its first frame, upright, its colours in sRGB."""

from __future__ import annotations

import mimetypes
import random
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageChops, ImageCms, ImageOps

if (
    TYPE_CHECKING
):  # numpy takes a quarter of a second to import, and a command that is refused needs none
    import numpy as np
    from numpy.typing import NDArray

    Image8 = NDArray[np.uint8]
else:
    Image8 = Any

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 2**26
"""Largest area of a picture that is coded, after padding to multiples of 64."""
NEAR = 2
"""Levels of 255 within which a profile's colours are sRGB's: its makers' tables differ by one."""
END = b"\xff\xd9"
"""Of a JPEG file."""


@cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has; others, some of which start programs, stay closed."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of files that can be read as pictures."""
    known, readable = Image.registered_extensions(), formats()
    return frozenset(suffix for suffix, name in known.items() if name in readable)


@cache
def unread_suffixes() -> frozenset[str]:
    """Suffixes of files that hold pictures and are not read."""
    types = {**mimetypes.types_map, **mimetypes.common_types}
    images = {suffix for suffix, kind in types.items() if kind.startswith("image/")}
    return frozenset(images | {".heic", ".heif", ".jxl", ".dng"}) - suffixes()


def opened(data: bytes, check: Callable[[Image.Image], None] = lambda file: None) -> Image.Image:
    """The first picture of a file's bytes, decoded and upright; raises what Pillow raises.

    Args:
        data: the file. A JPEG that lacks its end marker and nothing else counts as whole.
        check: may refuse the file before its pixels are decoded.
    """
    with Image.open(BytesIO(data), formats=formats()) as file:
        check(file)
        try:
            return ImageOps.exif_transpose(file)
        except OSError:
            if file.format != "JPEG" or not _lacks_only_its_end(data):
                raise
    return opened(_ended(data), check)


def _ended(data: bytes, more: bytes = b"") -> bytes:
    """With something more and an end marker; a half of one is replaced."""
    return data.removesuffix(END[:1]) + more + END


def _lacks_only_its_end(data: bytes) -> bool:
    """Whether all of a JPEG's pixels are there: then what follows them changes none."""
    if not _in_one_scan(data):
        return False
    whole = _rgb(_ended(data))
    return all(
        ImageChops.difference(whole, _rgb(_ended(data, more))).getbbox() is None
        for more in _continuations(restarts=b"\xff\xdd" in data)
    )


def _rgb(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data), formats=["JPEG"]).convert("RGB")


def _continuations(restarts: bool) -> Iterator[bytes]:
    """What might follow in a scan: some bits, and after each restart marker, where the file has them."""
    markers = [bytes([0xFF, 0xD0 + n]) for n in range(8)] if restarts else []
    bits = random.Random(0)
    for start in (b"", b"", b"", *markers, *markers):
        yield start + bits.randbytes(64).replace(b"\xff", b"\xf7")


def _in_one_scan(data: bytes) -> bool:
    """Whether a JPEG is sequential and its first scan has all components; else a scan may be missing."""
    at, components = 2, 0
    while at + 10 <= len(data) and data[at] == END[0]:
        if data[at + 1] in (0xC0, 0xC1):  # start of a sequential frame
            components = data[at + 9]
        if data[at + 1] == 0xDA:  # start of a scan
            return components == data[at + 4]
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


# --- colour -----------------------------------------------------------------------------------


def in_srgb(picture: Image.Image) -> tuple[Image.Image, str | None]:
    """The picture with its colour profile applied, and why that could not be, if so.

    The very object that was given where it has no profile, one of sRGB, or one that cannot be used.
    Grey stays grey, and transparency what it was.
    """
    profile = picture.info.get("icc_profile")
    if not profile:
        return picture, None
    clear = "A" in picture.getbands() or "transparency" in picture.info
    colours = _without_alpha(picture)
    try:
        transform = _to_srgb(profile, colours.mode)
    except (ImageCms.PyCMSError, ImportError) as error:  # ImportError: a Pillow without LittleCMS
        return picture, str(error)
    if transform is None:
        return picture, None
    return _with_alpha(transform(colours), picture if clear else None), None


def _without_alpha(picture: Image.Image) -> Image.Image:
    """As L, CMYK or RGB."""
    if picture.mode in ("1", "L", "LA", "La"):
        return picture.convert("L")
    return picture if picture.mode == "CMYK" else picture.convert("RGB")


def _with_alpha(colours: Image.Image, clear: Image.Image | None) -> Image.Image:
    if clear is not None:
        colours.putalpha(clear.convert("RGBA").getchannel("A"))
    return colours


Transform = Callable[[Image.Image], Image.Image]


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> Transform | None:
    """What turns pictures of a mode (L, RGB, CMYK) and a profile into sRGB; None where they are in it."""
    source = ImageCms.getOpenProfile(BytesIO(profile))
    of_colours = source.profile.xcolor_space.strip() != "GRAY"
    taken = "RGB" if mode == "L" and of_colours else mode
    built = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), taken, "RGB")

    def turned(picture: Image.Image) -> Image.Image:
        out = ImageCms.applyTransform(picture.convert(taken), built)
        assert out is not None
        return out.getchannel("G") if mode == "L" else out

    return None if mode != "CMYK" and _changes_nothing(turned, mode) else turned


def _changes_nothing(transform: Transform, mode: str) -> bool:
    """Whether a transform leaves every colour of a grid within NEAR of what it was."""
    import numpy as np

    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(64, 64, 3)
    probe = Image.fromarray(grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    change = np.asarray(transform(probe)).astype(int) - np.asarray(probe)
    return bool(np.abs(change).max() <= NEAR)
