"""Asynchronous successive halving for several objectives: which trial goes on past a rung.

At a rung (a number of steps) a trial is ranked among all trials that have been there: by
non-dominated sorting (Deb et al., IEEE TEC 2002), within a layer by crowding distance on normalised
values. It goes on where it is in the best third, or where nothing dominates it: a front is wanted,
and no layer but the first can be told to be off it. Whoever comes decides at once and waits for
nobody (Li et al., MLSys 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nas_kd.study.front import Floats, Point, dominates, pareto_front

KEEP = 3
"""One in so many goes on; the reduction factor of Li et al. is 3 or 4."""


def rungs_of(steps: int) -> tuple[int, ...]:
    """The steps at which trials are compared: a ninth and a third of the way."""
    return tuple(sorted({r for r in (steps // KEEP**2, steps // KEEP) if 0 < r < steps}))


def goes_on(own: Point, others: Sequence[Point]) -> bool:
    """Whether a trial with values ``own`` at a rung goes on, given all others' values there.

    Every value is minimised. While fewer than KEEP have come nobody is stopped.
    """
    points = [*others, own]
    if len(points) < KEEP or not any(dominates(other, own) for other in others):
        return True
    return ranks(points)[-1] < math.ceil(len(points) / KEEP)


def ranks(points: Sequence[Point]) -> list[int]:
    """The place of each point, 0 for the best: by layer, then the least crowded first."""
    crowding = np.empty(len(points))
    layer = np.empty(len(points), int)
    for depth, members in enumerate(layers(points)):
        layer[members] = depth
        crowding[members] = crowding_distance([points[i] for i in members])
    order = np.lexsort((-crowding, layer))
    # An order says who comes at a place; a rank, which place somebody has.
    place = np.empty(len(points), int)
    place[order] = np.arange(len(points))
    return [int(p) for p in place]


def layers(points: Sequence[Point]) -> list[list[int]]:
    """Indexes by layer: the Pareto front, the front of what remains, and so on."""
    found, left = [], list(range(len(points)))
    while left:
        front = {left[i] for i in pareto_front([points[i] for i in left])}
        found.append(sorted(front))
        left = [i for i in left if i not in front]
    return found


def crowding_distance(points: Sequence[Point]) -> Floats:
    """Sum over objectives of the gap between a point's neighbours, each as a share of the range."""
    values = np.asarray(points, float)
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        extent = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if extent > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / extent
    return distance
