"""What a trial's figure is worth: its value in the unit that is printed, its bar, and whom it cannot be told from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from nas_kd.errors import StudyError
from nas_kd.evaluation.bd_rate import RDCurve, bootstrap_bd_rate
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.objectives import BD_RATES, MEASURED, SIMILAR, TABLE, of_kind
from nas_kd.study.anchor import Anchor, interval_db
from nas_kd.study.record import record

if TYPE_CHECKING:
    from nas_kd.study.study import Study

UNITS = {name: one.unit for name, one in TABLE.items()}
SCALE = {name: one.scale for name, one in TABLE.items()}
EXACT = tuple(of_kind(tuple(TABLE), "counted"))
"""Objectives that are computed from the arch alone, without doubt."""


def value_of(study: Study, trial: FrozenTrial, name: str) -> float | None:
    """A trial's figure in the unit that is printed; MACs are known whether or not they were searched."""
    if trial.values and name in study.settings.objectives:
        return float(trial.values[study.settings.objectives.index(name)] * SCALE[name])
    if (unread := record(trial).quality.get(name)) is not None:
        return unread * SCALE[name]
    cost = record(trial).cost if name == "flops" else None
    return None if cost is None else cost.macs * SCALE[name]


def uncertainty_of(study: Study, trial: FrozenTrial, name: str) -> float | None:
    """What the bars show, in the unit that is printed; None where there is none.

    Of a measured objective the standard uncertainty; of a BD-rate half the 95 % interval over pictures.
    """
    if name in BD_RATES:
        return _over_pictures(study, trial, name)
    reading = record(trial).readings.get(name)
    if reading is None or reading.uncertainty is None:
        return None
    return reading.uncertainty * SCALE[name]


def _over_pictures(study: Study, trial: FrozenTrial, name: str) -> float | None:
    anchor, rd = study.anchor, record(trial).rd
    if rd is None or anchor is None or value_of(study, trial, name) is None:
        return None
    return over_pictures(anchor, rd, name)


def quality_bar(anchor: Anchor | None, rd: Measured | None, name: str) -> float | None:
    """The bar of a quality objective; an R-D cost is what it is on the study's pictures."""
    if name not in BD_RATES:
        return 0.0
    return None if anchor is None or rd is None else over_pictures(anchor, rd, name)


def over_pictures(anchor: Anchor, rd: Measured, name: str) -> float | None:
    """Half the 95 % interval of a BD-rate over the pictures; None where the anchor has no curves of their own."""
    teacher = anchor.by(name).per_image
    curves = rd.similarity_per_image() if name == SIMILAR else rd.per_image()
    if not teacher or len(teacher) != len(curves):
        return None
    pairs = [
        (t, c, i) for t, c in zip(teacher, curves, strict=True) if (i := _middle(t)) is not None
    ]
    found = bootstrap_bd_rate(
        [t for t, _, _ in pairs],
        [c for _, c, _ in pairs],
        seed=0,
        intervals_db=[i for *_, i in pairs],
    )
    return None if found.low is None or found.high is None else (found.high - found.low) / 2


def _middle(teacher: RDCurve) -> tuple[float, float] | None:
    try:
        return interval_db(teacher)
    except StudyError:
        return None  # on this picture the teacher's own curve does not rise


def alike(study: Study) -> dict[str, list[list[int]]]:
    """By objective, the front's members whose intervals all overlap: numbers of trials, from two on."""
    found: dict[str, list[list[int]]] = {}
    for name in study.settings.objectives:
        # A bar on a BD-rate is a 95 % interval already; a standard uncertainty counts twice.
        times = 1.0 if name in BD_RATES else 2.0
        spans = []
        for trial in study.front():
            value, bar = value_of(study, trial, name), uncertainty_of(study, trial, name)
            if value is not None and bar is not None:
                spans.append((trial.number, value - times * bar, value + times * bar))
        if groups := overlapping(spans):
            found[name] = groups
    return found


def overlapping(spans: Sequence[tuple[int, float, float]]) -> list[list[int]]:
    """Groups of (number, low, high) that share a point all together, each number in one group at most."""
    groups: list[list[int]] = []
    least_high = float("-inf")
    for number, low, high in sorted(spans, key=lambda span: span[1] + span[2]):
        if groups and low <= least_high:
            groups[-1].append(number)
            least_high = min(least_high, high)
        else:
            groups.append([number])
            least_high = high
    return [group for group in groups if len(group) > 1]


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
        f"by {SAID[name]} trials {_listed(group)} count as one: their intervals overlap"
        for name, groups in alike(study).items()
        for group in groups
    ]


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}"
