"""What archs look like to a model, and the model: a Gaussian process with a linear part."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from nas_kd.codec.arch import Arch
from nas_kd.codec.macs import ArchCost, arch_cost
from nas_kd.codec.search_space import SearchSpace

DRAWS = 256
"""Random archs whose spread scales the features."""

FIT_POINTS = 200
"""Trials that the kernel's few numbers are fitted to; the process itself sees MAX_POINTS."""
MAX_POINTS = 800


class Features:
    """Archs as vectors of zero mean and unit variance over a space.

    Of the canonical arch: widths, M and kernels as logarithms, depths and switches as they are, words one by
    one, and the logarithm of the MACs of encoder, decoder and both. What does not vary in the space is left out.
    """

    def __init__(self, space: SearchSpace):
        self._known: dict[Arch, tuple[np.ndarray, ArchCost]] = {}
        self._words: list[tuple[str, str]] = []
        archs = [space.draw(seed) for seed in range(DRAWS)]
        leaves = [_leaves(arch) for arch in archs]
        texts = {(name, v) for row in leaves for name, v in row.items() if isinstance(v, str)}
        self._words = sorted(texts)
        self._numbers = sorted(name for name, v in leaves[0].items() if not isinstance(v, str))
        rows = np.array([self._raw(arch, arch_cost(arch)) for arch in archs])
        self._kept = rows.std(axis=0) > 1e-6  # rounding is no variety
        self._mean, self._sd = rows.mean(axis=0), np.where(self._kept, rows.std(axis=0), 1.0)

    def of(self, arch: Arch) -> np.ndarray:
        """The vector of an arch."""
        return self._point(arch)[0]

    def cost(self, arch: Arch) -> ArchCost:
        """Its MACs and parameters."""
        return self._point(arch)[1]

    def _point(self, arch: Arch) -> tuple[np.ndarray, ArchCost]:
        if arch not in self._known:
            cost = arch_cost(arch)
            row = (self._raw(arch, cost) - self._mean) / self._sd
            self._known[arch] = row[self._kept], cost
        return self._known[arch]

    def _raw(self, arch: Arch, cost: ArchCost) -> np.ndarray:
        leaves = _leaves(arch)
        numbers = [leaves[name] for name in self._numbers]
        words = [float(leaves[name] == word) for name, word in self._words]
        sides = (cost.total, cost.encoder, cost.decoder)
        return np.array([*numbers, *words, *(np.log(side.macs) for side in sides)], float)


def _leaves(arch: Arch) -> dict[str, Any]:
    """Entries of a canonical arch by name; sizes as logarithms, so that a doubling is a doubling."""
    found: dict[str, Any] = {}
    whole = dict(vars(arch.canonical()))
    for side in ("encoder", "decoder"):
        for key, value in vars(whole.pop(side)).items():
            many = value if isinstance(value, tuple) else (value,)
            found |= {f"{side}.{key}.{i}": _leaf(key, v) for i, v in enumerate(many)}
    return found | {key: _leaf(key, value) for key, value in whole.items()}


def _leaf(key: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    return float(np.log2(max(value, 4))) if key in ("widths", "M", "hyper") else float(value)


class Surrogate:
    """A Gaussian process over archs: linear in the features plus Matern 5/2, and noise.

    Args:
        x: features [n, d].
        y: values [n].
        noise: known standard deviation of each value [n], beside what all share; 0 where none is known.
        seed: which points the kernel is fitted to, where there are many.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, noise: np.ndarray, seed: int):
        self._centre, self._scale = float(np.mean(y)), float(np.std(y)) or 1.0
        order = np.random.default_rng(seed).permutation(len(y))
        scaled, variance = (y - self._centre) / self._scale, (noise / self._scale) ** 2 + 1e-8
        fitted, kept = order[:FIT_POINTS], order[:MAX_POINTS]
        kernel = self._fit(_kernel(x.shape[1]), x[fitted], scaled[fitted], variance[fitted])
        self._noise = kernel.k2.noise_level
        # Without the shared noise: what is asked for is the arch's own value.
        self._model = GaussianProcessRegressor(
            kernel.k1, alpha=variance[kept] + self._noise, optimizer=None
        ).fit(x[kept], scaled[kept])

    @staticmethod
    def _fit(kernel: Any, x: np.ndarray, y: np.ndarray, variance: np.ndarray) -> Any:
        with warnings.catch_warnings():
            # A number at its bound is an answer: a flat direction, or no noise.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return GaussianProcessRegressor(kernel, alpha=variance).fit(x, y).kernel_

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the value, without noise [n] each."""
        mean, sd = self._model.predict(x, return_std=True)
        return mean * self._scale + self._centre, np.maximum(sd, 1e-6) * self._scale


def _kernel(d: int) -> Any:
    length = np.sqrt(d)
    curved = ConstantKernel(0.3, (1e-3, 10.0)) * Matern(length, (0.3 * length, 10 * length), nu=2.5)
    linear = ConstantKernel(0.5 / d, (1e-5, 10.0)) * DotProduct(1.0, "fixed")
    return curved + linear + WhiteKernel(0.05, (1e-5, 1.0))
