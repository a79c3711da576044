"""Trials on Ray Tune: one Searcher over our study, workers that keep torch and the targets between trials.

Every launch is a new Tune run over the same study; the study's storage is the only state that counts.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas_kd.artifacts import illustrate
from nas_kd.bd import MIN_POINTS
from nas_kd.errors import NasKdError, StudyError
from nas_kd.prepare import Listen, prepare, task_of
from nas_kd.space import Arch
from nas_kd.study import FAILURES, Settings, Study
from nas_kd.teacher import Teacher, load_teacher
from nas_kd.trial import Outcome, run_trial

MAX_FAILURES = 3
"""Trials in a row that may fail before the search gives up: the next one would fail as well."""


def search(settings: Settings, budget: int | None, workers: int, listen: Listen) -> Study:
    """Run trials until the study has ``budget`` finished ones; resumes what was interrupted.

    ``listen`` hears ("preparing" | "reaped" | "started" | "trial", detail).
    """
    teacher = _teacher_of(settings)  # first: without one, no study is begun
    study = Study(settings)
    budget = study.affordable(budget)
    with study.driving():
        if reaped := study.reap():
            listen("reaped", reaped)
        if study.counted() < budget:
            prepared = prepare(study, teacher, listen)
            _tune(study, budget, workers, prepared, listen)
    return study


def _teacher_of(settings: Settings) -> Teacher:
    teacher = load_teacher(settings.teacher, settings.weights, settings.lmbda, settings.teacher_z)
    if "bd_rate" in settings.objectives and teacher.levels < MIN_POINTS:
        raise StudyError(
            f"objective bd_rate: teacher {teacher.name} has {teacher.levels} level, and a BD-rate needs "
            f"{MIN_POINTS}; take rd_cost instead (--objectives rd_cost,flops)"
        )
    return teacher


def run_in_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One trial in a Ray worker; whatever goes wrong comes back as its reason."""
    import torch

    prepared = config["prepared"]
    os.chdir(prepared["cwd"])
    torch.set_num_threads(1)
    try:
        arch = Arch.from_json(config["arch"])
        # Named by the arch: a trial that is tried again goes on from its checkpoint.
        task, folder = task_of(prepared), Path(prepared["students"]) / arch.key
        outcome = run_trial(task, arch, folder)
        started = time.perf_counter()
        illustrate(task.anchor, task.eval_images, folder, outcome)
        outcome.attrs.setdefault("seconds", {})["draw"] = time.perf_counter() - started
    except NasKdError as error:
        outcome = Outcome(None, "crash", attrs={"message": str(error)})
    except Exception as error:
        attrs = {"message": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        outcome = Outcome(None, "crash", attrs=attrs)
    return asdict(outcome)


def _tune(
    study: Study, budget: int, workers: int, prepared: dict[str, Any], listen: Listen
) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Tune's newer output prints a banner at every verbosity.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own handler swallows Ctrl-C and advises its own way to resume.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    with warnings.catch_warnings():
        # Ray and pydantic deprecate their own internals.
        warnings.simplefilter("ignore")
        import ray
        from ray import tune
        from ray.tune.search import Searcher

    class OverStudy(Searcher):
        """Ask and tell of our study, in Tune's words."""

        def __init__(self) -> None:
            super().__init__(metric="done_at", mode="max")
            self.numbers: dict[str, int] = {}
            self.failures_in_a_row = 0
            self.last_message: Any = None

        def suggest(self, trial_id: str) -> Any:
            if self.failures_in_a_row >= MAX_FAILURES:
                return Searcher.FINISHED
            asked = study.ask(budget)
            if asked is None:
                # Trials under way may still fail and free their place in the budget.
                return Searcher.FINISHED if study.counted() >= budget else None
            number, arch = asked
            self.numbers[trial_id] = number
            listen("started", number)
            return {"arch": arch.to_json(), "prepared": prepared}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            number = self.numbers.pop(trial_id, None)
            if number is None:
                return
            outcome = Outcome(None, "crash", attrs={"message": "its worker died"})
            if result and "outcome" in result:
                outcome = Outcome(**json.loads(result["outcome"]))
            study.tell(number, outcome)
            crashed = outcome.reason is not None and outcome.reason.startswith(FAILURES)
            self.failures_in_a_row = self.failures_in_a_row + 1 if crashed else 0
            self.last_message = outcome.attrs.get("message", outcome.reason)
            listen("trial", number)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the study's storage is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the study's storage is the state."""

    class Worker(tune.Trainable):
        """Runs one trial per step, and stays alive for the next one."""

        def setup(self, config: dict[str, Any]) -> None:
            self.trial_config = config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.trial_config = new_config
            return True

        def step(self) -> dict[str, Any]:
            # As text: Tune flattens nested results.
            outcome = json.dumps(run_in_worker(self.trial_config))
            return {"outcome": outcome, "done": True, "done_at": 1}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: a trial keeps its own checkpoint."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing: a trial keeps its own checkpoint."""

    searcher = OverStudy()
    started_here = not ray.is_initialized()
    if started_here:
        _start_ray(ray, workers)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tune.Tuner(
                tune.with_resources(Worker, {"cpu": 1}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    num_samples=-1,
                    reuse_actors=True,
                    max_concurrent_trials=workers,
                ),
                run_config=tune.RunConfig(storage_path=scratch, name="run", verbose=0),
            ).fit()
        finally:
            if started_here:
                ray.shutdown()
    if searcher.failures_in_a_row >= MAX_FAILURES:
        raise NasKdError(f"{MAX_FAILURES} trials in a row failed ({searcher.last_message})")


def _start_ray(ray: Any, workers: int) -> None:
    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )
