"""MS-SSIM of two pictures, raw and in decibels (Wang et al., 2003), by the package that CompressAI takes it from."""

from __future__ import annotations

import math

from nas_kd.data.image_file import Image8
from nas_kd.data.images import to_tensor

MIN_SIDE = 161
"""Pixels: five scales of an 11-tap window need more than 160."""


def ms_ssim(a: Image8, b: Image8) -> float | None:
    """MS-SSIM of two RGB pictures, 0 to 1; None where they are too small for it."""
    if min(a.shape[:2]) < MIN_SIDE:
        return None
    from pytorch_msssim import ms_ssim as of_tensors

    return float(of_tensors(to_tensor(a), to_tensor(b), data_range=1.0))


def in_db(similarity: float | None) -> float | None:
    """-10 log10(1 - MS-SSIM); None where there is none, or where the pictures are equal."""
    if similarity is None or similarity >= 1:
        return None
    return -10 * math.log10(1 - similarity)


def in_words(similarity: float | None) -> str:
    """Raw and in decibels, for people."""
    if similarity is None:
        return f"absent (a picture is under {MIN_SIDE} px)"
    raised = in_db(similarity)
    return f"{similarity:.4f}" + ("" if raised is None else f" ({raised:.2f} dB)")
