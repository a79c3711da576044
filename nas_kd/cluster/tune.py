"""Ray: workers that keep torch and the targets between trials, one Searcher over our study, one scheduler of rungs.

Every launch is a new Tune run over the same study; the study's storage is the only state that counts.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any, TypeVar

from nas_kd.cluster.file_transfer import Away, Home, mark, root_of, shares_disk
from nas_kd.cluster.gpu_sharing import Placement
from nas_kd.cluster.raylet import RAY_DIED, RayDied, own_sigterm, temporary_folder, watch_raylet
from nas_kd.cluster.worker import (
    Desk,
    Lanes,
    Order,
    Paced,
    Rung,
    failure_of,
    is_fault,
    outcome_of_result,
    paced_trial,
)
from nas_kd.codec.checkpoint import ARCH, WEIGHTS
from nas_kd.errors import NasKdError
from nas_kd.reasons import DEATHS, Reason
from nas_kd.study.domination import bound_of
from nas_kd.study.events import Listen, TrialEvent
from nas_kd.study.first_readings import FirstReadings, was_read
from nas_kd.study.polish import polish, polished_key
from nas_kd.study.prepared import Prepared, WayHome
from nas_kd.study.ranking import Scored, score
from nas_kd.study.record import CHECKPOINT, Lost, Outcome, record
from nas_kd.study.study import Study
from nas_kd.study.task import task_of

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
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

DIED = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
"""What Ray raises for a task whose worker died at each of its attempts."""
MAX_FAILURES = 3
"""Trials in a row that may fail before the search gives up: the next one would fail as well."""

WAIT_S = 0.5
"""Between looks at a study that has nothing to do but wait for other drivers."""

SHUTDOWN_S = 30.0
"""What Ray may take to end; its processes end with this one at the latest."""

T = TypeVar("T")

COURIER = "nas-kd-home"
"""Ray's namespace of the actors that touch the files of a study, one per driver."""


class DeskAway:
    """A desk by its name, in reach of the driver and of all workers."""

    def __init__(self, name: str):
        self.name = name
        self._actor = ray.get_actor(name, namespace=COURIER)

    def put(self, worker: str, words: list[tuple[int, Any]]) -> None:
        """See Desk."""
        ray.get(self._actor.put.remote(worker, words))

    def take(self, worker: str) -> list[tuple[int, Any]]:
        """See Desk."""
        words: list[tuple[int, Any]] = ray.get(self._actor.take.remote(worker))
        return words


