"""Which members of a front cannot be told from each other by an objective, and count as one.

All trials are judged by the same pictures, so a difference of BD-rates is taken picture by picture, and is far less
uncertain than either of them: what moves both alike falls out. Student's t, not a bootstrap, says how far it might
lie from zero, for that holds for as few as two pictures where differences are normal. Readings of energy or time are
independent; their difference has the root of the summed squares as its uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import hypot, sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial
from scipy.special import stdtrit

from nas_kd.objectives import BD_RATES, MEASURED, SIMILAR, TABLE, of_kind
from nas_kd.study.record import record
from nas_kd.study.uncertainty import by_picture, uncertainty_of, value_of

if TYPE_CHECKING:
    from nas_kd.study.study import Study

CONFIDENCE = 0.95

DEVIATIONS = 2.0
"""By which two readings must differ, of their difference's standard uncertainty."""

Apart = Callable[[int, int], bool]
"""Whether two members, by their places, can be told from each other."""


def alike(study: Study) -> dict[str, list[list[int]]]:
    """By objective, groups of the front's members none of which can be told from another: numbers of trials."""
    found: dict[str, list[list[int]]] = {}
    for name in study.settings.objectives:
        known = [(v, t) for t in study.front() if (v := value_of(study, t, name)) is not None]
        trials = [trial for _, trial in sorted(known, key=lambda one: (one[0], one[1].number))]
        if groups := grouped(len(trials), _apart_by(study, trials, name)):
            found[name] = [[trials[i].number for i in group] for group in groups]
    return found


def grouped(count: int, apart: Apart) -> list[list[int]]:
    """Of members in order, groups of two and more that are alike all with all; each is in one group at most."""
    groups: list[list[int]] = []
    for i in range(count):
        if groups and not any(apart(other, i) for other in groups[-1]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return [group for group in groups if len(group) > 1]


def _apart_by(study: Study, trials: Sequence[FrozenTrial], name: str) -> Apart:
    """Trials of which nothing is known are apart from all others."""
    if name in BD_RATES:
        pictures = [by_picture(study.anchor, record(trial).rd, name) or [] for trial in trials]
        return lambda i, j: pictures_differ(pictures[i], pictures[j])
    readings = [(value_of(study, t, name), uncertainty_of(study, t, name)) for t in trials]
    return lambda i, j: readings_differ(readings[i], readings[j])


def difference(
    first: Sequence[float | None], second: Sequence[float | None]
) -> tuple[float, float] | None:
    """By how much the second lies above the first in the mean of pairs, and half the interval of that (``CONFIDENCE``).

    None where fewer than two pairs are known.
    """
    known = zip(first, second, strict=False)
    pairs = [b - a for a, b in known if a is not None and b is not None]
    if (n := len(pairs)) < 2:
        return None
    reach = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * stdev(pairs) / sqrt(n)
    return fmean(pairs), float(reach)


def pictures_differ(first: Sequence[float | None], second: Sequence[float | None]) -> bool:
    """Whether two figures, given by picture, differ; yes where nothing is known."""
    found = difference(first, second)
    return found is None or abs(found[0]) > found[1]


def readings_differ(
    first: tuple[float | None, float | None], second: tuple[float | None, float | None]
) -> bool:
    """Whether two readings, each with its uncertainty, differ; yes where nothing is known."""
    (a, a_sd), (b, b_sd) = first, second
    if a is None or b is None or a_sd is None or b_sd is None:
        return True
    return abs(a - b) > DEVIATIONS * hypot(a_sd, b_sd)


SAID = {
    "bd_rate": "BD-rate on these pictures",
    SIMILAR: "BD-rate by MS-SSIM on these pictures",
} | {
    name: f"measured {' of the '.join(name.split(':'))}"
    for name in of_kind(tuple(TABLE), *MEASURED)
}


def notes(study: Study) -> list[str]:
    """What ``alike`` found, a sentence each."""
    return [
        f"by {SAID[name]} trials {_listed(group)} count as one: the difference lies within its uncertainty"
        for name, groups in alike(study).items()
        for group in groups
    ]


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}"
