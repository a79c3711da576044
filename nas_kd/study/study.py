"""A study: what is searched, and its Optuna storage, which is the truth about its trials."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from nas_kd.codec.macs import arch_cost
from nas_kd.codec.space import Arch, Choice, SearchSpace, load_space
from nas_kd.codec.student import LMBDAS
from nas_kd.errors import StudyError
from nas_kd.places import STUDIES
from nas_kd.reasons import DEATHS, FAILURES, REFUSED, UNREAD, Reason
from nas_kd.seeds import derived_seed
from nas_kd.study.front import pareto_front
from nas_kd.study.grid import grid_points, listed_points, under
from nas_kd.study.limits import excess, reason_of
from nas_kd.study.sampler import History, make_sampler
from nas_kd.study.settings import (
    DATABASE,
    DEFAULT_BUDGET,
    Settings,
    from_stored,
    require_study,
    study_name,
)
from nas_kd.study.storage import (
    constraints_set,
    full_url,
    is_there,
    lined_up,
    live_trial,
    locks_of,
    new_driver,
    open_storage,
    set_attr,
    set_constraints,
    shown,
)
from nas_kd.study.successive_halving import goes_on
from nas_kd.study.trial import CHECKPOINT, Outcome
from nas_kd.study.trial_artifacts import METRIC_NAMES, attach, attach_same, constraints_of

MAX_DEATHS = 3
"""Of one arch's workers, before it is given up."""
OWN_ATTRS = ("arch", "arch_key", "driver", "retry_of", "deaths")
"""What a trial does not take over from an earlier one of the same arch."""
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
FREE_TO_CHANGE = ("checkpoint_s", "polish")
"""Settings that no trial depends on."""
DRIVERS = "drivers"
"""Attribute of a study: those who drive it, some of whom may be dead."""
MAX_REFUSED = 20
"""Proposals in a row that may be over a limit; then a random arch under it is taken."""


