"""A study: what is searched, and its Optuna storage, which is the truth about its trials."""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas_kd.artifacts import METRIC_NAMES, attach, attach_same, constraints_of
from nas_kd.baselines import ANCHORS, TEACHER
from nas_kd.data import BUILTIN, derived_seed
from nas_kd.distill import Form, Weights
from nas_kd.errors import StudyError
from nas_kd.front import pareto_front
from nas_kd.halving import goes_on
from nas_kd.limits import FREE, MEASURED, REFUSED, Limit, Limits, canonical, excess, reason_of
from nas_kd.macs import arch_cost
from nas_kd.points import Grid, frozen_grid, grid_points, listed, listed_points, under
from nas_kd.sampler import DEFAULT, History, checked, make_sampler
from nas_kd.space import Arch, Choice, SearchSpace, load_space
from nas_kd.storage import full_url, locks_of, new_driver, open_storage, stored_study
from nas_kd.student import LMBDAS
from nas_kd.train import Recipe
from nas_kd.trial import CHECKPOINT, KNOWN_OBJECTIVES, OBJECTIVES, Outcome

STUDIES = Path("studies")
CACHE = STUDIES / ".cache"
"""What studies share: the teacher's targets and warm-ups, named by fingerprints; may be deleted."""
INITS = ("shared", "teacher", "scratch")
FAILURES = ("crash", "energy", "latency")
"""Beginnings of reasons that say nothing about the arch: such a trial is FAIL, outside the budget."""
DEFAULT_BUDGET = 20
DEATHS = ("worker_died", "out_of_memory")
"""Reasons that may be the arch's fault: such a trial is tried again, MAX_DEATHS times in all."""
MAX_DEATHS = 3
INTERRUPTED = "interrupted"
"""Reason of a trial that its surroundings ended (disk full, driver gone): always tried again."""
STOPPED = "stopped at step"
"""Beginning of the reason of a trial that early stopping ended."""
OWN_ATTRS = ("arch", "arch_key", "driver", "retry_of", "deaths")
"""What a trial does not take over from an earlier one of the same arch."""
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
FREE_TO_CHANGE = ("checkpoint_s", "polish")
"""Settings that no trial depends on."""
MAX_REFUSED = 20
"""Proposals in a row that may be over a limit; then a random arch under it is taken."""


@dataclass(frozen=True)
class Settings:
    """One question: space, teacher, objectives, and what each trial may spend.

    weights: folder of CompressAI's zoo files. lmbda: what students of a one-level teacher are trained for.
    teacher_z: a second teacher, for the hyper-latents. grid: values by name of the space; where given, their
    combinations are enumerated and nothing is sampled. archs: likewise, a list of such choices or of arch files.
    anchor: what BD-rates are against, the teacher or a classical codec. max_*: see Limits. from_study: a study
    whose archs and values serve as a prior. warmup: steps of the shared weights'; None takes built-in weights
    where they fit. polish: steps that the front is trained on in the end.
    """

    name: str
    space: str
    teacher: str = "mini"
    objectives: tuple[str, ...] = OBJECTIVES
    steps: int = 2000
    batch: int = 2
    lr: float = 1e-3
    kd_x: float = 0.0
    kd_y: float = 0.05
    kd_z: float = 0.2
    form: Form = "kd"
    init: str = "shared"
    warmup: int | None = None
    rank: int = 0
    crops: int = 1000
    crop_size: int = 256
    data: str = BUILTIN
    eval_data: str = BUILTIN
    anchor: str = TEACHER
    sampler: str = DEFAULT
    max_gmac: Limit = None
    max_params: Limit = None
    max_mj: Limit = None
    max_latency_ms: Limit = None
    from_study: str | None = None
    polish: int = 0
    early_stopping: bool = False
    checkpoint_s: float = 30.0
    seed: int = 0
    weights: str | None = None
    lmbda: float | None = None
    teacher_z: str | None = None
    grid: Grid | None = None
    archs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.grid is not None:
            object.__setattr__(self, "grid", frozen_grid(self.grid))
        if self.archs is not None:
            object.__setattr__(self, "archs", listed(self.archs))
        for name in (*FREE, *MEASURED):
            object.__setattr__(self, name, canonical(name, getattr(self, name)))
        _ = self.loss, self.recipe(self.steps)  # raise where a weight or a number breaks a rule
        for name in ("warmup", "polish"):
            if (getattr(self, name) or 0) < 0:
                raise StudyError(f"{name} = {getattr(self, name)}: must be at least 0")
        unknown = [o for o in self.objectives if o not in KNOWN_OBJECTIVES]
        if unknown or not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise StudyError(
                f"objectives {list(self.objectives)}: must be one or more of {list(KNOWN_OBJECTIVES)}, each once"
            )
        checked(self.sampler, self.objectives)
        for name, allowed in (("anchor", ANCHORS), ("init", INITS)):
            if (given := getattr(self, name)) not in allowed:
                raise StudyError(f"{name} = {given!r}: must be one of {', '.join(allowed)}")
        if self.rank < 0 or (self.rank and self.init != "shared"):
            raise StudyError(
                f"rank = {self.rank} with init = {self.init!r}: must be 0 or more, and archs are ranked "
                "by their slices: take init = 'shared'"
            )
        if self.crop_size % 64 or self.crop_size < 64:
            raise StudyError(f"crop_size = {self.crop_size}: must be a multiple of 64")
        if self.crops < 16:
            raise StudyError(f"crops = {self.crops}: must be at least 16")

    def recipe(self, steps: int, lr_share: float = 1.0) -> Recipe:
        """How a run of so many steps trains, at a share of the study's learning rate."""
        lr = self.lr * lr_share
        return Recipe(steps, self.batch, lr, seed=self.seed, checkpoint_s=self.checkpoint_s)

    @property
    def folder(self) -> Path:
        """Where the study lives."""
        return STUDIES / self.name

    @property
    def limits(self) -> Limits:
        """What no trained arch may exceed."""
        return Limits(self.max_gmac, self.max_params, self.max_mj, self.max_latency_ms)

    @property
    def loss(self) -> Weights:
        """What the terms of the loss weigh."""
        return Weights(self.kd_x, self.kd_y, self.kd_z, self.form)


