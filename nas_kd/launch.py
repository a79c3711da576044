"""Trials on Ray Tune: one Searcher over our study, workers that keep torch and the targets between trials.

Every launch is a new Tune run over the same study; the study's storage is the only state that counts.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from nas_kd.artifacts import illustrate
from nas_kd.bd import MIN_POINTS
from nas_kd.errors import NasKdError, StudyError
from nas_kd.halving import rungs_of
from nas_kd.pace import Paced
from nas_kd.prepare import Listen, prepare, rank, task_of
from nas_kd.prior import take_over
from nas_kd.space import Arch
from nas_kd.study import DEATHS, FAILURES, INTERRUPTED, STOPPED, Settings, Study
from nas_kd.teacher import Teacher, load_teacher
from nas_kd.train import Report
from nas_kd.trial import Outcome, run_trial

MAX_FAILURES = 3
"""Trials in a row that may fail before the search gives up: the next one would fail as well."""

WAIT_S = 0.5
"""Between looks at a study that has nothing to do but wait for other drivers."""

SHUTDOWN_S = 30.0
"""What Ray may take to end; its processes end with this one at the latest."""


@dataclass(frozen=True)
class Machine:
    """Where trials run.

    Args:
        workers: trials at once.
        address: a Ray cluster to join; None starts Ray here.
        gpus_per_trial: share of a GPU that each trial has; 0 trains on the CPU.
        storage: a database URL, where several drivers share the study.
    """

    workers: int
    address: str | None = None
    gpus_per_trial: float = 0.0
    storage: str | None = None


def search(settings: Settings, budget: int | None, machine: Machine, listen: Listen) -> Study:
    """Run trials until the study has ``budget`` finished ones; resumes what was interrupted.

    ``listen`` hears ("preparing" | "reaped" | "started" | "trial", detail).
    """
    teacher = _teacher_of(settings)  # first: without one, no study is begun
    study = Study(settings, machine.storage)
    take_over(study)
    budget = study.affordable(budget)
    try:
        with study.driving():
            if reaped := study.reap():
                listen("reaped", reaped)
            if study.counted() < budget:
                prepared = prepare(study, teacher, listen)
                rank(study, prepared, listen)
                _tune(study, budget, machine, prepared, listen)
    except StorageInternalError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise NasKdError(
            f"study {settings.name}: its storage failed ({reason}); run the same command again"
        ) from error
    return study


def _teacher_of(settings: Settings) -> Teacher:
    teacher = load_teacher(settings.teacher, settings.weights, settings.lmbda, settings.teacher_z)
    if "bd_rate" in settings.objectives and teacher.levels < MIN_POINTS:
        raise StudyError(
            f"objective bd_rate: teacher {teacher.name} has {teacher.levels} level, and a BD-rate needs "
            f"{MIN_POINTS}; take rd_cost instead (--objectives rd_cost,flops)"
        )
    return teacher


def paced_trial(config: dict[str, Any], device: str) -> Paced:
    """The trial of a worker's configuration, not yet begun."""
    import torch

    prepared, arch = config["prepared"], Arch.from_json(config["arch"])
    settings = prepared["settings"]
    os.chdir(prepared["cwd"])

    def run(report: Report) -> Outcome:
        torch.set_num_threads(1)  # counts for the thread that sets it
        # Named by the arch: a trial that is tried again goes on from its checkpoint.
        folder, task = Path(prepared["students"]) / arch.key, task_of(prepared, device)
        outcome = run_trial(task, arch, folder, report)
        started = time.perf_counter()
        illustrate(task.anchor, task.eval_images, folder, outcome)
        outcome.attrs.setdefault("seconds", {})["draw"] = time.perf_counter() - started
        return outcome

    return Paced(run, rungs_of(settings["steps"]) if settings["early_stopping"] else ())


