"""What a trial's figure is worth: its value in the unit that is printed, and its bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from nas_kd.errors import StudyError
from nas_kd.evaluation.bd_rate import RDCurve, bootstrap_bd_rate, per_image_bd_rates
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.objectives import BD_RATES, SIMILAR, TABLE, of_kind
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


def over_pictures(anchor: Anchor, rd: Measured, name: str) -> float | None:
    """Half the 95 % interval of a BD-rate over the pictures; None where the anchor has no curves of their own."""
    if (pairs := _curves(anchor, rd, name)) is None:
        return None
    found = bootstrap_bd_rate(*pairs[:2], seed=0, intervals_db=pairs[2])
    return None if found.low is None or found.high is None else (found.high - found.low) / 2


def by_picture(anchor: Anchor | None, rd: Measured | None, name: str) -> list[float | None] | None:
    """BD-rate of each picture in per cent, None where there is none; empty where nothing is known by picture.

    None for other objectives: an R-D cost is what it is on the study's pictures.
    """
    if name not in BD_RATES:
        return None
    if anchor is None or rd is None or (pairs := _curves(anchor, rd, name)) is None:
        return []
    return per_image_bd_rates(*pairs)


def _curves(
    anchor: Anchor, rd: Measured, name: str
) -> tuple[list[RDCurve], list[RDCurve], list[tuple[float, float]]] | None:
    """Of each picture the teacher's curve, the trial's and the interval, where the teacher's own rises."""
    teacher = anchor.by(name).per_image
    curves = rd.similarity_per_image() if name == SIMILAR else rd.per_image()
    if not teacher or len(teacher) != len(curves):
        return None
    known = [
        (t, c, i) for t, c in zip(teacher, curves, strict=True) if (i := _middle(t)) is not None
    ]
    return [t for t, _, _ in known], [c for _, c, _ in known], [i for *_, i in known]


def _middle(teacher: RDCurve) -> tuple[float, float] | None:
    try:
        return interval_db(teacher)
    except StudyError:
        return None  # on this picture the teacher's own curve does not rise
