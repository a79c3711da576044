"""Rate and distortion of a codec on pictures: estimated, or by real bitstreams.

PSNR is that of the 8-bit rounded, clamped RGB picture, padded to a multiple of 64 and cropped back; the mean is over
pictures. ``bpp_est`` is from likelihoods, ``bpp`` from the real entropy-coded strings.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_kd.codec.checkpoint import load_student, save_student
from nas_kd.codec.student import Student
from nas_kd.cores import cores
from nas_kd.data.images import ImageSet, to_image, to_tensor
from nas_kd.data.metrics import MULTIPLE, padded, psnr_db
from nas_kd.data.similarity import in_db, ms_ssim
from nas_kd.distillation.loss import rate_bpp
from nas_kd.errors import TrialFailed
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.reasons import Reason

Rate = Literal["bpp_est", "bpp"]


BATCH_PX = 2**22
"""Pixels that a GPU evaluates at once."""
PROCESSES_PX = 2 * 10**7
"""Pixels, times levels, from which real coding is spread over processes: about a minute of one core."""


class Codec(Protocol):
    """What can be evaluated: a student, or a teacher."""

    @property
    def levels(self) -> int:
        """Number of rate points."""

    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """x_hat and estimated bits [B] of padded pictures [B, 3, H, W]."""

    def every_level(self, x: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """The same at each level, ascending; what levels share is computed once."""


Similarities = list[list[float | None]]


@dataclass(frozen=True)
class Measured:
    """R-D points per picture: ``rate[level][image]`` in bits per pixel, ``psnr_db`` and ``ms_ssim`` likewise.

    ms_ssim: where bitstreams are real or it was asked for; None in it for pictures under 161 px, which have none.
    """

    kind: Rate
    rate: list[list[float]]
    psnr_db: list[list[float]]
    images: list[str]
    data_fingerprint: str
    ms_ssim: Similarities | None = None

    def curve(self) -> RDCurve:
        """The mean curve over pictures."""
        return RDCurve(tuple(self.mean_rate), tuple(self.mean_psnr_db))

    @property
    def mean_rate(self) -> list[float]:
        """Bits per pixel by level, the mean over pictures."""
        return [float(np.mean(r)) for r in self.rate]

    @property
    def mean_psnr_db(self) -> list[float]:
        """PSNR by level, the mean over pictures."""
        return [float(np.mean(p)) for p in self.psnr_db]

    def similarity_curve(self) -> RDCurve:
        """The mean curve with MS-SSIM in dB as its quality; NaN where there is none."""
        return RDCurve(self.curve().bpp, _raised(self.mean_ms_ssim()))

    def similarity_per_image(self) -> list[RDCurve]:
        """The same of each picture."""
        rates = zip(*self.rate, strict=True)
        each = zip(*(self.ms_ssim or []), strict=True)
        return [RDCurve(r, _raised(s)) for r, s in zip(rates, each, strict=True)]

    def per_image(self) -> list[RDCurve]:
        """A curve for each picture."""
        rates, qualities = zip(*self.rate, strict=True), zip(*self.psnr_db, strict=True)
        return [RDCurve(r, q) for r, q in zip(rates, qualities, strict=True)]

    @staticmethod
    def from_json(data: dict[str, Any]) -> Measured:
        """What ``to_json`` returned, read back; raises KeyError where something is missing."""
        kind: Rate = "bpp" if "per_image_bpp" in data else "bpp_est"
        points = data[f"per_image_{kind}"], data["per_image_psnr_db"]
        similar = data.get("per_image_ms_ssim")
        return Measured(kind, *points, data["images"], data["data_fingerprint"], similar)

    def mean_ms_ssim(self) -> list[float | None]:
        """MS-SSIM by level, the mean over pictures; None where a picture has none."""
        each = self.ms_ssim or [[None] for _ in self.rate]
        known = [[value for value in level if value is not None] for level in each]
        return [
            float(np.mean(there)) if len(there) == len(level) else None
            for there, level in zip(known, each, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Mean points by their own name (bpp_est or bpp), and the points per picture."""
        return {
            self.kind: self.mean_rate,
            "psnr_db": self.mean_psnr_db,
            "images": self.images,
            "data_fingerprint": self.data_fingerprint,
            f"per_image_{self.kind}": self.rate,
            "per_image_psnr_db": self.psnr_db,
        } | ({} if self.ms_ssim is None else self._similar(self.ms_ssim))

    def _similar(self, each: Similarities) -> dict[str, Any]:
        mean = self.mean_ms_ssim()
        raised = [in_db(value) for value in mean]
        return {"ms_ssim": mean, "ms_ssim_db": raised, "per_image_ms_ssim": each}


def _raised(similar: Iterable[float | None]) -> tuple[float, ...]:
    found = [in_db(value) for value in similar]
    return tuple(math.nan if db is None else db for db in found)