def load_studies(
    path: Path, name: str | None = None, given: dict[str, Any] | None = None
) -> list[Settings]:
    """The studies of a study file (TOML): one, or one per ``[[each]]`` table.

    Args:
        path: the file; its top-level keys hold for all its studies, those of an ``[[each]]`` for one.
        name: of the study, by default the file's; ``[[each]]`` adds its own ``name`` behind a hyphen.
        given: settings that replace the file's.
    """
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as TOML ({error})") from error
    each, common = data.pop("each", [{}]), name or path.stem
    if not isinstance(each, list) or not all(isinstance(part, dict) for part in each) or not each:
        raise StudyError(f"{path}: each = {each!r}: must be tables, written [[each]]")
    names = [part.get("name") for part in each]
    if len(each) > 1 and (None in names or len(set(names)) < len(names)):
        raise StudyError(f"{path}: each.name = {names}: every [[each]] needs a name of its own")
    return [
        _settings(
            path,
            f"{common}-{part['name']}" if "name" in part else common,
            data | part | (given or {}),
        )
        for part in each
    ]


def _settings(path: Path, name: str, data: dict[str, Any]) -> Settings:
    allowed = [f.name for f in fields(Settings) if f.name != "name"]
    data = {key: value for key, value in data.items() if key != "name"}
    for key in data:
        if key not in allowed:
            raise StudyError(f"{path}: {key}: no such key; the keys are {', '.join(allowed)}")
    if "space" not in data:
        raise StudyError(f"{path}: space is missing; it names a search space")
    return Settings(name=name, **data | {"objectives": tuple(data.get("objectives", OBJECTIVES))})


