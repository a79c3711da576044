"""Which arch is tried next: lined up, of a grid, or proposed by the sampler; none is handed out twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas_kd.codec.arch import Arch, Choice
from nas_kd.codec.macs import arch_cost
from nas_kd.reasons import Reason
from nas_kd.seeds import derived_seed
from nas_kd.study.grid import under
from nas_kd.study.limits import excess, reason_of
from nas_kd.study.record import Outcome, record
from nas_kd.study.sampler import History, make_sampler
from nas_kd.study.storage import lined_up, live_trial
from nas_kd.study.telling import COUNTED, attach_to, is_unread, store, tell_known

if TYPE_CHECKING:
    from nas_kd.study.study import Study

MAX_REFUSED = 20
"""Proposals in a row that may be over a limit; then a random arch under it is taken."""


def ask(study: Study, budget: int) -> tuple[int, Arch] | None:
    """See ``Study.ask``."""
    refused = 0
    while (trial := _reserved(study, budget, refused)) is not None:
        chosen = _chosen(study, trial)
        if isinstance(chosen, Arch):
            return trial.number, chosen
        refused += chosen == "refused"
    return None


def _reserved(study: Study, budget: int, refused: int) -> optuna.Trial | None:
    """A trial that counts towards the budget; its arch is still to be chosen, unless it was lined up."""
    with study.locks.exclusive():
        trials = study.trials
        open_trials = sum(t.state == TrialState.RUNNING for t in trials)
        if study.counted() + open_trials >= budget:
            return None
        study.optuna.sampler = _sampler(study, len(trials))
        if study.grid is not None and not _line_up(study, study.grid, trials):
            return None
        if (ranked := study.ranked) is not None:
            _line_up(study, [row["params"] for row in ranked], trials)
        if (prior := study.prior) is not None:
            _line_up(study, [row["params"] for row in prior if row["front"]], trials)
        if refused == MAX_REFUSED:
            seed = derived_seed(study.settings.seed, "under limits", len(trials))
            study.optuna.enqueue_trial(
                under(study.space, study.settings.limits, study.levels, seed)
            )
        trial = study.optuna.ask()
        trial.set_user_attr("driver", study.driver)
        return trial


def _chosen(study: Study, trial: optuna.Trial) -> Arch | Literal["known", "refused"]:
    """A trial's arch, if it is to be trained; proposed outside of the study's lock, for that takes long."""
    while True:
        trials = study.trials
        proposed = _proposal(study, trial, trials)
        with study.locks.exclusive():
            if proposed is None or proposed not in _keys(study.trials) - _keys(trials):
                return _settled(study, trial)
        # Another driver has just taken this arch: propose again, knowing of it.
        trial = live_trial(study.optuna, trial)


def _proposal(study: Study, trial: optuna.Trial, trials: list[FrozenTrial]) -> str | None:
    """Key of the arch that the sampler's model proposes, where it has one and nothing was lined up."""
    if lined_up(trials[trial.number]):
        return None
    choices, space = trial.relative_params, study.space
    if not set(space.vary) <= set(choices):
        return None
    return space.arch({name: choices[name] for name in space.vary}).key


def _settled(study: Study, trial: optuna.Trial) -> Arch | Literal["known", "refused"]:
    arch = study.space.suggest(trial)
    known = _known(study, arch, again=record(trial).retry_of is not None)
    trial.set_user_attr("arch", arch.to_json())
    trial.set_user_attr("arch_key", arch.key)
    if _refused(study, trial, arch):
        return "refused"
    if known is None:
        return arch
    trial.set_user_attr("same_as", known.number)
    if known.state in COUNTED:
        tell_known(study, study.trials[trial.number], known)
    return "known"


def _refused(study: Study, trial: optuna.Trial, arch: Arch) -> bool:
    """Tell a trial over a limit that is known in advance by how much; nothing is trained."""
    ratios = study.settings.limits.free_ratios(arch_cost(arch, study.levels))
    if (reason := reason_of(ratios)) is not None:
        attrs = {"limit_ratios": ratios, "over": excess(ratios)}
        frozen, outcome = study.trials[trial.number], Outcome(None, reason, attrs=attrs)
        attach_to(study, frozen, outcome)
        store(study, frozen, outcome)
    return reason is not None


def _line_up(study: Study, points: list[dict[str, Choice]], trials: list[FrozenTrial]) -> bool:
    """Line up the next point, unless one waits already; False where none is left."""
    if any(t.state == TrialState.WAITING for t in trials):
        return True
    taken = (*COUNTED, TrialState.RUNNING)
    tried = {record(t).arch_key for t in trials if t.state in taken or is_unread(t)}
    point = next((p for p in points if study.space.arch(p).key not in tried), None)
    if point is not None:
        study.optuna.enqueue_trial(point)
    return point is not None


def _sampler(study: Study, trials: int) -> optuna.samplers.BaseSampler:
    # A fixed seed would repeat its draws after a resume.
    settings, levels, prior = study.settings, study.levels, study.prior
    seed = derived_seed(settings.seed, "sampler", trials)
    before = History.from_rows(prior) if prior else None

    def over(arch: Arch) -> float:
        return settings.limits.over(arch, levels)

    name, objectives = settings.sampler, settings.objectives
    return make_sampler(name, study.space, objectives, seed, over, before)


def _known(study: Study, arch: Arch, again: bool) -> FrozenTrial | None:
    """A trial of the same arch that is finished or, failing that, in training.

    again: whether what was not read, since it was dominated, is to be read.
    """
    same = [t for t in study.trials if record(t).arch_key == arch.key]
    unread = [t for t in same if record(t).reason == Reason.DOMINATED]
    same = [t for t in same if t not in unread] + ([] if again else unread)
    done = (t for t in same if t.state in COUNTED)
    first = (t for t in same if t.state == TrialState.RUNNING)
    return next(done, next((t for t in first if record(t).same_as is None), None))


def _keys(trials: list[FrozenTrial]) -> set[str]:
    return {record(t).arch_key or "" for t in trials}
