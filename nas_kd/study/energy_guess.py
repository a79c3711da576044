"""What an arch may draw, by multiply-accumulates, bytes and kernels: to choose by, and never a value of a trial."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from nas_kd.codec.arch import Arch

if TYPE_CHECKING:
    from nas_kd.measurement.energy_model import EnergyModel, Work

MAX_READINGS = 64
"""The latest ones; the work of an arch takes some 40 ms to count."""
LEAST_SD, SD_OF_ERROR = 0.005, float(np.sqrt(np.pi / 2))
"""A normal variable's deviation, of its mean absolute one."""


@lru_cache(maxsize=4096)
def work(arch: Arch, part: str) -> Work:
    """What a part of an arch's student does on a frame, counted without computing it."""
    import torch

    from nas_kd.codec.networks import FRAME
    from nas_kd.codec.student import Student
    from nas_kd.measurement.energy_model import work_of

    return work_of(Student(arch).eval().to("meta"), part, torch.empty(FRAME, device="meta"))


class EnergyGuess:
    """The energy model of a study's readings so far, as an uncertain cost."""

    def __init__(self, model: EnergyModel, part: str):
        self.model, self.part = model, part

    @classmethod
    def of(cls, known_mj: dict[Arch, float], part: str) -> EnergyGuess | None:
        """Fitted to readings by arch, the latest last; None where they are too few."""
        from nas_kd.measurement.energy_model import fitted

        latest = list(known_mj.items())[-MAX_READINGS:]
        model = fitted([work(arch, part) for arch, _ in latest], [mj for _, mj in latest])
        return None if model is None else cls(model, part)

    @property
    def sd(self) -> float:
        """Standard deviation of a logarithm, by the error of cross-validation."""
        return max(LEAST_SD, SD_OF_ERROR * self.model.error_percent / 100)

    def joined(
        self, archs: list[Arch], mean: np.ndarray, sd: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of energies guessed otherwise, joined with the model's: the surer counts more."""
        own = np.log([self.model.predict_mj(work(arch, self.part)) for arch in archs])
        share = sd**2 / (sd**2 + self.sd**2)
        return mean + share * (own - mean), np.minimum(sd, self.sd)
