"""Trials that wait at rungs until they are told to go on or to stop: one in a worker's process, or several."""

from __future__ import annotations

import gc
import json
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.trial import TrialState

from nas_kd.codec.arch import Arch
from nas_kd.distillation.training import Report
from nas_kd.errors import DataError, EarlyStop, NasKdError, TrialFailed
from nas_kd.reasons import DEATHS, FAILURES, UNREAD, Reason
from nas_kd.report.illustrate import illustrate
from nas_kd.study.domination import Bound
from nas_kd.study.prepared import Prepared
from nas_kd.study.progress import Follow
from nas_kd.study.record import Outcome
from nas_kd.study.successive_halving import rungs_of
from nas_kd.study.task import task_of
from nas_kd.study.trial import run_trial
from nas_kd.turns import TURNS

NO_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc")
"""What torch says, in a RuntimeError, where the memory of a device or of the host is spent."""
NO_SPACE = ("No space left", "File too large", "os error")
"""What the writer of safetensors, which raises no OSError, says where a file cannot grow."""


@dataclass(frozen=True)
class Rung:
    """Where a trial waits: the step, and the means of what it reported since the last one."""

    step: int
    metrics: dict[str, float]


Heard = Rung | Outcome
"""What a trial says: that it waits, or what came of it."""


class Paced:
    """Runs a trial in a thread of its own, which says where it waits and what came of it.

    Args:
        run: the trial; calls what it is given with (step, metrics) and returns its outcome.
        rungs: steps at which it waits.
    """

    def __init__(self, run: Callable[[Report], Outcome], rungs: tuple[int, ...] = ()):
        self._run, self._rungs, self._seen = run, list(rungs), list[dict[str, float]]()
        self._told: queue.Queue[bool] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._says: Callable[[Heard], None] = lambda heard: None
        self._waits = False

    def begin(self, says: Callable[[Heard], None]) -> None:
        """To its first rung, or to its end."""
        self._says = says
        self._thread.start()

    def go_on(self, on: bool) -> None:
        """From the rung at which it waits; where not, it ends there."""
        self._waits = False
        self._told.put(on)

    def stop(self) -> None:
        """End a trial that waits at a rung, and wait for it to keep its checkpoint."""
        if self._waits:
            self.go_on(False)
            self._thread.join()

    def _work(self) -> None:
        self._says(outcome_of(lambda: self._run(self._report)))

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        self._seen.append(metrics)
        if not self._rungs or step < self._rungs[0]:
            return
        rung = self._rungs[0]
        # A resumed trial may come in past several rungs: it is compared at the last of them.
        while self._rungs and step >= self._rungs[0]:
            rung = self._rungs.pop(0)
        means = {k: sum(m[k] for m in self._seen) / len(self._seen) for k in metrics}
        self._seen.clear()
        self._waits = True
        self._says(Rung(rung, means))
        if not self._told.get():
            raise EarlyStop(Reason.STOPPED.because(rung), "others did better for their cost")


class Lanes:
    """Trials at once in one process: each in a lane, which takes another once its trial has ended.

    On a GPU a lane is a stream, and the trials' kernels overlap. What ends a trial ends its lane's alone.

    Args:
        begin: a trial from what was ordered, not yet begun.
    """

    def __init__(self, begin: Callable[[Any], Paced]):
        self._begin, self._trials = begin, dict[int, Paced]()
        self._heard: queue.Queue[tuple[int, Heard]] = queue.Queue()

    def __len__(self) -> int:
        return len(self._trials)

    def start(self, lane: int, ordered: Any) -> None:
        """Begin a trial in a lane that has none."""

        def says(heard: Heard) -> None:
            self._heard.put((lane, heard))

        self._trials[lane] = self._made(ordered)
        self._trials[lane].begin(says)

    def _made(self, ordered: Any) -> Paced:
        try:
            return self._begin(ordered)
        except Exception as error:
            lost = failure_of(error)
            return Paced(lambda report: lost)

    def go_on(self, lane: int, on: bool) -> None:
        """From the rung at which a lane waits; a trial that may not says what came of it, as at its end."""
        self._trials[lane].go_on(on)

    def next(self) -> tuple[int, Heard]:
        """What a lane says next; its outcome leaves it empty."""
        lane, heard = self._heard.get()
        if isinstance(heard, Outcome):
            del self._trials[lane]
        return lane, heard

    def stop(self) -> None:
        """End what waits at a rung."""
        for paced in self._trials.values():
            paced.stop()
        self._trials.clear()


class Desk:
    """What the driver has to say to workers whose trial goes on, by worker and lane: a rung's verdict, or an order."""

    def __init__(self) -> None:
        self._words = dict[str, list[tuple[int, Any]]]()

    def put(self, worker: str, words: list[tuple[int, Any]]) -> None:
        """Words for a worker, which takes them before it goes on."""
        self._words.setdefault(worker, []).extend(words)

    def take(self, worker: str) -> list[tuple[int, Any]]:
        """What there is for a worker; it is said once."""
        return self._words.pop(worker, [])


