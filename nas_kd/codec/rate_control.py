"""The level at which a picture's file has a wanted size or quality, by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from nas_kd.codec.bitstream import Analysed, analyse, decode, encode, write
from nas_kd.codec.iterative_encoding import encode_with_effort, improved
from nas_kd.codec.student import Student
from nas_kd.data.image_file import Image8
from nas_kd.data.metrics import psnr_db
from nas_kd.errors import UsageError

STEPS = 8
"""Halvings of the range of levels: six levels are resolved to 1/51."""


class Sought(NamedTuple):
    """The file that comes nearest to a wish, and in words by how much it misses it, if it does."""

    data: bytes
    missed: str | None = None


def file_of_level(student: Student, image: Image8, level: float, effort: int = 0) -> Sought:
    """The file of one level; ``effort``: see ``iterative_encoding``."""
    if effort:
        return Sought(encode_with_effort(student, image, level, effort))
    return Sought(encode(student, image, level))


def file_of_bpp(student: Student, image: Image8, bpp: float, effort: int = 0) -> Sought:
    """The file of the highest level that takes at most ``bpp`` bits per pixel, header and all; else of level 1.

    The level is found without effort; the file with effort is taken where it is no larger than wished, either.
    """
    _check("--target-bpp", bpp)
    found, pixels = _of_bpp(student, image, bpp), image.shape[0] * image.shape[1]
    most = max(len(found.data), bpp * pixels / 8)
    better = improved(student, image, found.data, effort, lambda data: len(data) <= most)
    return found._replace(data=better)


def _of_bpp(student: Student, image: Image8, bpp: float) -> Sought:
    picture = analyse(student, image)
    per_byte = 8 / (picture.height * picture.width)
    small = write(student, picture, 1)
    if (least := per_byte * len(small)) > bpp:
        return Sought(small, f"--target-bpp {bpp:g}: level 1 of this student takes {least:.4f} bpp")
    large = write(student, picture, student.levels)
    if per_byte * len(large) <= bpp:
        return Sought(large)
    too_large = lambda data: per_byte * len(data) > bpp  # noqa: E731
    return Sought(_bisect(student, picture, (small, large), too_large)[0])


def file_of_psnr(student: Student, image: Image8, psnr: float, effort: int = 0) -> Sought:
    """The file of the lowest level whose decoded picture has at least ``psnr`` dB; else of the highest.

    The level is found without effort; the file with effort is taken where it is as good as wished, too.
    """
    _check("--target-psnr", psnr)

    def quality(data: bytes) -> float:
        return psnr_db(decode(student, data), image)

    found = _of_psnr(student, image, psnr, quality)

    def good(data: bytes) -> bool:
        return found.missed is not None or quality(data) >= psnr

    return found._replace(data=improved(student, image, found.data, effort, good))


def _of_psnr(
    student: Student, image: Image8, psnr: float, quality: Callable[[bytes], float]
) -> Sought:
    picture = analyse(student, image)
    large = write(student, picture, student.levels)
    if (most := quality(large)) < psnr:
        return Sought(
            large,
            f"--target-psnr {psnr:g}: the highest level of this student reaches {most:.2f} dB",
        )
    small = write(student, picture, 1)
    if quality(small) >= psnr:
        return Sought(small)
    return Sought(_bisect(student, picture, (small, large), lambda data: quality(data) >= psnr)[1])


def _check(option: str, wish: float) -> None:
    if math.isnan(wish) or wish <= 0:
        raise UsageError(f"{option} {wish}: must be above 0")


def _bisect(
    student: Student,
    picture: Analysed,
    files: tuple[bytes, bytes],
    high_enough: Callable[[bytes], bool],
) -> tuple[bytes, bytes]:
    """The files of two neighbouring levels, the first not high enough and the second so."""
    low, high = 1.0, float(student.levels)
    below, above = files
    for _ in range(STEPS):
        middle = (low + high) / 2
        data = write(student, picture, middle)
        if high_enough(data):
            high, above = middle, data
        else:
            low, below = middle, data
    return below, above