class OverStudy(Searcher):
    """Ask and tell of our study, in Tune's words. A trial of Tune's is a worker with lanes, each with a trial of ours.

    Args:
        study: what is asked and told.
        budget: finished trials in the end.
        prepared: what trials share.
        listen: hears of trials.
        lanes: trials at once in a worker.
        desk: takes words for a worker whose other lanes go on; where there are several.
    """

    def __init__(
        self,
        study: Study,
        budget: int,
        prepared: Prepared,
        listen: Listen,
        lanes: int = 1,
        desk: DeskAway | None = None,
    ) -> None:
        super().__init__(metric="done_at", mode="max")
        self.study, self.budget, self.prepared, self.listen = study, budget, prepared, listen
        self.lanes, self.desk = lanes, desk
        self.numbers: dict[str, dict[int, int]] = {}
        self.failures_in_a_row = 0
        self.first_readings = FirstReadings(any(map(was_read, study.trials)))
        self.last_message: str | None = None
        self.quiet_until = 0.0

    def suggest(self, trial_id: str) -> Any:
        """The first orders of a worker, None to wait, or FINISHED."""
        if self._gives_up():
            return Searcher.FINISHED
        if time.monotonic() < self.quiet_until:
            return None
        if reaped := self.study.reap():
            self.listen("reaped", reaped)
        orders = self._orders(trial_id)
        if not orders:
            # Trials under way, other drivers' too, may still fail and free their place.
            self.quiet_until = time.monotonic() + WAIT_S
            return Searcher.FINISHED if self.study.counted() >= self.budget else None
        return {"worker": trial_id, "desk": self.desk and self.desk.name, "orders": orders}

    def _gives_up(self) -> bool:
        return self.failures_in_a_row >= MAX_FAILURES or self.first_readings.failed

    def _orders(self, trial_id: str) -> list[tuple[int, Any]]:
        """A trial for each empty lane, as far as there are any to be asked."""
        numbers, orders = self.numbers.get(trial_id, {}), list[tuple[int, Any]]()
        for lane in range(self.lanes):
            if lane in numbers or (asked := self.study.ask(self.budget)) is None:
                continue
            number, arch = asked
            numbers = self.numbers.setdefault(trial_id, numbers)
            numbers[lane] = number
            self.listen("started", TrialEvent(self.study, number))
            again = record(self.study.trials[number]).retry_of is not None
            bound = None if again else bound_of(self.study, arch)
            orders.append((lane, Order(number, arch, self.prepared, bound).to_json()))
        return orders

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A lane has something to say while others go on: it is answered at the desk."""
        if self.desk is None:
            return
        lane = int(result["lane"])
        if "rung" in result:
            self.desk.put(trial_id, [(lane, self.goes_on(trial_id, result))])
        elif (number := self.numbers.get(trial_id, {}).pop(lane, None)) is not None:
            self._tell(number, outcome_of_result(result))
            if not self._gives_up() and (orders := self._orders(trial_id)):
                self.desk.put(trial_id, orders)

    def goes_on(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial goes on past the rung that it is at."""
        number = self.numbers.get(trial_id, {}).get(int(result["lane"]))
        return number is None or self.study.goes_on(number, int(result["rung"]), result["rd"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study of a worker's last trial, or of all that died with it."""
        said = None if error else result
        for lane, number in self.numbers.pop(trial_id, {}).items():
            own = said if said and said.get("lane") == lane else None
            self._tell(number, outcome_of_result(own))

    def _tell(self, number: int, outcome: Outcome) -> None:
        state = self.study.tell(number, outcome)
        self.first_readings.hear(outcome)
        if is_fault(outcome, state):
            self.failures_in_a_row += 1
            self.last_message = outcome.record.message or outcome.reason
        elif Reason.of(outcome.reason) not in DEATHS:
            self.failures_in_a_row = 0
        self.quiet_until = 0.0
        self.listen("trial", TrialEvent(self.study, number))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's storage is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study's storage is the state."""


class Rungs(FIFOScheduler):
    """Stops a worker's only trial at a rung where the study says so; several lanes are answered one by one."""

    def __init__(self, searcher: OverStudy) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Go on, or stop here."""
        if "rung" not in result or self.searcher.desk is not None:
            return FIFOScheduler.CONTINUE
        on = self.searcher.goes_on(trial.trial_id, result)
        return FIFOScheduler.CONTINUE if on else FIFOScheduler.STOP


class Worker(tune.Trainable):
    """Runs trials from rung to rung, and stays alive for the next ones."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the first trials."""
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin other trials in the same process."""
        self.lanes.stop()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.lanes, self.worker = Lanes(begin), config["worker"]
        self.desk = None if config["desk"] is None else DeskAway(config["desk"])
        self.waits = list[int]()
        for lane, order in config["orders"]:
            self.lanes.start(lane, order)

    def step(self) -> dict[str, Any]:
        """Until a lane is at a rung or at its end."""
        for lane, word in self._words():
            if isinstance(word, bool):
                self.lanes.go_on(lane, word)
            else:
                self.lanes.start(lane, word)
        lane, heard = self.lanes.next()
        # Tune wants its metric, done_at, in every result.
        said: dict[str, Any] = {"lane": lane, "done_at": 0}
        if isinstance(heard, Rung):
            self.waits.append(lane)
            return said | {"rung": heard.step, "rd": heard.metrics["rd"]}
        heard.attrs["ray_node"] = ray.get_runtime_context().get_node_id()
        # As text: Tune flattens nested results.
        said["outcome"] = json.dumps(asdict(heard))
        return said if len(self.lanes) else said | {"done": True, "done_at": 1}

    def _words(self) -> list[tuple[int, Any]]:
        """What the driver says; that a lone trial's worker is asked for more means that it goes on."""
        waited, self.waits = self.waits, []
        if self.desk is None:
            return [(lane, True) for lane in waited]
        return self.desk.take(self.worker)

    def cleanup(self) -> None:
        """A trial that waits at a rung keeps its checkpoint."""
        self.lanes.stop()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial keeps its own checkpoint."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a trial keeps its own checkpoint."""


def begin(config: dict[str, Any]) -> Paced:
    """The trial of a configuration on this machine, which may have to fetch its files first."""
    given = Order.from_json(config)
    prepared, away = at_hand(given.prepared)
    order, device = replace(given, prepared=prepared), device_given()
    if away is None:
        return paced_trial(order, device)
    home = given.prepared.students
    return paced_trial(
        order,
        device,
        first=lambda folder: away.resume(folder.name, home, CHECKPOINT),
        brings=away.bring,
    )


def device_given() -> str:
    """The device of the task or the actor that asks."""
    return "cuda" if ray.get_gpu_ids() else "cpu"


def at_hand(prepared: Prepared) -> tuple[Prepared, Away | None]:
    """What a study prepared, with paths that hold here, and the way home from a disk of one's own."""
    way = prepared.home
    if way is None or shares_disk(prepared.students, way.word):
        return prepared, None
    home = ray.get_actor(way.actor, namespace=COURIER)
    away = Away(
        lambda method, *given: ray.get(getattr(home, method).remote(*given)), root_of(way.word)
    )
    return away.settle(prepared), away


def run_trials(
    study: Study, budget: int, prepared: Prepared, listen: Listen, place: Placement
) -> None:
    """One Tune run: trials until the study has ``budget`` finished ones."""
    with ExitStack() as after:
        desk = after.enter_context(_desk_open()) if place.lanes > 1 else None
        searcher = OverStudy(study, budget, prepared, listen, place.lanes, desk)
        _tuned(searcher, place)
    if searcher.failures_in_a_row >= MAX_FAILURES:
        raise NasKdError(f"{MAX_FAILURES} trials in a row failed ({searcher.last_message})")
    searcher.first_readings.require(study.settings.objectives)


def _tuned(searcher: OverStudy, place: Placement) -> None:
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tune.Tuner(
            tune.with_resources(Worker, _resources(place.gpus)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=Rungs(searcher),
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=place.workers,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name="run",
                verbose=0,
                # Tune's own would have to be written where a node without this disk cannot.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


@contextmanager
def _desk_open() -> Iterator[DeskAway]:
    """A desk while the block runs."""
    name = f"nas-kd-desk-{secrets.token_hex(8)}"
    desk: Any = ray.remote(Desk)
    actor = desk.options(name=name, namespace=COURIER, num_cpus=0).remote()
    try:
        yield DeskAway(name)
    finally:
        ray.kill(actor)


def _resources(gpus: float) -> dict[str, float]:
    return {"cpu": 1.0} | ({"gpu": gpus} if gpus else {})


def _attempted(work: Callable[[], T]) -> T | Lost:
    """What the work found, or the reason and the message of its failure: the others' must not be lost."""
    try:
        return work()
    except Exception as error:
        failed = failure_of(error)
        return Lost(failed.reason or Reason.CRASH, failed.attrs["message"].splitlines()[0])


@ray.remote
def _score(prepared: Prepared, point: dict[str, Any]) -> Scored | Lost:
    def work() -> Scored:
        here, _ = at_hand(prepared)
        return score(task_of(here, device_given()), here.settings.space, point)

    return _attempted(work)


@ray.remote
def _polish(prepared: Prepared, arch_key: str) -> dict[str, Any] | Lost:
    return _attempted(lambda: _polished(prepared, arch_key))


def _polished(prepared: Prepared, arch_key: str) -> dict[str, Any]:
    here, away = at_hand(prepared)
    if away is not None:
        for name in (WEIGHTS, ARCH):
            away.resume(arch_key, prepared.students, name)
    task, steps = task_of(here, device_given()), here.settings.polish
    figures = polish(task, arch_key, here.students, steps)
    if away is not None:
        away.bring(here.students / polished_key(arch_key))
    return figures


def _on_all(task: Any, prepared: Prepared, each: list[Any], gpus_per_trial: float) -> Iterator[Any]:
    """What a task makes of each, in order, on all workers; a reason where its worker died, tried again by Ray."""
    resources = {"num_cpus": 1.0, "num_gpus": gpus_per_trial}
    shared = ray.put(prepared)
    waiting = [task.options(**resources).remote(shared, one) for one in each]
    for reference in waiting:
        try:
            yield ray.get(reference)
        except DIED as death:
            yield Lost(Reason.WORKER_DIED, str(death).strip().splitlines()[0])


def score_all(
    prepared: Prepared, points: list[dict[str, Any]], gpus_per_trial: float
) -> Iterator[Scored | Lost]:
    """The scores of archs from their slices, or why there are none, in order, by plain tasks on all workers."""
    return _on_all(_score, prepared, points, gpus_per_trial)


def polish_all(
    prepared: Prepared, arch_keys: list[str], gpus_per_trial: float
) -> Iterator[dict[str, Any] | Lost]:
    """The front's students trained on, or why they were not, in order."""
    return _on_all(_polish, prepared, arch_keys, gpus_per_trial)


@contextmanager
def ray_up(workers: int, address: str | None) -> Iterator[None]:
    """Ray while the block runs, started here or joined, unless it is up already."""
    if ray.is_initialized():
        yield
        return
    start_ray(workers, address)
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(RAY_DIED, _ray_died) if in_main else None
    ended = threading.Event()
    if in_main:  # no other thread can be interrupted
        threading.Thread(target=watch_raylet, args=(ended,), daemon=True).start()
    try:
        yield
    except RayDied:
        raise NasKdError("Ray died (its raylet); run the same command again") from None
    finally:
        ended.set()  # a raylet that goes with its Ray is no death, nor may it interrupt a later one
        if in_main:
            signal.signal(RAY_DIED, before)
        # In a thread: where the raylet is dead it may never return.
        end = threading.Thread(target=ray.shutdown, daemon=True)
        end.start()
        end.join(SHUTDOWN_S)


@contextmanager
def home_open(prepared: Prepared) -> Iterator[Prepared]:
    """The same with the way home from any disk, by which files can be fetched while the block runs."""
    word = mark(prepared.students)
    name = f"{COURIER}-{secrets.token_hex(8)}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Home)
    home = actor.options(name=name, namespace=COURIER, num_cpus=0, scheduling_strategy=here).remote(
        prepared.students, prepared.lent
    )
    try:
        yield replace(prepared, home=WayHome(word, name))
    finally:
        ray.kill(home)


def _ray_died(*_: Any) -> None:
    raise RayDied


def start_ray(workers: int, address: str | None = None, attempts: int = 3) -> None:
    """Start Ray here with so many CPUs, or join the cluster at an address."""
    place: dict[str, Any] = {"address": address}
    if not address:
        # "local": else Ray joins a cluster that happens to run on this machine.
        place = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        place["_temp_dir"] = temporary_folder()
    try:
        with own_sigterm():
            ray.init(
                **place,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
    except Exception as error:  # Ray raises bare Exception where its processes do not come up
        ray.shutdown()
        # It waits 30 s for its own processes, which may be too short on a machine under load.
        if attempts > 1 and "timed out" in str(error):
            return start_ray(workers, address, attempts - 1)
        where, remedy = (
            "here",
            "run the same command again, where there is more memory or less to do",
        )
        if address:
            where, remedy = f"at {address}", "start it there, or leave --address out"
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise NasKdError(f"Ray did not start {where} ({said}); {remedy}") from error
