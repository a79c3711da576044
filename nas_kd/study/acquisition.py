"""Expected hypervolume improvement where one objective is uncertain and the costs are known.

Every objective is minimised. With quality Q ~ N(mean, sd^2) and exact costs c, a point adds to the hypervolume the
volume it dominates alone. As a function of q that volume falls with slope -A(q), A being the part of the box from c to
the reference that no point of a quality up to q dominates in costs. A is constant between the qualities
q_1 <= ... <= q_K of the front, so that

    E = sum_k A_k (psi(q_k+1) - psi(q_k)),   psi(t) = int_-inf^t P(Q < s) ds = (t - mean) Phi(u) + sd phi(u)

with u = (t - mean) / sd, q_0 = -inf and q_K+1 the reference: a closed form and no sampling.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr


def expected_improvement(
    mean: np.ndarray,
    sd: np.ndarray,
    costs: np.ndarray,
    front: np.ndarray,
    reference: np.ndarray,
) -> np.ndarray:
    """Expected growth of the hypervolume by each candidate [n].

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
    below = np.zeros(len(mean))
    found = np.zeros(len(mean))
    for k, step in enumerate(steps):
        until = _psi(step, mean, sd)
        found += _exposed(costs, inside[:k, 1:], reference[1:]) * (until - below)
        below = until
    return found


def _psi(t: float, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    u = (t - mean) / sd
    return (t - mean) * ndtr(u) + sd * np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)


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