@dataclass(frozen=True)
class Order:
    """A trial to run: its number, its arch, what all trials of its study share, and what need not be read."""

    number: int
    arch: Arch
    prepared: Prepared
    bound: Bound | None = None

    def to_json(self) -> dict[str, Any]:
        """As Ray Tune hands it to a worker."""
        arch, prepared = self.arch.to_json(), self.prepared.to_json()
        bound = self.bound and asdict(self.bound)
        return {"number": self.number, "arch": arch, "prepared": prepared, "bound": bound}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Order:
        """What ``to_json`` returned, read back."""
        arch, prepared = Arch.from_json(given["arch"]), Prepared.from_json(given["prepared"])
        bound = None if given["bound"] is None else Bound(**given["bound"])
        return cls(given["number"], arch, prepared, bound)

    @property
    def student(self) -> Path:
        """The student's folder, named by the arch: a trial that is tried again goes on from its checkpoint."""
        return self.prepared.students / self.arch.key


def paced_trial(
    order: Order,
    device: str,
    first: Callable[[Path], None] = lambda folder: None,
    brings: Callable[[Path], None] = lambda folder: None,
) -> Paced:
    """A trial, not yet begun.

    Args:
        order: what to run; its paths hold here.
        device: of torch.
        first: called with the student's folder before the trial, where its checkpoint must be fetched.
        brings: called with the folder whenever something new may lie there, and at the end.
    """
    settings, folder = order.prepared.settings, order.student

    def run(report: Report) -> Outcome:
        torch.set_num_threads(1)  # counts for the thread that sets it
        try:
            first(folder)
            return _followed(order, device, report, lambda: brings(folder))
        finally:
            brings(folder)
            if device != "cpu":
                _free()

    return Paced(run, rungs_of(settings.steps) if settings.early_stopping else ())


def trial_alone(order: Order, device: str) -> Outcome:
    """What comes of a trial that nobody stops, run in this process."""
    lanes = Lanes(lambda ordered: paced_trial(ordered, device))
    lanes.start(0, order)
    while isinstance(heard := lanes.next()[1], Rung):
        lanes.go_on(0, True)
    return heard


def _free() -> None:
    """The memory of a training that is over: its graphs hold it, and it them, until garbage is collected."""
    with TURNS:
        gc.collect()


_drawing = threading.Lock()
"""Matplotlib is not made for several threads."""


def _followed(order: Order, device: str, report: Report, bring: Callable[[], None]) -> Outcome:
    """Run the trial, telling where it is, and draw what came of it."""
    settings, folder = order.prepared.settings, order.student
    task = task_of(order.prepared, device)
    with Follow(order.number, folder, folder.parents[1], settings.steps) as follow:

        def heard(step: int, metrics: dict[str, float]) -> None:
            follow.step(step, metrics)
            bring()  # a checkpoint written since the last report
            report(step, metrics)

        outcome = run_trial(task, order.arch, folder, heard, follow.doing, order.bound)
        follow.doing("draw")
        started = time.perf_counter()
        with _drawing:
            illustrate(task.anchor, task.eval_images, folder, outcome)
        outcome.attrs.setdefault("seconds", {})["draw"] = time.perf_counter() - started
        follow.end(outcome, settings.objectives)
    return outcome


def outcome_of(run: Callable[[], Outcome]) -> Outcome:
    """What came of a trial; whatever goes wrong becomes its reason."""
    try:
        return run()
    # SystemExit too: whoever waits for the outcome would wait for ever.
    except BaseException as error:
        return failure_of(error)


def failure_of(error: BaseException) -> Outcome:
    """The outcome of work that ended in this error."""
    if isinstance(error, NasKdError):
        return Outcome(None, _reason(error), attrs={"message": str(error)})
    message = f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    return Outcome(None, _reason(error), attrs={"message": message, "traceback": trace})


def _reason(error: BaseException) -> str:
    if isinstance(error, TrialFailed):
        return error.reason
    if isinstance(error, NasKdError):
        # Pictures that went bad are mended, and then every trial of theirs is run again.
        return Reason.INTERRUPTED if isinstance(error, DataError) else Reason.CRASH
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return Reason.OUT_OF_MEMORY
    if isinstance(error, OSError) or any(words in text for words in NO_SPACE):
        return Reason.INTERRUPTED
    return Reason.CRASH


def outcome_of_result(result: dict[str, Any] | None) -> Outcome:
    """What a worker's last result says of its trial."""
    if result and "outcome" in result:
        return Outcome(**json.loads(result["outcome"]))
    if result and "rung" in result:
        return Outcome(None, Reason.STOPPED.because(result["rung"]))
    return Outcome(None, Reason.WORKER_DIED, attrs={"message": "its worker died"})


def is_fault(outcome: Outcome, state: TrialState) -> bool:
    """Whether a trial counts towards the failures in a row that end a search.

    A worker's death does once its arch is given up: before, the trial is tried again.
    """
    reason = Reason.of(outcome.reason)
    given_up = reason in DEATHS and state == TrialState.PRUNED
    failed = reason in FAILURES and reason not in UNREAD
    return given_up or reason == Reason.INTERRUPTED or failed