class Study:
    """An Optuna study with its settings; every change of state goes through here.

    Args:
        settings: what is searched; must equal what the storage holds, where it holds any.
        storage: a database URL, where several drivers share the study; else SQLite in its folder.
        begun: the study as the storage holds it; then nothing is written, not even a folder.
    """

    def __init__(
        self, settings: Settings, storage: str | None = None, begun: optuna.Study | None = None
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
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if begun is not None:
            self.optuna = begun
            self._check_settings()
            return
        with self.locks.exclusive(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.optuna = optuna.create_study(
                study_name=settings.name,
                storage=open_storage(self.url),
                directions=["minimize"] * len(settings.objectives),
                load_if_exists=True,
            )
            self.optuna.set_metric_names([METRIC_NAMES[name] for name in settings.objectives])
            self._check_settings()
        self.folder.mkdir(parents=True, exist_ok=True)

    def _check_settings(self) -> None:
        given = json.loads(json.dumps(asdict(self.settings))) | {
            "space_fingerprint": self.space.fingerprint
        }
        stored = self.optuna.user_attrs.get("settings")
        if stored is None:
            self.optuna.set_user_attr("settings", given)
            return
        # A study begun by an earlier version lacks the newer keys: it ran with their defaults.
        stored = {f.name: f.default for f in fields(Settings)} | stored
        for key in given:
            if key not in FREE_TO_CHANGE and given[key] != stored[key]:
                raise StudyError(
                    f"study {self.settings.name}: {key} = {given[key]!r}, but it was begun with "
                    f"{stored[key]!r}; use that value, or another --name for a new study"
                )

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
        trials = [t for t in self.trials if t.state in COUNTED]
        return sum(t.user_attrs.get("reason") not in REFUSED for t in trials)

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
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        lined_up = any(t.user_attrs.get("retry_of") == trial.number for t in self.trials)
        if params and not lined_up:
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
        with self.locks.exclusive():
            while True:
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
                arch = self.space.suggest(trial)
                known = self._known(arch)
                trial.set_user_attr("arch", arch.to_json())
                trial.set_user_attr("arch_key", arch.key)
                if self._refused(trial, arch):
                    refused += 1
                    continue
                if known is None:
                    return trial.number, arch
                trial.set_user_attr("same_as", known.number)
                if known.state in COUNTED:
                    self._tell_known(self.trials[trial.number], known)

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
            self._tell(self.trials[trial.number], Outcome(None, reason, attrs=attrs))
        return reason is not None

    def _line_up(self, grid: list[dict[str, Choice]], trials: list[FrozenTrial]) -> bool:
        """Line up the grid's next point, unless one waits already; False where none is left."""
        if any(t.state == TrialState.WAITING for t in trials):
            return True
        taken = (*COUNTED, TrialState.RUNNING)
        tried = {t.user_attrs.get("arch_key") for t in trials if t.state in taken}
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
        short = known.system_attrs.get("constraints", [0.0, 0.0])
        self.optuna._storage.set_trial_system_attr(trial._trial_id, "constraints", short)
        attach_same(optuna.Trial(self.optuna, trial._trial_id), known.number)
        values = known.values if known.state == TrialState.COMPLETE else None
        self.optuna.tell(trial.number, values, state=known.state)

    def _set_attrs(self, trial: FrozenTrial, attrs: dict[str, Any]) -> None:
        for key, value in attrs.items():
            self.optuna._storage.set_trial_user_attr(trial._trial_id, key, value)

    def tell(self, number: int, outcome: Outcome) -> TrialState:
        """Store what came of a trial; returns the state it now has.

        COMPLETE with values; PRUNED where there is no BD-rate or the arch killed its worker
        MAX_DEATHS times; else FAIL, lined up again where the arch is not at fault.
        """
        with self.locks.exclusive():
            trial = self.trials[number]
            if trial.state == TrialState.RUNNING:  # else it was taken for dead: its retry counts
                self._tell(trial, outcome)
                self._settle_twins()
            state = self.trials[number].state
        # A failed trial goes on from its checkpoint, a stopped one may; the others are through.
        if state in COUNTED and not (outcome.reason or "").startswith(STOPPED):
            (self.student_folder(trial) / CHECKPOINT).unlink(missing_ok=True)
        return state

    def _tell(self, trial: FrozenTrial, outcome: Outcome) -> None:
        self._set_attrs(trial, outcome.attrs | {"constraints": constraints_of(outcome)})
        shown_as = optuna.Trial(self.optuna, trial._trial_id)
        attach(shown_as, self.folder, outcome, self.settings.objectives)
        self._finish(trial, outcome)

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
        reason = outcome.reason or "crash"
        deaths = trial.user_attrs.get("deaths", 0) + (reason in DEATHS)
        self._set_attrs(trial, {"reason": reason, "deaths": deaths})
        if reason == INTERRUPTED or (reason in DEATHS and deaths < MAX_DEATHS):
            self._retry(trial, deaths)
        else:
            failed = reason.startswith(FAILURES)
            self.optuna.tell(trial.number, state=TrialState.FAIL if failed else TrialState.PRUNED)

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
            yield
        finally:
            self.locks.leave(self.driver)
            # Where the storage cannot be reached the next driver does it.
            with suppress(optuna.exceptions.StorageInternalError):
                self.reap()


def storage_url(folder: Path) -> str:
    """The SQLite storage in a study's folder."""
    return f"sqlite:///{folder / 'study.db'}"


def open_study(name: str, storage: str | None = None) -> Study:
    """A study that is there, by name, with the settings it was begun with; nothing is written.

    Raises StudyError where there is none, or where its database cannot be read.
    """
    stored = stored_study(name, full_url(storage or storage_url(STUDIES / name)))
    data = dict(stored.user_attrs.get("settings") or {})
    if not data:
        raise StudyError(f"study '{name}': holds no settings; it was not made by nas-kd")
    data.pop("space_fingerprint", None)
    return Study(Settings(**data | {"objectives": tuple(data["objectives"])}), storage, stored)
