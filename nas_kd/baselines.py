"""Classical codecs through Pillow, to compare learned ones with."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from nas_kd.bd import RDCurve
from nas_kd.data import ImageSet
from nas_kd.evaluate import psnr_db

QUALITIES = (5, 8, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95)


def jpeg_curve(images: ImageSet) -> RDCurve:
    """Pillow's JPEG (4:2:0, optimised Huffman tables), whole files, mean over pictures."""
    return _curve(images, "JPEG", {"optimize": True})


def webp_curve(images: ImageSet) -> RDCurve:
    """Pillow's lossy WebP at its slowest method, whole files, mean over pictures."""
    return _curve(images, "WEBP", {"method": 6})


def _curve(images: ImageSet, kind: str, options: dict[str, bool | int]) -> RDCurve:
    points = [_point(images, kind, quality, options) for quality in QUALITIES]
    return RDCurve(tuple(p[0] for p in points), tuple(p[1] for p in points))


def _point(
    images: ImageSet, kind: str, quality: int, options: dict[str, bool | int]
) -> tuple[float, float]:
    rates, qualities = [], []
    for image in images.images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, quality=quality, **options)
        rates.append(8 * buffer.tell() / (image.shape[0] * image.shape[1]))
        qualities.append(psnr_db(np.asarray(Image.open(buffer).convert("RGB")), image))
    return float(np.mean(rates)), float(np.mean(qualities))
