"""Another study as a prior: its archs, values and costs, kept in the study that starts from it."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState

from nas_kd.errors import StudyError
from nas_kd.objectives import MEASURED, TABLE, of_kind
from nas_kd.reasons import REFUSED
from nas_kd.study.attributes import Row
from nas_kd.study.record import record
from nas_kd.study.settings import QUALITY
from nas_kd.study.study import Study, open_study
from nas_kd.study.telling import COUNTED

MAX_ROWS = 1000
"""Trials that are taken over, the latest; they are read at every proposal."""


def take_over(study: Study) -> None:
    """Keep the trials of the study that the settings name, once; later changes there change nothing here."""
    name = study.settings.from_study
    if name is None or study.prior is not None:
        return
    if name == study.settings.name:
        raise StudyError(f"from_study = '{name}': is this study itself; name another")
    source = open_study(name, root=study.root)
    found = rows(source, study)
    if not any(row["quality"] is not None or row["front"] for row in found):
        raise StudyError(f"study '{name}': has no finished trial; nothing can be taken over")
    study.keep_prior(found)


def rows(source: Study, study: Study) -> list[Row]:
    """What the trials of ``source`` say, as JSON can hold it; the front first.

    params: choices in the space of ``study``, where it holds the arch. quality: where both have the same
    quality objective. front: whether the arch is to be tried first.
    """
    front = {t.number: place for place, t in enumerate(source.front())}
    own = [name for name in study.settings.objectives if name in QUALITY]
    same = [name for name in own if name in source.settings.objectives]
    place = source.settings.objectives.index(same[0]) if same else None
    trials = [t for t in source.trials if t.state in COUNTED and record(t).same_as is None]
    trials = [t for t in trials if record(t).reason not in REFUSED][-MAX_ROWS:]
    trials.sort(key=lambda t: front.get(t.number, len(front)))
    return [_row(t, study, place, t.number in front) for t in trials]


def _row(trial: FrozenTrial, study: Study, place: int | None, front: bool) -> Row:
    known = record(trial)
    done = trial.state == TrialState.COMPLETE
    params = study.space.params_of(known.arch)
    measured = {name: known.measured(name) for name in of_kind(tuple(TABLE), *MEASURED)}
    return {
        "arch": known.arch.to_json(),
        "params": params,
        "front": front and params is not None,
        "quality": trial.values[place] if done and place is not None else None,
        "lacks": 0.0 if done else known.short_db or None,
        "costs": {name: value for name, value in measured.items() if value is not None},
    }
