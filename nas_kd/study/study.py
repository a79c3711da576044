"""A study: what is searched, and its Optuna storage, which is the truth about its trials."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from nas_kd.codec.arch import Arch
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import SearchSpace, load_space
from nas_kd.codec.student import LMBDAS
from nas_kd.errors import StudyError
from nas_kd.places import CACHE, HERE, STUDIES
from nas_kd.reasons import REFUSED
from nas_kd.study import asking, domination, telling
from nas_kd.study.attributes import StudyAttributes, drivers_of, keep_settings, settings_of
from nas_kd.study.front import pareto_front
from nas_kd.study.grid import grid_points, listed_points
from nas_kd.study.record import Outcome, record
from nas_kd.study.settings import (
    DATABASE,
    DEFAULT_BUDGET,
    Settings,
    from_stored,
    require_study,
    study_name,
)
from nas_kd.study.storage import (
    full_url,
    is_there,
    lined_up,
    locks_of,
    new_driver,
    open_storage,
    shown,
)
from nas_kd.study.successive_halving import goes_on
from nas_kd.study.telling import COUNTED, is_unread
from nas_kd.study.trial_artifacts import METRIC_NAMES

FREE_TO_CHANGE = ("checkpoint_s", "polish")
"""Settings that no trial depends on."""


class Study(StudyAttributes):
    """An Optuna study with its settings; every change of state goes through here.

    Args:
        settings: what is searched; must equal what the storage holds, where it holds any.
        storage: a database URL, where several drivers share the study; else SQLite in its folder.
        found: the study in the storage, where it was opened already with these settings.
        root: the folder that ``studies`` is in.
    """

    def __init__(
        self,
        settings: Settings,
        storage: str | None = None,
        found: optuna.Study | None = None,
        root: Path = HERE,
    ):
        self.settings = settings
        self.space: SearchSpace = load_space(settings.space)
        grid = settings.grid
        self.grid = None if grid is None else grid_points(self.space, dict(grid))
        if settings.archs is not None:
            self.grid = listed_points(self.space, settings.archs)
        self.root, self.folder = root, root / STUDIES / settings.name
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
        keep_settings(begun, self._to_store())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.begun_here = True
        return begun

    def _to_store(self) -> dict[str, Any]:
        return self.settings.to_json() | {"space_fingerprint": self.space.fingerprint}

    def _differs(self, found: optuna.Study) -> str | None:
        """What of the settings is not what the study was begun with, in words."""
        given, stored = self._to_store(), settings_of(found)
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
        drivers = [d for d in drivers_of(found) if d != self.driver]
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
    def cache(self) -> Path:
        """What it shares with the other studies of its root."""
        return self.root / CACHE

    def counted(self) -> int:
        """Trials that the budget counts: finished, with values or without."""
        trials = self.trials
        retried = {record(t).retry_of for t in trials}
        unread = sum(is_unread(t) and t.number not in retried for t in trials)
        done = [t for t in trials if t.state in COUNTED]
        done = [t for t in done if not (domination.is_unread(t) and t.number in retried)]
        return unread + sum(record(t).reason not in REFUSED for t in done)

    def line_up_unread(self) -> int:
        """Line up again what was trained and could not be measured: its checkpoint is there."""
        with self.locks.exclusive():
            trials = self.trials
            retried = {record(t).retry_of for t in trials}
            read = {record(t).arch_key for t in trials if t.state in COUNTED}
            again = [t for t in trials if is_unread(t) and t.number not in retried]
            again = [t for t in again if record(t).arch_key not in read]
            self.line_up_again(again)
        return len(again)

    def line_up_again(self, trials: list[FrozenTrial]) -> None:
        """Call it inside the lock."""
        for trial in trials:
            params = lined_up(trial) | trial.params
            self.optuna.enqueue_trial(params, user_attrs={"retry_of": trial.number})

    def affordable(self, budget: int | None) -> int:
        """The budget, no more than a grid has points; by default the whole grid, else 20."""
        if self.grid is None:
            return DEFAULT_BUDGET if budget is None else budget
        return len(self.grid) if budget is None else min(budget, len(self.grid))

    def reap(self) -> int:
        """End the RUNNING trials of drivers that live no more, and line their archs up again."""
        with self.locks.exclusive():
            running = [t for t in self.trials if t.state == TrialState.RUNNING]
            own = [t for t in running if record(t).same_as is None]
            lives = {d: self._lives(d) for d in {record(t).driver for t in own}}
            stale = [t for t in own if not lives[record(t).driver]]
            for trial in stale:
                telling.retry(self, trial, record(trial).deaths)
            telling.settle_twins(self)
        return len(stale)

    def _lives(self, driver: str | None) -> bool:
        # A trial gets its driver inside the lock: without one, its driver died inside.
        return driver is not None and self.locks.lives(driver)

    def ask(self, budget: int) -> tuple[int, Arch] | None:
        """The next trial to run, or None where the budget is spent or under way.

        An arch that was tried before is not trained again: its trial gets the known outcome, at once
        or, where the arch is in training, together with the trial that trains it.
        """
        return asking.ask(self, budget)

    @property
    def levels(self) -> int:
        """Rate points of a student; known once the teacher's curve is."""
        anchor = self.anchor
        return len(LMBDAS) if anchor is None else len(anchor.curve.bpp)

    def tell(self, number: int, outcome: Outcome) -> TrialState:
        """Store what came of a trial; returns the state it now has.

        COMPLETE with values; PRUNED where there is no BD-rate or the arch killed its worker
        MAX_DEATHS times; else FAIL, lined up again where the arch is not at fault.
        """
        return telling.tell(self, number, outcome)

    def goes_on(self, number: int, step: int, rd: float) -> bool:
        """Whether a trial goes on past a rung, given its R-D loss there; it is kept with the trial."""
        levels = self.levels
        with self.locks.exclusive():
            trials = self.trials
            own = record(trials[number])
            values = [rd, float(arch_cost(own.arch, levels).total.macs)]
            telling.set_attrs(self, trials[number], {"rungs": own.rungs | {str(step): values}})
        rungs = {one.arch_key: one.rungs for one in map(record, trials) if one.rungs}
        rungs.pop(own.arch_key, None)
        return goes_on(values, [r[str(step)] for r in rungs.values() if str(step) in r])

    def front(self) -> list[FrozenTrial]:
        """The Pareto front's trials, one per arch, by the first objective."""
        done = [
            t for t in self.trials if t.state == TrialState.COMPLETE and record(t).same_as is None
        ]
        members = [done[i] for i in pareto_front([t.values for t in done])] if done else []
        return sorted(members, key=lambda t: t.values)

    def student_folder(self, trial: FrozenTrial) -> Path:
        """Where a trial keeps its checkpoint and its trained student, named by its arch."""
        key = record(trial).arch_key
        if key is None:
            raise StudyError(f"trial {trial.number}: ended before it had an arch")
        return self.folder / "students" / key

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
            alive = [d for d in self.drivers if self.locks.lives(d)]
            self.keep_drivers([*alive, self.driver])


def _loaded(name: str, storage: RDBStorage) -> optuna.Study | None:
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def begun_with(name: str, storage: str | None = None, root: Path = HERE) -> dict[str, Any] | None:
    """The settings that a study was begun with, as they are stored; None where there is no such study."""
    url = full_url(storage or storage_url(root / STUDIES / name))
    found = _loaded(name, open_storage(url)) if is_there(url) else None
    return None if found is None else settings_of(found)


def storage_url(folder: Path) -> str:
    """The SQLite storage in a study's folder."""
    return f"sqlite:///{folder / DATABASE}"


def open_study(spec: str, storage: str | None = None, root: Path = HERE) -> Study:
    """A study that is there, by its name or ``studies/NAME``, with the settings it was begun with.

    root: the folder that ``studies`` is in.
    """
    name = require_study(spec, root) if storage is None else study_name(spec, root)
    url = full_url(storage or storage_url(root / STUDIES / name))
    found = _loaded(name, open_storage(url)) if is_there(url) else None
    if found is None:
        raise StudyError(f"study '{name}': there is none in {shown(url)}")
    stored = settings_of(found)
    if not stored:
        raise StudyError(f"study '{name}': holds no settings; it was not made by nas-kd")
    return Study(from_stored(stored), storage, found, root)
