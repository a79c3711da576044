"""Domination, the Pareto front, its hypervolume and the point it is measured from.

Every objective is minimised. A point is one trial's values, in the study's order of objectives.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nas_kd.errors import StudyError

Point = Sequence[float]
Floats = NDArray[np.float64]


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is nowhere worse than `b` and better somewhere.

    Raises:
        StudyError: the points differ in length or hold a value that is not finite.
    """
    better, worse = _objectives([a, b])
    return bool(np.all(better <= worse) and np.any(better < worse))


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indexes of the points that no other point dominates, in input order.

    Exact duplicates of a front point are all kept, as in optuna's `study.best_trials`.

    Raises:
        StudyError: the points differ in length or hold a value that is not finite.
    """
    values = _objectives(points)
    return [index for index, point in enumerate(values) if not _is_dominated(point, values)]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Volume that the points dominate and `reference` bounds, in the product of their units.

    Exact, by slicing along the last objective (While et al., IEEE TEC 2006); meant for up to four
    objectives, since each further one multiplies the cost by the number of points. A point that
    is not better than the reference in every objective adds nothing.

    Raises:
        StudyError: lengths differ or a value is not finite.
    """
    corner = _objectives([reference], "reference point")[0]
    values = _objectives(points, width=len(corner))
    return _volume(values[np.all(values < corner, axis=1)], corner)


def reference_point(points: Sequence[Point], margin: float = 0.1) -> tuple[float, ...]:
    """Per objective: the worst value among the points plus `margin` times their range.

    Where all points share one value, `margin` times its magnitude is added instead (`margin`
    itself at zero), so that the objective does not cancel the volume. Given a front, the worst
    values are its nadir; given all trials, one bad trial moves the reference.

    Raises:
        StudyError: no points, a value that is not finite, or a margin that is not above zero.
    """
    values = _objectives(points)
    if not len(values):
        raise StudyError("no points for a reference point: it needs at least one complete trial")
    if not (math.isfinite(margin) and margin > 0):
        raise StudyError(f"margin {margin} of the reference point: give a finite number above 0")
    worst = values.max(axis=0)
    extent = worst - values.min(axis=0)
    extent = np.where(extent > 0, extent, np.abs(worst))
    extent = np.where(extent > 0, extent, 1.0)
    return tuple(float(value) for value in worst + margin * extent)


def _objectives(points: Sequence[Point], noun: str = "point", width: int | None = None) -> Floats:
    """The points as an array [points, objectives], checked one by one so that errors name one."""
    if not len(points):
        return np.empty((0, width or 0))
    width = len(points[0]) if width is None else width
    for index, point in enumerate(points):
        if len(point) != width or not width:
            raise StudyError(
                f"{noun} {index} has {len(point)} objectives where {width} are expected: "
                "every point needs one value per objective, and at least one objective"
            )
        if any(value is None or not math.isfinite(value) for value in point):
            raise StudyError(
                f"{noun} {index} is {tuple(point)}: every objective must be a finite number; "
                "leave out trials without values"
            )
    return np.asarray(points, dtype=float)


def _is_dominated(point: Floats, others: Floats) -> bool:
    return bool(np.any(np.all(others <= point, axis=1) & np.any(others < point, axis=1)))


def _volume(values: Floats, corner: Floats) -> float:
    """Hypervolume of points that are all strictly better than `corner`."""
    if not len(values):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - values.min())
    values = values[np.argsort(values[:, -1])]
    heights = np.diff(np.append(values[:, -1], corner[-1]))
    if len(corner) == 2:
        return float(heights @ (corner[0] - np.minimum.accumulate(values[:, 0])))
    return _sum_of_slices(values[:, :-1], heights, corner[:-1])


def _sum_of_slices(sections: Floats, heights: Floats, corner: Floats) -> float:
    """Sum of height times cross-section, where each slice adds one point to the section."""
    total, area = 0.0, 0.0
    section = np.empty((0, len(corner)))
    for added, height in zip(sections, heights, strict=True):
        if not np.any(np.all(section <= added, axis=1)):
            section = np.vstack([section[~np.all(added <= section, axis=1)], added])
            area = _volume(section, corner)
        total += float(height) * area
    return total
