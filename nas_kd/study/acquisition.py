"""Expected hypervolume improvement where one objective is uncertain and the costs are known.

Every objective is minimised. With quality Q ~ N(mean, sd^2) and exact costs c, a point adds to the hypervolume the
volume it dominates alone. As a function of q that volume falls with slope -A(q), A being the part of the box from c to
the reference that no point of a quality up to q dominates in costs. A is constant between the qualities
q_1 <= ... <= q_K of the front, so that

    E = sum_k A_k (psi(q_k+1) - psi(q_k)),   psi(t) = int_-inf^t P(Q < s) ds = (t - mean) Phi(u) + sd phi(u)

with u = (t - mean) / sd, q_0 = -inf and q_K+1 the reference: a closed form and no sampling. Far from the front every
term is below the smallest number there is, so that logarithms are added up (Ament et al., NeurIPS 2023).
"""

from __future__ import annotations

import numpy as np
from scipy.special import erfcx, ndtr

TAIL = -1e3
"""Below it psi is its asymptote, phi(u) / u^2, to a part in 10^6; above it that would cancel digits."""


def log_expected_improvement(
    mean: np.ndarray,
    sd: np.ndarray,
    costs: np.ndarray,
    front: np.ndarray,
    reference: np.ndarray,
) -> np.ndarray:
    """Logarithm of the expected growth of the hypervolume by each candidate [n]; -inf where it cannot grow.

    Args:
        mean: of the uncertain objective [n].
        sd: its standard deviations [n], above 0.
        costs: the candidates' other objectives [n, c], c up to 2.
        front: points found so far [k, 1 + c], the uncertain objective first; dominated ones add nothing.
        reference: bounds the volume [1 + c].
    """
    inside = (
        front[np.all(front < reference, axis=1)] if len(front) else np.empty((0, len(reference)))
    )
    inside = inside[np.argsort(inside[:, 0], kind="stable")]
    steps = np.append(inside[:, 0], reference[0])
    below = found = np.full(len(mean), -np.inf)
    for k, step in enumerate(steps):
        until = _log_psi(step, mean, sd)
        found = np.logaddexp(
            found, _log(_exposed(costs, inside[:k, 1:], reference[1:])) + _minus(until, below)
        )
        below = until
    return found


def _log(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(x)


def _minus(more: np.ndarray, less: np.ndarray) -> np.ndarray:
    """log(exp(more) - exp(less))."""
    return more + _log(-np.expm1(np.minimum(less - more, 0.0)))


def _log_psi(t: float, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    u = (t - mean) / sd
    near, tail, far = np.maximum(u, -1.0), np.clip(u, TAIL, -1.0), np.minimum(u, TAIL)
    density = -0.5 * u**2 - 0.5 * np.log(2 * np.pi)
    high = _log(near * ndtr(near) + np.exp(-0.5 * near**2) / np.sqrt(2 * np.pi))
    # 1 + u Phi(u) / phi(u), where both are tiny.
    low = density + np.log1p(tail * np.sqrt(np.pi / 2) * erfcx(-tail / np.sqrt(2)))
    last = density - 2 * np.log(-far)
    return np.log(sd) + np.where(u > -1, high, np.where(u > TAIL, low, last))


def _exposed(costs: np.ndarray, points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Of the box from each candidate's costs to the reference, what no point dominates [n]."""
    if costs.shape[1] == 0:
        return np.ones(len(costs)) if not len(points) else np.zeros(len(costs))
    if costs.shape[1] == 1:
        bound = min(points[:, 0].min(), reference[0]) if len(points) else reference[0]
        return np.maximum(bound - costs[:, 0], 0.0)
    return _exposed_area(costs, points, reference)


def _exposed_area(costs: np.ndarray, points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The area under the staircase of the points, right of and above each candidate [n]."""
    order = np.lexsort((points[:, 1], points[:, 0]))
    height = np.minimum.accumulate(points[order, 1])
    lower = np.append(True, np.diff(height) < 0)[: len(height)]
    left = np.concatenate([[-np.inf], points[order, 0][lower]])
    top = np.concatenate([[reference[1]], height[lower]])
    right = np.append(left[1:], reference[0])
    width = np.minimum(right, reference[0]) - np.maximum(left, costs[:, :1])
    return np.sum(np.maximum(width, 0) * np.maximum(top - costs[:, 1:], 0), axis=1)
