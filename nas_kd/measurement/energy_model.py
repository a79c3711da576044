"""Energy as a sum over multiply-accumulates, bytes and kernels: a model beside the measurement, never in its place.

It is fitted to readings of one device and says how far off it is for archs that it has not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nas_kd.codec.macs import arch_cost
from nas_kd.codec.student import Student
from nas_kd.measurement.reading import Reading

MIN_READINGS = 8
FOLDS = 8
SOURCE = "model"
"""Where a modelled figure comes from; no measured one has this source."""


@dataclass(frozen=True)
class Work:
    """What a pass does: multiply-accumulates, bytes that its kernels read and write, and kernels."""

    macs: int
    bytes: int
    kernels: int


class _Kernels(TorchDispatchMode):
    """Counts operations that are no views, and the bytes of what goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
            self.kernels += 1
            self.bytes += sum(
                leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor)
            )
        return result


def work_of(student: Student, part: str, x: Tensor) -> Work:
    """The work of encoder, decoder or both on a frame [1, 3, 512, 768], by running them once where they lie."""
    level = torch.ones(1, device=x.device)
    with torch.inference_mode():
        with _Kernels() as first:
            latents = student.rounded(x, level)
        with _Kernels() as second:
            student.restored(*latents, level)
    sides = {"encoder": (first,), "decoder": (second,), "both": (first, second)}[part]
    cost = arch_cost(student.arch, student.levels)
    macs = {"encoder": cost.encoder.macs, "decoder": cost.decoder.macs}
    return Work(
        sum(macs.values()) if part == "both" else macs[part],
        sum(side.bytes for side in sides),
        sum(side.kernels for side in sides),
    )


@dataclass(frozen=True)
class EnergyModel:
    """Energy in mJ per multiply-accumulate, byte and kernel, and of a pass at all; none of them is negative.

    error_percent: mean absolute error on readings that the fit had not seen. readings: how many there were.
    """

    mj_per_mac: float
    mj_per_byte: float
    mj_per_kernel: float
    mj_per_pass: float
    error_percent: float
    readings: int

    def predict_mj(self, work: Work) -> float:
        """What the model says of a pass: no measurement."""
        return float(_columns([work])[0] @ self._weights)

    @property
    def _weights(self) -> NDArray[Any]:
        return np.array([self.mj_per_mac, self.mj_per_byte, self.mj_per_kernel, self.mj_per_pass])

    def to_json(self) -> dict[str, Any]:
        """All of it, under the name of what it is."""
        return asdict(self) | {"source": SOURCE}


def fitted(works: Sequence[Work], mj: Sequence[float]) -> EnergyModel | None:
    """A model of these readings with its cross-validated error; None of fewer than ``MIN_READINGS``."""
    if len(works) < MIN_READINGS:
        return None
    x, y = _columns(works), np.array(mj, float)
    weights = _weights(x, y)
    # Every so manyth reading is left out in turn, neighbours in time in different turns.
    folds = np.arange(len(y)) % min(FOLDS, len(y))
    off = np.concatenate(
        [
            np.abs(x[folds == f] @ _weights(x[folds != f], y[folds != f]) / y[folds == f] - 1)
            for f in set(folds)
        ]
    )
    mac, byte, kernel, once = map(float, weights)
    return EnergyModel(mac, byte, kernel, once, float(100 * off.mean()), len(y))


def of_readings(readings: Iterable[Reading]) -> EnergyModel | None:
    """A model of those that were measured with their work."""
    known = [(r.value, r.details["work"]) for r in readings if "work" in r.details]
    pairs = [(Work(**work), mj) for mj, work in known if mj is not None]
    return fitted([work for work, _ in pairs], [mj for _, mj in pairs])


def _columns(works: Sequence[Work]) -> NDArray[Any]:
    return np.array([[w.macs, w.bytes, w.kernels, 1.0] for w in works], float)


def _weights(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """Least squares of relative errors: a small student's millijoules count as a large one's."""
    scale = np.maximum(x.max(axis=0), 1e-30)
    return nnls(x / scale / y[:, None], np.ones(len(y)))[0] / scale
