"""What a student does to a picture: crops, coded alone, beside their originals."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from nas_kd.data.image_file import Image8
from nas_kd.data.images import ImageSet, to_image, to_tensor
from nas_kd.data.metrics import MULTIPLE, psnr_db
from nas_kd.evaluation.rate_distortion import Codec

SIDE_PX = 256
FRAME_PX = (768, 768)
"""Height and width of the largest picture that a report shows whole."""
LABEL_PX = 16


@dataclass(frozen=True)
class Shot:
    """One crop at one level, coded alone; its rate is estimated."""

    picture: str
    level: int
    bpp_est: float
    psnr_db: float
    image: Image8


def crops(images: ImageSet, most: int, side_px: int = SIDE_PX) -> dict[str, Image8]:
    """The centre of the first pictures that are large enough, by name; sides are multiples of 64."""
    found: dict[str, Image8] = {}
    for name, (H, W), image in zip(images.names, images.sizes, images.images, strict=True):
        h, w = (min(side_px, side // MULTIPLE * MULTIPLE) for side in (H, W))
        if h and w and len(found) < most:
            top, left = (H - h) // 2, (W - w) // 2
            found[name] = image[top : top + h, left : left + w]
    return found


def whole(images: ImageSet, most: int) -> dict[str, Image8]:
    """The first pictures that are more than their crop: whole up to FRAME_PX, of larger ones the centre, named so."""
    found: dict[str, Image8] = {}
    for name, (H, W), image in zip(images.names, images.sizes, images.images, strict=True):
        if min(H, W) <= SIDE_PX or len(found) >= most:
            continue
        h, w = min(H, FRAME_PX[0]), min(W, FRAME_PX[1])
        top, left = (H - h) // 2, (W - w) // 2
        said = "whole" if (h, w) == (H, W) else f"{w}x{h} of it"
        found[f"{name}, {said}"] = image[top : top + h, left : left + w]
    return found


@torch.no_grad()
def shots(codec: Codec, originals: dict[str, Image8], levels: Iterable[int]) -> list[Shot]:
    """Every crop at every level."""
    taken = []
    for level in levels:
        for name, original in originals.items():
            x_hat, bits = codec.reconstruct(to_tensor(original), level)
            image = to_image(x_hat)
            rate = float(bits) / (original.shape[0] * original.shape[1])
            taken.append(Shot(name, level, rate, psnr_db(image, original), image))
    return taken


def spread(levels: int, most: int) -> list[int]:
    """At most so many levels from 1 to ``levels``, evenly spaced, both ends among them."""
    return sorted({round(level) for level in np.linspace(1, levels, min(most, levels))})


def data_uri(image: Image8) -> str:
    """A lossless WebP as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, method=4)
    return file_uri(buffer.getvalue())


def file_uri(webp: bytes) -> str:
    """A WebP file as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def sheet(originals: dict[str, Image8], taken: list[Shot]) -> Image.Image:
    """A row per picture: the original, then its levels, each with rate and PSNR above it."""
    rows = []
    for name, original in originals.items():
        own = [s for s in taken if s.picture == name]
        said = [f"level {s.level}: {s.bpp_est:.3f} bpp, {s.psnr_db:.2f} dB" for s in own]
        pairs = zip([name, *said], [original, *(s.image for s in own)], strict=True)
        rows.append(np.concatenate([_labelled(text, image) for text, image in pairs], axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return Image.fromarray(np.concatenate(padded, axis=0))


def _labelled(text: str, image: Image8) -> Image8:
    strip = Image.new("RGB", (image.shape[1], LABEL_PX), "white")
    ImageDraw.Draw(strip).text((3, 2), text, fill="black")
    return np.concatenate([np.asarray(strip), image], axis=0)