@torch.no_grad()
def evaluate(
    codec: Codec, images: ImageSet, device: str = "cpu", similar: bool = False
) -> Measured:
    """Estimated rates and PSNR of every level on every picture; raises TrialFailed at a NaN.

    similar: MS-SSIM too, which takes longer than a small student does.
    """
    alike: Similarities = [[None] * len(images) for _ in range(codec.levels)]
    rate = [[0.0] * len(images) for _ in range(codec.levels)]
    quality = [[0.0] * len(images) for _ in range(codec.levels)]
    for group in batches(images, BATCH_PX if device.startswith("cuda") else 0):
        pictures = {i: images.images[i] for i in group}
        x = torch.cat([padded(to_tensor(image)) for image in pictures.values()]).to(device)
        for level, (x_hat, bits) in enumerate(codec.every_level(x)):
            if not (bool(torch.isfinite(bits).all()) and bool(torch.isfinite(x_hat).all())):
                raise TrialFailed(
                    Reason.NAN, f"level {level + 1}: reconstruction or rate is not finite"
                )
            for (i, image), one, spent in zip(pictures.items(), x_hat, bits.tolist(), strict=True):
                H, W = image.shape[:2]
                rate[level][i] = spent / (H * W)
                restored = to_image(one[None, :, :H, :W])
                quality[level][i] = psnr_db(restored, image)
                if similar:
                    alike[level][i] = ms_ssim(restored, image)
    names, each = list(images.names), alike if similar else None
    return Measured("bpp_est", rate, quality, names, images.fingerprint, each)


def batches(images: ImageSet, most_px: int) -> list[list[int]]:
    """Pictures of one padded size together, by index, as many as have so many pixels; at least one.

    On a CPU one at a time: in batches they take longer there (benchmarks/LOG.md).
    """
    padded = [(H + -H % MULTIPLE, W + -W % MULTIPLE) for H, W in images.sizes]
    found: list[list[int]] = []
    for size in dict.fromkeys(padded):
        same = [i for i, other in enumerate(padded) if other == size]
        n = max(1, most_px // (size[0] * size[1]))
        found += [same[start : start + n] for start in range(0, len(same), n)]
    return found


def evaluate_real(student: Student, images: ImageSet, processes: int | None = None) -> Measured:
    """Real entropy coding at every level; the decoded picture must be the encoder's own.

    ``bpp`` counts the strings alone. Raises TrialFailed with reason ``mismatch`` where the decoder's latents
    differ from the encoder's.

    Args:
        student: with its tables made.
        images: the pictures.
        processes: how many share the work, each with one thread; by default one per core where there is
            so much that loading PyTorch in each pays.
    """
    if processes is None:
        much = student.levels * sum(H * W for H, W in images.sizes) > PROCESSES_PX
        processes = cores() if much else 1
    processes = min(processes, len(images))
    found = _coded_by(student, images, processes) if processes > 1 else _coded_here(student, images)
    each = zip(*found, strict=True)
    rate, quality, similar = (list(map(list, zip(*one, strict=True))) for one in each)
    return Measured("bpp", rate, quality, list(images.names), images.fingerprint, similar)


Points = tuple[list[float], list[float], list[float | None]]
"""Bits per pixel, PSNR and MS-SSIM of one picture at each level."""


def _coded_here(student: Student, images: ImageSet) -> list[Points]:
    return [real_points(student, image) for image in images.images]


def _coded_by(student: Student, images: ImageSet, processes: int) -> list[Points]:
    with tempfile.TemporaryDirectory() as folder:
        save_student(student, Path(folder))
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawn, _become_coder, (folder,)) as coders:
            with _no_script():  # processes start as work is given to them
                points = coders.map(_code, images.images)
            return list(points)


@contextmanager
def _no_script() -> Iterator[None]:
    """Processes that start meanwhile do not run the caller's script, which may have no guard against that."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


_coder: list[Student] = []
"""Of a process that codes for another one: its student."""


def _become_coder(folder: str) -> None:
    torch.set_num_threads(1)
    _coder[:] = [load_student(folder)]


def _code(image: NDArray[Any]) -> Points:
    return real_points(_coder[0], image)


@torch.no_grad()
def real_points(student: Student, image: NDArray[Any]) -> Points:
    """A picture uint8 [H, W, 3], coded and decoded at every level."""
    (H, W), x = image.shape[:2], padded(to_tensor(image))
    rate, quality, similar = [], [], []
    for level in range(1, student.levels + 1):
        coded = student.compress(x, level)
        decoded = student.decompress(coded["strings"], coded["shape"], level)
        if not torch.equal(coded["y_hat"], decoded["y_hat"]):
            raise TrialFailed(Reason.MISMATCH, f"level {level}: decoder and encoder disagree")
        bits = 8 * sum(len(string) for part in coded["strings"] for string in part)
        rate.append(bits / (H * W))
        restored = to_image(decoded["x_hat"][..., :H, :W])
        quality.append(psnr_db(restored, image))
        similar.append(ms_ssim(restored, image))
    return rate, quality, similar


class StudentCodec:
    """A student as something that can be evaluated."""

    def __init__(self, student: Student):
        self.student = student.eval()
        self.levels = student.levels

    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """x_hat and estimated bits [B] of padded pictures."""
        return spent(self.student(x, level), x)

    def every_level(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The same at each level, from one analysis."""
        y, z = self.student.latents(x)
        for level in range(1, self.levels + 1):
            yield spent(self.student.coded(y, z, level), x)


def spent(out: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """x_hat and estimated bits [B] of what a model returned for pictures x."""
    pixels = x.shape[-1] * x.shape[-2]
    return out["x_hat"], rate_bpp(out["likelihoods"], pixels) * pixels