class Study:
    """An Optuna study with its settings; every change of state goes through here.

    Args:
        settings: what is searched; must equal what the storage holds, where it holds any.
        storage: a database URL, where several drivers share the study; else SQLite in its folder.
        found: the study in the storage, where it was opened already with these settings.
    """

    def __init__(
        self, settings: Settings, storage: str | None = None, found: optuna.Study | None = None
    ):
        self.settings = settings
        self.space: SearchSpace = load_space(settings.space)
        grid = settings.grid
        self.grid = None if grid is None else grid_points(self.space, dict(grid))
        if settings.archs is not None:
            self.grid = listed_points(self.space, settings.archs)
        self.folder = settings.folder
        self.url = full_url(storage or storage_url(self.folder))
        self.driver = new_driver()
        self.locks = locks_of(self.url, self.folder, settings.name)
        self.begun_here = False
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna = found or self._found_or_begun()

    def _found_or_begun(self) -> optuna.Study:
        """The study in the storage; raises StudyError, with nothing written, where it was begun otherwise.

        One without a trial that nobody drives makes room for the new settings.
        """
        try:
            with self.locks.exclusive():
                storage, name = open_storage(self.url), self.settings.name
                found = _loaded(name, storage)
                if found is not None and (differs := self._differs(found)) is not None:
                    if self._is_used(found):
                        raise StudyError(differs)
                    optuna.delete_study(study_name=name, storage=storage)
                    found = None
                return self._begun(storage) if found is None else found
        except StudyError:
            self.locks.tidy()
            raise

    def _begun(self, storage: RDBStorage) -> optuna.Study:
        objectives = self.settings.objectives
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(objectives)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            begun = optuna.create_study(
                study_name=self.settings.name, storage=storage, directions=directions
            )
            begun.set_metric_names([METRIC_NAMES[name] for name in objectives])
        begun.set_user_attr("settings", self._to_store())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.begun_here = True
        return begun

    def _to_store(self) -> dict[str, Any]:
        return self.settings.to_json() | {"space_fingerprint": self.space.fingerprint}

    def _differs(self, found: optuna.Study) -> str | None:
        """What of the settings is not what the study was begun with, in words."""
        given, stored = self._to_store(), found.user_attrs.get("settings")
        if stored is None:
            return f"study '{self.settings.name}': holds no settings; it was not made by nas-kd"
        # A study begun by an earlier version lacks the newer keys: it ran with their defaults.
        stored = Settings(given["name"], given["space"]).to_json() | stored
        for key in given:
            if key not in FREE_TO_CHANGE and given[key] != stored[key]:
                return (
                    f"study {self.settings.name}: {key} = {given[key]!r}, but it was begun with "
                    f"{stored[key]!r}; use that value, or another --name for a new study"
                )
        return None

    def _is_used(self, found: optuna.Study) -> bool:
        """Whether a study has trials, or others work on its first ones; ask inside the lock."""
        drivers = [d for d in found.user_attrs.get(DRIVERS, ()) if d != self.driver]
        return bool(found.get_trials(deepcopy=False)) or any(map(self.locks.lives, drivers))

    def withdraw(self) -> None:
        """Leave nothing of a study that began here, has no trial and is nobody else's."""
        if not self.begun_here:
            return
        with self.locks.exclusive():
            if self._is_used(self.optuna):
                return
            optuna.delete_study(study_name=self.settings.name, storage=open_storage(self.url))
            if self.url == storage_url(self.folder):
                (self.folder / DATABASE).unlink()
        self.locks.tidy()

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, as the storage holds them now."""
        return self.optuna.get_trials(deepcopy=False)

    @property
    def ranked(self) -> list[dict[str, Any]] | None:
        """The archs of the first round, best first, where there was one."""
        return self.optuna.user_attrs.get("ranked")

    def counted(self) -> int:
        """Trials that the budget counts: finished, with values or without."""
        trials = self.trials
        retried = {t.user_attrs.get("retry_of") for t in trials}
        unread = sum(_is_unread(t) and t.number not in retried for t in trials)
        done = [t for t in trials if t.state in COUNTED]
        return unread + sum(Reason.of(t.user_attrs.get("reason")) not in REFUSED for t in done)

    def line_up_unread(self) -> int:
        """Line up again what was trained and could not be measured: its checkpoint is there."""
        with self.locks.exclusive():
            trials = self.trials
            retried = {t.user_attrs.get("retry_of") for t in trials}
            read = {t.user_attrs.get("arch_key") for t in trials if t.state in COUNTED}
            again = [t for t in trials if _is_unread(t) and t.number not in retried]
            again = [t for t in again if t.user_attrs.get("arch_key") not in read]
            for trial in again:
                params = lined_up(trial) | trial.params
                self.optuna.enqueue_trial(params, user_attrs={"retry_of": trial.number})
        return len(again)

    def affordable(self, budget: int | None) -> int:
        """The budget, no more than a grid has points; by default the whole grid, else 20."""
        if self.grid is None:
            return DEFAULT_BUDGET if budget is None else budget
        return len(self.grid) if budget is None else min(budget, len(self.grid))

    def reap(self) -> int:
        """End the RUNNING trials of drivers that live no more, and line their archs up again."""
        with self.locks.exclusive():
            running = [t for t in self.trials if t.state == TrialState.RUNNING]
            own = [t for t in running if "same_as" not in t.user_attrs]
            lives = {d: self._lives(d) for d in {t.user_attrs.get("driver") for t in own}}
            stale = [t for t in own if not lives[t.user_attrs.get("driver")]]
            for trial in stale:
                self._retry(trial, trial.user_attrs.get("deaths", 0))
            self._settle_twins()
        return len(stale)

    def _lives(self, driver: str | None) -> bool:
        # A trial gets its driver inside the lock: without one, its driver died inside.
        return driver is not None and self.locks.lives(driver)

    def _retry(self, trial: FrozenTrial, deaths: int) -> None:
        """Line up again, then fail: dying in between neither loses the trial nor doubles it."""
        params = lined_up(trial) | trial.params
        waits = any(t.user_attrs.get("retry_of") == trial.number for t in self.trials)
        if params and not waits:
            attrs = {"retry_of": trial.number, "deaths": deaths}
            self.optuna.enqueue_trial(params, user_attrs=attrs)
        self.optuna.tell(trial.number, state=TrialState.FAIL)

    def _settle_twins(self) -> None:
        """Tell the trials that waited for another trial of the same arch."""
        trials = self.trials
        for trial in trials:
            if trial.state == TrialState.RUNNING and "same_as" in trial.user_attrs:
                known = trials[trial.user_attrs["same_as"]]
                if known.state in COUNTED:
                    self._tell_known(trial, known)
                elif known.state == TrialState.FAIL:
                    self.optuna.tell(trial.number, state=TrialState.FAIL)

    def ask(self, budget: int) -> tuple[int, Arch] | None:
        """The next trial to run, or None where the budget is spent or under way.

        An arch that was tried before is not trained again: its trial gets the known outcome, at once
        or, where the arch is in training, together with the trial that trains it.
        """
        refused = 0
        while (trial := self._reserved(budget, refused)) is not None:
            chosen = self._chosen(trial)
            if isinstance(chosen, Arch):
                return trial.number, chosen
            refused += chosen == "refused"
        return None

    def _reserved(self, budget: int, refused: int) -> optuna.Trial | None:
        """A trial that counts towards the budget; its arch is still to be chosen, unless it was lined up."""
        with self.locks.exclusive():
            trials = self.trials
            open_trials = sum(t.state == TrialState.RUNNING for t in trials)
            if self.counted() + open_trials >= budget:
                return None
            self.optuna.sampler = self._sampler(len(trials))
            if self.grid is not None and not self._line_up(self.grid, trials):
                return None
            if self.ranked is not None:
                self._line_up([arch["params"] for arch in self.ranked], trials)
            if self.prior is not None:
                self._line_up([row["params"] for row in self.prior if row["front"]], trials)
            if refused == MAX_REFUSED:
                seed = derived_seed(self.settings.seed, "under limits", len(trials))
                limits, levels = self.settings.limits, self.levels
                self.optuna.enqueue_trial(under(self.space, limits, levels, seed))
            trial = self.optuna.ask()
            trial.set_user_attr("driver", self.driver)
            return trial

    def _chosen(self, trial: optuna.Trial) -> Arch | Literal["known", "refused"]:
        """A trial's arch, if it is to be trained; proposed outside of the study's lock, for that takes long."""
        while True:
            trials = self.trials
            proposed = self._proposal(trial, trials)
            with self.locks.exclusive():
                if proposed is None or proposed not in _keys(self.trials) - _keys(trials):
                    return self._settled(trial)
            # Another driver has just taken this arch: propose again, knowing of it.
            trial = live_trial(self.optuna, trial)

    def _proposal(self, trial: optuna.Trial, trials: list[FrozenTrial]) -> str | None:
        """Key of the arch that the sampler's model proposes, where it has one and nothing was lined up."""
        if lined_up(trials[trial.number]):
            return None
        choices = trial.relative_params
        if not set(self.space.vary) <= set(choices):
            return None
        return self.space.arch({name: choices[name] for name in self.space.vary}).key

    def _settled(self, trial: optuna.Trial) -> Arch | Literal["known", "refused"]:
        arch = self.space.suggest(trial)
        known = self._known(arch)
        trial.set_user_attr("arch", arch.to_json())
        trial.set_user_attr("arch_key", arch.key)
        if self._refused(trial, arch):
            return "refused"
        if known is None:
            return arch
        trial.set_user_attr("same_as", known.number)
        if known.state in COUNTED:
            self._tell_known(self.trials[trial.number], known)
        return "known"

    @property
    def prior(self) -> list[dict[str, Any]] | None:
        """What another study found, where the settings name one and it was taken over."""
        return self.optuna.user_attrs.get("prior")

    @property
    def levels(self) -> int:
        """Rate points of a student; known once the teacher's curve is."""
        anchor = self.optuna.user_attrs.get("anchor")
        return len(anchor["curve"]["bpp"]) if anchor else len(LMBDAS)

    def _refused(self, trial: optuna.Trial, arch: Arch) -> bool:
        """Tell a trial over a limit that is known in advance by how much; nothing is trained."""
        ratios = self.settings.limits.free_ratios(arch_cost(arch, self.levels))
        if (reason := reason_of(ratios)) is not None:
            attrs = {"limit_ratios": ratios, "over": excess(ratios)}
            frozen, outcome = self.trials[trial.number], Outcome(None, reason, attrs=attrs)
            self._attach(frozen, outcome)
            self._tell(frozen, outcome)
        return reason is not None

    def _line_up(self, grid: list[dict[str, Choice]], trials: list[FrozenTrial]) -> bool:
        """Line up the grid's next point, unless one waits already; False where none is left."""
        if any(t.state == TrialState.WAITING for t in trials):
            return True
        taken = (*COUNTED, TrialState.RUNNING)
        tried = {t.user_attrs.get("arch_key") for t in trials if t.state in taken or _is_unread(t)}
        point = next((p for p in grid if self.space.arch(p).key not in tried), None)
        if point is not None:
            self.optuna.enqueue_trial(point)
        return point is not None

    def _sampler(self, trials: int) -> optuna.samplers.BaseSampler:
        # A fixed seed would repeat its draws after a resume.
        settings, levels = self.settings, self.levels
        seed = derived_seed(settings.seed, "sampler", trials)
        before = History.from_rows(self.prior) if self.prior else None

        def over(arch: Arch) -> float:
            return settings.limits.over(arch, levels)

        name, objectives = settings.sampler, settings.objectives
        return make_sampler(name, self.space, objectives, seed, over, before)

    def _known(self, arch: Arch) -> FrozenTrial | None:
        """A trial of the same arch that is finished or, failing that, in training."""
        same = [t for t in self.trials if t.user_attrs.get("arch_key") == arch.key]
        done = (t for t in same if t.state in COUNTED)
        first = (t for t in same if t.state == TrialState.RUNNING)
        return next(done, next((t for t in first if "same_as" not in t.user_attrs), None))

    def _tell_known(self, trial: FrozenTrial, known: FrozenTrial) -> None:
        attrs = {k: v for k, v in known.user_attrs.items() if k not in OWN_ATTRS}
        self._set_attrs(trial, attrs | {"same_as": known.number})
        set_constraints(self.optuna, trial, constraints_set(known) or [0.0, 0.0])
        attach_same(live_trial(self.optuna, trial), known.number)
        values = known.values if known.state == TrialState.COMPLETE else None
        self.optuna.tell(trial.number, values, state=known.state)

    def _set_attrs(self, trial: FrozenTrial, attrs: dict[str, Any]) -> None:
        for key, value in attrs.items():
            set_attr(self.optuna, trial, key, value)

    def tell(self, number: int, outcome: Outcome) -> TrialState:
        """Store what came of a trial; returns the state it now has.

        COMPLETE with values; PRUNED where there is no BD-rate or the arch killed its worker
        MAX_DEATHS times; else FAIL, lined up again where the arch is not at fault.
        """
        if (trial := self.trials[number]).state == TrialState.RUNNING:
            self._attach(trial, outcome)  # outside of the lock: it copies files
        with self.locks.exclusive():
            trial = self.trials[number]
            if trial.state == TrialState.RUNNING:  # else it was taken for dead: its retry counts
                self._tell(trial, outcome)
                self._settle_twins()
            state = self.trials[number].state
        # A failed trial goes on from its checkpoint, a stopped one may; the others are through.
        if state in COUNTED and Reason.of(outcome.reason) != Reason.STOPPED:
            (self.student_folder(trial) / CHECKPOINT).unlink(missing_ok=True)
        return state

    def _tell(self, trial: FrozenTrial, outcome: Outcome) -> None:
        self._set_attrs(trial, outcome.attrs | {"constraints": constraints_of(outcome)})
        self._finish(trial, outcome)

    def _attach(self, trial: FrozenTrial, outcome: Outcome) -> None:
        shown_as = live_trial(self.optuna, trial)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # taken for dead meanwhile
            attach(shown_as, self.folder, outcome, self.settings.objectives)

    def goes_on(self, number: int, step: int, values: list[float]) -> bool:
        """Whether a trial goes on past a rung, given its values there; they are kept with it."""
        with self.locks.exclusive():
            trials = self.trials
            own = trials[number]
            self._set_attrs(own, {"rungs": own.user_attrs.get("rungs", {}) | {str(step): values}})
        paced = [t.user_attrs for t in trials if "rungs" in t.user_attrs]
        rungs = {attrs["arch_key"]: attrs["rungs"] for attrs in paced}
        rungs.pop(own.user_attrs["arch_key"], None)
        return goes_on(values, [r[str(step)] for r in rungs.values() if str(step) in r])

    def _finish(self, trial: FrozenTrial, outcome: Outcome) -> None:
        if outcome.values is not None:
            self.optuna.tell(trial.number, outcome.values)
            return
        said = outcome.reason or Reason.CRASH
        reason = Reason.of(said)
        deaths = trial.user_attrs.get("deaths", 0) + (reason in DEATHS)
        self._set_attrs(trial, {"reason": said, "deaths": deaths})
        if reason == Reason.INTERRUPTED or (reason in DEATHS and deaths < MAX_DEATHS):
            self._retry(trial, deaths)
        else:
            state = TrialState.FAIL if reason in FAILURES else TrialState.PRUNED
            self.optuna.tell(trial.number, state=state)

    def front(self) -> list[FrozenTrial]:
        """The Pareto front's trials, one per arch, by the first objective."""
        done = [
            t
            for t in self.trials
            if t.state == TrialState.COMPLETE and "same_as" not in t.user_attrs
        ]
        members = [done[i] for i in pareto_front([t.values for t in done])] if done else []
        return sorted(members, key=lambda t: t.values)

    def student_folder(self, trial: FrozenTrial) -> Path:
        """Where a trial keeps its checkpoint and its trained student, named by its arch."""
        return self.folder / "students" / trial.user_attrs["arch_key"]

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Live as one of the study's drivers; what it leaves RUNNING is lined up again."""
        self.locks.join(self.driver)
        try:
            self._sign()
            yield
        finally:
            self.locks.leave(self.driver)
            # Where the storage cannot be reached the next driver does it.
            with suppress(optuna.exceptions.StorageInternalError):
                self.reap()

    def _sign(self) -> None:
        """Name this driver among those that live."""
        with self.locks.exclusive():
            others = self.optuna.user_attrs.get(DRIVERS, ())
            alive = [d for d in others if self.locks.lives(d)]
            self.optuna.set_user_attr(DRIVERS, [*alive, self.driver])


def _loaded(name: str, storage: RDBStorage) -> optuna.Study | None:
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def _is_unread(trial: FrozenTrial) -> bool:
    reason = Reason.of(trial.user_attrs.get("reason"))
    return trial.state == TrialState.FAIL and reason in UNREAD


def _keys(trials: list[FrozenTrial]) -> set[str]:
    return {t.user_attrs.get("arch_key", "") for t in trials}


def storage_url(folder: Path) -> str:
    """The SQLite storage in a study's folder."""
    return f"sqlite:///{folder / DATABASE}"


def open_study(spec: str, storage: str | None = None) -> Study:
    """A study that is there, by its name or ``studies/NAME``, with the settings it was begun with."""
    name = require_study(spec) if storage is None else study_name(spec)
    url = full_url(storage or storage_url(STUDIES / name))
    found = _loaded(name, open_storage(url)) if is_there(url) else None
    if found is None:
        raise StudyError(f"study '{name}': there is none in {shown(url)}")
    stored = found.user_attrs.get("settings")
    if not stored:
        raise StudyError(f"study '{name}': holds no settings; it was not made by nas-kd")
    return Study(from_stored(stored), storage, found)
