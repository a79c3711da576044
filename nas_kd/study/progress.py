"""What a trial tells of itself while it runs: what it is doing, for the live screen, and scalars for TensorBoard."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_kd.files import write_text
from nas_kd.study.record import Outcome

NOW = "now.json"
"""Beside the student: what its worker is doing; gone once the trial is over."""

EVENTS = "tensorboard"
"""The folder in a study's folder that TensorBoard is pointed at; it holds a folder per trial."""

FLUSH_S = 2.0
"""Between the moments when scalars reach the disk."""


@dataclass(frozen=True)
class Now:
    """What a worker is doing: ``step`` of ``steps`` and the loss there once it distils."""

    trial: int
    host: str
    pid: int
    doing: str
    step: int = 0
    steps: int = 0
    loss: float | None = None

    def __str__(self) -> str:
        if not self.step or self.doing != "distil":
            return self.doing
        loss = "" if self.loss is None else f", loss {self.loss:.3f}"
        return f"{self.doing}, step {self.step} of {self.steps}{loss}"

    @property
    def worker(self) -> str:
        """The worker's process, with its machine where that is another."""
        return str(self.pid) if self.host == platform.node() else f"{self.host}:{self.pid}"


def read_now(folder: Path, trial: int) -> Now | None:
    """What the worker of a trial is doing; None where it has not said so yet, or is done."""
    try:
        now = Now(**json.loads((folder / NOW).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return now if now.trial == trial else None


class Follow:
    """Tells where a trial is. What cannot be written is left out: it must not cost the trial.

    Args:
        trial: its number.
        student: its student's folder.
        study: the study's folder.
        steps: that it will train for.
    """

    def __init__(self, trial: int, student: Path, study: Path, steps: int):
        self.trial, self.student, self.steps = trial, student, steps
        self._events: Any = None
        self._flushed_s = time.monotonic()
        self.doing("start")
        with suppress(OSError):
            self._events = _events(study / EVENTS / f"trial-{trial:04d}")

    def __enter__(self) -> Follow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def doing(self, what: str, step: int = 0, loss: float | None = None) -> None:
        """Say what the trial is about to do."""
        at = (self.trial, platform.node(), os.getpid(), what, step, self.steps, loss)
        with suppress(OSError):
            self.student.mkdir(parents=True, exist_ok=True)
            write_text(self.student / NOW, json.dumps(asdict(Now(*at))), lasting=False)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """The terms of the loss at a step."""
        self.doing("distil", step, metrics.get("loss"))
        self._write(step, {f"train/{name}": value for name, value in metrics.items()})

    def end(self, outcome: Outcome, objectives: tuple[str, ...]) -> None:
        """The values that came out, the seconds they took, and the end of the file."""
        scalars = {f"seconds/{k}": s for k, s in outcome.record.seconds.items()}
        if outcome.values is not None:
            named = zip(objectives, outcome.values, strict=True)
            scalars |= {f"result/{name}": value for name, value in named}
        self._write(self.steps, scalars)
        self.close()

    def close(self) -> None:
        """Nothing more comes; also where a trial was stopped or failed."""
        with suppress(OSError):
            (self.student / NOW).unlink(missing_ok=True)
            if self._events is not None:
                self._events.close()
        self._events = None

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        if self._events is None:
            return
        try:
            for name, value in scalars.items():
                if math.isfinite(value):
                    self._events.write_event(_event(step, name, value))
            if time.monotonic() - self._flushed_s > FLUSH_S:
                self._events.flush()
                self._flushed_s = time.monotonic()
        except OSError:  # a full disk: the trial itself will say so if it matters
            self._events = None


def _events(folder: Path) -> Any:
    """A writer of event files. Not SummaryWriter: its thread dies on a full disk and its queue then blocks."""
    from tensorboardX.event_file_writer import EventsWriter

    folder.mkdir(parents=True, exist_ok=True)
    return EventsWriter(str(folder / "events"))


def _event(step: int, name: str, value: float) -> Any:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    return Event(wall_time=time.time(), step=step, summary=scalar(name, value))
