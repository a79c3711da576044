"""What becomes of a trial when its outcome is told: its state, what is attached, whether its arch is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas_kd.reasons import DEATHS, FAILURES, UNREAD, Reason
from nas_kd.study.record import CHECKPOINT, Outcome, record
from nas_kd.study.storage import (
    constraints_set,
    lined_up,
    live_trial,
    set_attr,
    set_constraints,
)
from nas_kd.study.trial_artifacts import attach, attach_same, constraints_of

if TYPE_CHECKING:
    from nas_kd.study.study import Study

MAX_DEATHS = 3
"""Of one arch's workers, before it is given up."""
OWN_ATTRS = ("arch", "arch_key", "driver", "retry_of", "deaths")
"""What a trial does not take over from an earlier one of the same arch."""
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


def tell(study: Study, number: int, outcome: Outcome) -> TrialState:
    """See ``Study.tell``."""
    if (trial := study.trials[number]).state == TrialState.RUNNING:
        attach_to(study, trial, outcome)  # outside of the lock: it copies files
    with study.locks.exclusive():
        trial = study.trials[number]
        if trial.state == TrialState.RUNNING:  # else it was taken for dead: its retry counts
            store(study, trial, outcome)
            settle_twins(study)
        state = study.trials[number].state
    # A failed trial goes on from its checkpoint, a stopped or unread one may; the others are through.
    if state in COUNTED and Reason.of(outcome.reason) not in (Reason.STOPPED, Reason.DOMINATED):
        (study.student_folder(trial) / CHECKPOINT).unlink(missing_ok=True)
    return state


def attach_to(study: Study, trial: FrozenTrial, outcome: Outcome) -> None:
    """Note, constraint and artifacts of a RUNNING trial."""
    shown_as = live_trial(study.optuna, trial)
    with suppress(optuna.exceptions.UpdateFinishedTrialError):  # taken for dead meanwhile
        attach(shown_as, study.folder, outcome, study.settings.objectives)


def store(study: Study, trial: FrozenTrial, outcome: Outcome) -> None:
    """The outcome's attributes and the trial's last state; call it inside the study's lock."""
    set_attrs(study, trial, outcome.attrs | {"constraints": constraints_of(outcome)})
    if outcome.values is not None:
        study.optuna.tell(trial.number, outcome.values)
        return
    said = outcome.reason or Reason.CRASH
    reason = Reason.of(said)
    deaths = record(trial).deaths + (reason in DEATHS)
    set_attrs(study, trial, {"reason": said, "deaths": deaths})
    if reason == Reason.INTERRUPTED or (reason in DEATHS and deaths < MAX_DEATHS):
        retry(study, trial, deaths)
    else:
        state = TrialState.FAIL if reason in FAILURES else TrialState.PRUNED
        study.optuna.tell(trial.number, state=state)


def retry(study: Study, trial: FrozenTrial, deaths: int) -> None:
    """Line up again, then fail: dying in between neither loses the trial nor doubles it."""
    params = lined_up(trial) | trial.params
    waits = any(record(t).retry_of == trial.number for t in study.trials)
    if params and not waits:
        attrs = {"retry_of": trial.number, "deaths": deaths}
        study.optuna.enqueue_trial(params, user_attrs=attrs)
    study.optuna.tell(trial.number, state=TrialState.FAIL)


def settle_twins(study: Study) -> None:
    """Tell the trials that waited for another trial of the same arch."""
    trials = study.trials
    for trial in trials:
        twin = record(trial).same_as
        if trial.state == TrialState.RUNNING and twin is not None:
            if trials[twin].state in COUNTED:
                tell_known(study, trial, trials[twin])
            elif trials[twin].state == TrialState.FAIL:
                study.optuna.tell(trial.number, state=TrialState.FAIL)


def tell_known(study: Study, trial: FrozenTrial, known: FrozenTrial) -> None:
    """Give a trial the outcome of an earlier one of the same arch."""
    attrs = {k: v for k, v in known.user_attrs.items() if k not in OWN_ATTRS}
    set_attrs(study, trial, attrs | {"same_as": known.number})
    set_constraints(study.optuna, trial, constraints_set(known) or [0.0, 0.0])
    attach_same(live_trial(study.optuna, trial), known.number)
    values = known.values if known.state == TrialState.COMPLETE else None
    study.optuna.tell(trial.number, values, state=known.state)


def set_attrs(study: Study, trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
    """Write attributes of a RUNNING trial."""
    for key, value in attrs.items():
        set_attr(study.optuna, trial, key, value)


def is_unread(trial: FrozenTrial) -> bool:
    """Whether it was trained and could not be measured."""
    return trial.state == TrialState.FAIL and record(trial).reason in UNREAD
