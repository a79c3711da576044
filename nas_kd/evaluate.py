"""Rate and distortion of a codec on pictures: estimated, or by real bitstreams.

PSNR is that of the 8-bit rounded, clamped RGB picture, padded to a multiple of 64 and cropped back; the mean is over
pictures. ``bpp_est`` is from likelihoods, ``bpp`` from the real entropy-coded strings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from nas_kd.bd import RDCurve
from nas_kd.data import ImageSet, to_image, to_tensor
from nas_kd.distill import rate_bpp
from nas_kd.errors import TrialFailed
from nas_kd.student import MULTIPLE, Student

Rate = Literal["bpp_est", "bpp"]


class Codec(Protocol):
    """What can be evaluated: a student, or a teacher."""

    @property
    def levels(self) -> int:
        """Number of rate points."""

    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, float]:
        """x_hat and estimated bits of one padded picture [1, 3, H, W]."""


@dataclass(frozen=True)
class Measured:
    """R-D points per picture: ``rate[level][image]`` in bits per pixel, ``psnr_db`` likewise."""

    kind: Rate
    rate: list[list[float]]
    psnr_db: list[list[float]]
    images: list[str]
    data_fingerprint: str

    def curve(self) -> RDCurve:
        """The mean curve over pictures."""
        rates = tuple(float(np.mean(r)) for r in self.rate)
        return RDCurve(rates, tuple(float(np.mean(p)) for p in self.psnr_db))

    def per_image(self) -> list[RDCurve]:
        """A curve for each picture."""
        rates, qualities = zip(*self.rate, strict=True), zip(*self.psnr_db, strict=True)
        return [RDCurve(r, q) for r, q in zip(rates, qualities, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Mean points by their own name (bpp_est or bpp), and the points per picture."""
        return {
            self.kind: [float(np.mean(r)) for r in self.rate],
            "psnr_db": [float(np.mean(p)) for p in self.psnr_db],
            "images": self.images,
            "data_fingerprint": self.data_fingerprint,
            f"per_image_{self.kind}": self.rate,
            "per_image_psnr_db": self.psnr_db,
        }


def pad(x: Tensor) -> Tensor:
    """[1, 3, H, W] grown at the right and the bottom to multiples of 64, edges repeated."""
    H, W = x.shape[-2:]
    return torch.nn.functional.pad(x, (0, -W % MULTIPLE, 0, -H % MULTIPLE), mode="replicate")


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of two uint8 pictures; infinite for equal ones."""
    mse = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


@torch.no_grad()
def evaluate(codec: Codec, images: ImageSet, device: str = "cpu") -> Measured:
    """Estimated rates and PSNR of every level on every picture; raises TrialFailed at a NaN."""
    rate: list[list[float]] = [[] for _ in range(codec.levels)]
    quality: list[list[float]] = [[] for _ in range(codec.levels)]
    for image in images.images:
        H, W = image.shape[:2]
        x = pad(to_tensor(image)).to(device)
        for level in range(1, codec.levels + 1):
            x_hat, bits = codec.reconstruct(x, level)
            if not (np.isfinite(bits) and bool(torch.isfinite(x_hat).all())):
                raise TrialFailed("nan", f"level {level}: reconstruction or rate is not finite")
            rate[level - 1].append(bits / (H * W))
            quality[level - 1].append(psnr_db(to_image(x_hat[..., :H, :W]), image))
    return Measured("bpp_est", rate, quality, list(images.names), images.fingerprint)


@torch.no_grad()
def evaluate_real(student: Student, images: ImageSet) -> Measured:
    """Real entropy coding at every level; the decoded picture must be the encoder's own.

    ``bpp`` counts the strings alone. Raises TrialFailed with reason ``mismatch`` where the decoder's latents
    differ from the encoder's.
    """
    rate: list[list[float]] = [[] for _ in range(student.levels)]
    quality: list[list[float]] = [[] for _ in range(student.levels)]
    for image in images.images:
        H, W = image.shape[:2]
        x = pad(to_tensor(image))
        for level in range(1, student.levels + 1):
            coded = student.compress(x, level)
            decoded = student.decompress(coded["strings"], coded["shape"], level)
            if not torch.equal(coded["y_hat"], decoded["y_hat"]):
                raise TrialFailed("mismatch", f"level {level}: decoder and encoder disagree")
            bits = 8 * sum(len(string) for part in coded["strings"] for string in part)
            rate[level - 1].append(bits / (H * W))
            quality[level - 1].append(psnr_db(to_image(decoded["x_hat"][..., :H, :W]), image))
    return Measured("bpp", rate, quality, list(images.names), images.fingerprint)


class StudentCodec:
    """A student as something that can be evaluated."""

    def __init__(self, student: Student):
        self.student = student.eval()
        self.levels = student.levels

    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, float]:
        """x_hat and estimated bits of one padded picture."""
        out = self.student(x, level)
        pixels = x.shape[-1] * x.shape[-2]
        return out["x_hat"], float(rate_bpp(out["likelihoods"], pixels)) * pixels