def _tune(
    study: Study, budget: int, machine: Machine, prepared: dict[str, Any], listen: Listen
) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Tune's newer output prints a banner at every verbosity.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ctrl-C raises here as everywhere; Tune's own handler ends the run as if it were complete.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    with warnings.catch_warnings():
        # Ray and pydantic deprecate their own internals.
        warnings.simplefilter("ignore")
        import ray
        from ray import tune
        from ray.tune.schedulers import FIFOScheduler
        from ray.tune.search import Searcher

    class OverStudy(Searcher):
        """Ask and tell of our study, in Tune's words."""

        def __init__(self) -> None:
            super().__init__(metric="done_at", mode="max")
            self.numbers: dict[str, int] = {}
            self.failures_in_a_row = 0
            self.last_message: Any = None
            self.quiet_until = 0.0

        def suggest(self, trial_id: str) -> Any:
            if self.failures_in_a_row >= MAX_FAILURES:
                return Searcher.FINISHED
            if time.monotonic() < self.quiet_until:
                return None
            if reaped := study.reap():
                listen("reaped", reaped)
            asked = study.ask(budget)
            if asked is None:
                # Trials under way, other drivers' too, may still fail and free their place.
                self.quiet_until = time.monotonic() + WAIT_S
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
            outcome = Outcome(None, "worker_died", attrs={"message": "its worker died"})
            if result and "outcome" in result and not error:
                outcome = Outcome(**json.loads(result["outcome"]))
            elif result and "rung" in result and not error:
                outcome = Outcome(None, f"{STOPPED} {result['rung']}")
            state = study.tell(number, outcome)
            if is_fault(outcome, state):
                self.failures_in_a_row += 1
                self.last_message = outcome.attrs.get("message", outcome.reason)
            elif outcome.reason not in DEATHS:
                self.failures_in_a_row = 0
            self.quiet_until = 0.0
            listen("trial", number)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the study's storage is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the study's storage is the state."""

    searcher = OverStudy()

    class Rungs(FIFOScheduler):
        """Stops a trial at a rung where the study says so."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            number = searcher.numbers.get(trial.trial_id)
            if number is None or "rung" not in result:
                return FIFOScheduler.CONTINUE
            values = [result["rd"], result["macs"]]
            on = study.goes_on(number, int(result["rung"]), values)
            return FIFOScheduler.CONTINUE if on else FIFOScheduler.STOP

    class Worker(tune.Trainable):
        """Runs a trial from rung to rung, and stays alive for the next one."""

        def setup(self, config: dict[str, Any]) -> None:
            self.device = "cuda" if ray.get_gpu_ids() else "cpu"
            self.paced = paced_trial(config, self.device)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.paced.stop()
            self.paced = paced_trial(new_config, self.device)
            return True

        def step(self) -> dict[str, Any]:
            heard = self.paced.advance()
            if "outcome" in heard:
                heard["outcome"].attrs["ray_node"] = ray.get_runtime_context().get_node_id()
                # As text: Tune flattens nested results.
                outcome = json.dumps(asdict(heard["outcome"]))
                return {"outcome": outcome, "done": True, "done_at": 1}
            metrics = heard["metrics"]
            rung = {"rung": heard["step"], "rd": metrics["rd"], "macs": metrics["macs"]}
            return rung | {"done_at": 0}  # Tune wants its metric in every result

        def cleanup(self) -> None:
            self.paced.stop()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: a trial keeps its own checkpoint."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing: a trial keeps its own checkpoint."""

    started_here = not ray.is_initialized()
    died = threading.Event()
    if started_here:
        start_ray(machine)
        threading.Thread(target=_watch_raylet, args=(died,), daemon=True).start()
    resources = {"cpu": 1.0} | ({"gpu": machine.gpus_per_trial} if machine.gpus_per_trial else {})
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tune.Tuner(
                tune.with_resources(Worker, resources),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=Rungs(),
                    num_samples=-1,
                    reuse_actors=True,
                    max_concurrent_trials=machine.workers,
                ),
                run_config=tune.RunConfig(storage_path=scratch, name="run", verbose=0),
            ).fit()
        except KeyboardInterrupt:
            if died.is_set():
                raise NasKdError("Ray died (its raylet); run the same command again") from None
            raise
        finally:
            if started_here:
                # In a thread: where the raylet is dead it may never return.
                end = threading.Thread(target=ray.shutdown, daemon=True)
                end.start()
                end.join(SHUTDOWN_S)
    if searcher.failures_in_a_row >= MAX_FAILURES:
        raise NasKdError(f"{MAX_FAILURES} trials in a row failed ({searcher.last_message})")


def is_fault(outcome: Outcome, state: TrialState) -> bool:
    """Whether a trial counts towards the failures in a row that end a search.

    A worker's death does once its arch is given up: before, the trial is tried again.
    """
    reason = outcome.reason or ""
    given_up = reason in DEATHS and state == TrialState.PRUNED
    return given_up or reason == INTERRUPTED or reason.startswith(FAILURES)


def _watch_raylet(died: threading.Event) -> None:
    """Interrupt the main thread once the raylet is dead: Tune would wait for it for ever."""
    children = psutil.Process().children(recursive=True)
    raylets = [c for c in children if c.name() == "raylet"]
    while raylets and all(map(_is_alive, raylets)):
        time.sleep(1.0)
        if not _ray_is_up():
            return
    if raylets and _ray_is_up():
        died.set()
        os.kill(os.getpid(), signal.SIGINT)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _ray_is_up() -> bool:
    import ray

    return ray.is_initialized()


def start_ray(machine: Machine, attempts: int = 3) -> None:
    """Start Ray here, or join the machine's cluster."""
    import ray

    here = {"num_cpus": machine.workers, "include_dashboard": False}
    try:
        ray.init(
            **({"address": machine.address} if machine.address else here),
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except Exception as error:  # Ray raises bare Exception where its processes do not come up
        ray.shutdown()
        # It waits 30 s for its own processes, which may be too short on a machine under load.
        if attempts > 1 and "timed out" in str(error):
            return start_ray(machine, attempts - 1)
        where = f"at {machine.address}" if machine.address else "here"
        raise NasKdError(
            f"Ray did not start {where} ({str(error).splitlines()[0]}); run the same command again"
        ) from error
