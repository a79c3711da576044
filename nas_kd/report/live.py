"""What a person sees while a search runs: a live screen, plain lines, JSON lines or nothing."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas_kd.errors import NasKdError
from nas_kd.reasons import Reason
from nas_kd.report.figures import complete, volumes
from nas_kd.report.tables import Brief, front_json, front_table
from nas_kd.study.events import Listen, TrialEvent
from nas_kd.study.polish import unpolished
from nas_kd.study.progress import read_now
from nas_kd.study.record import record
from nas_kd.study.study import Study, open_study
from nas_kd.study.uncertainty import SCALE, UNITS

Mode = Literal["screen", "lines", "json", "quiet"]
BARS = "▁▂▃▄▅▆▇█"
BARS_WIDE = 40
TELL_S = 30.0
"""Between two lines about the first trial."""


@dataclass(frozen=True)
class Progress:
    """How far a search is: trials by state, the hypervolume's history, seconds."""

    budget: int
    counted: int
    running: int
    complete: int
    infeasible: int
    failed: int
    front: int
    volumes: list[float]
    per_trial_s: float | None
    left_s: float | None
    unread: int = 0


class Show(Protocol):
    """Shows a search to a person, or to a program."""

    def said(self, kind: str, detail: str | int) -> None:
        """Something that is not about a trial."""

    def trial(self, kind: str, event: TrialEvent, progress: Progress) -> None:
        """A trial was started, or has ended."""


class Watch:
    """Turns a search's events into progress; ``show`` says it.

    Args:
        budget: trials the study shall have in the end; None for its default.
        show: hears of all of it.
    """

    def __init__(self, budget: int | None, show: Show):
        self.budget, self.show = budget, show
        self.spent_s: list[float] = []
        self.distil_s: list[float] = []
        self.at_once = 1

    def listen(self, kind: str, detail: str | int | TrialEvent) -> None:
        """One event of ``launch.search``."""
        if not isinstance(detail, TrialEvent):
            self.show.said(kind, detail)
            return
        if kind == "trial" and (spent := record(detail.trial).seconds):
            self.spent_s.append(sum(spent.values()))
            self.distil_s.append(spent.get("distil", 0.0))
        self.show.trial(kind, detail, self.progress(detail.study))

    def progress(self, study: Study) -> Progress:
        """Now; a worker's first trial, which loads what all need, is timed only while there is no other."""
        states = [t.state for t in study.trials]
        self.at_once = max(self.at_once, states.count(TrialState.RUNNING))
        unread = sum(record(t).reason == Reason.DOMINATED for t in study.trials)
        per_trial_s = left_s = None
        budget = study.affordable(self.budget)
        if self.spent_s:
            usual_s = self.spent_s[self.at_once :] or self.spent_s
            per_trial_s = sum(usual_s) / len(usual_s) / self.at_once
            left_s = max(0, budget - study.counted()) * per_trial_s + self._polish_s(study)
        return Progress(
            budget,
            study.counted(),
            states.count(TrialState.RUNNING),
            states.count(TrialState.COMPLETE),
            states.count(TrialState.PRUNED) - unread,
            states.count(TrialState.FAIL),
            len(study.front()),
            volumes([t.values for t in complete(study)]),
            per_trial_s,
            left_s,
            unread,
        )

    def _polish_s(self, study: Study) -> float:
        """Of training on what is on the front now, at the pace of the trials' own steps."""
        step_s = sum(self.distil_s) / len(self.distil_s) / max(study.settings.steps, 1)
        return step_s * study.settings.polish * len(unpolished(study)) / self.at_once


@contextmanager
def watching(budget: int | None, mode: Mode) -> Iterator[Listen]:
    """A listener for ``launch.search`` that shows what it hears for as long as the context lasts."""
    if mode == "screen":
        screen = Screen()
        with Live(screen, refresh_per_second=2, transient=True):
            yield Watch(budget, screen).listen
    elif mode == "lines":
        lines = Lines()
        with _every(TELL_S, lines.tick):
            yield Watch(budget, lines).listen
    else:
        yield Watch(budget, JsonLines() if mode == "json" else Quiet()).listen


@contextmanager
def _every(seconds: float, tick: Callable[[], None]) -> Iterator[None]:
    """Call ``tick`` so often, in a thread of its own."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(seconds):
            tick()

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def mode_of(quiet: bool, as_json: bool) -> Mode:
    """A screen for a terminal, lines for everything else, unless asked otherwise."""
    if as_json:
        return "json"
    if quiet:
        return "quiet"
    return "screen" if sys.stdout.isatty() else "lines"


class Quiet:
    """For --quiet."""

    def said(self, kind: str, detail: str | int) -> None:
        """Nothing."""

    def trial(self, kind: str, event: TrialEvent, progress: Progress) -> None:
        """Nothing."""


class JsonLines:
    """One JSON object per event."""

    def said(self, kind: str, detail: str | int) -> None:
        """The event as it is."""
        print(json.dumps({"event": kind, "detail": detail}), flush=True)

    def trial(self, kind: str, event: TrialEvent, progress: Progress) -> None:
        """The event with what is stored of the trial."""
        trial, p = event.trial, progress
        stored = record(trial)
        objectives = event.study.settings.objectives
        said = {"event": kind, "trial": event.number, "state": trial.state.name.lower()}
        said |= {"arch": stored.arch.to_json() if stored.begun else None, "reason": stored.said}
        said["values"] = trial.values and dict(zip(objectives, trial.values, strict=True))
        said |= {"counted": p.counted, "budget": p.budget, "front": p.front}
        said["hypervolume"] = p.volumes[-1] if p.volumes else None
        said |= {"per_trial_s": p.per_trial_s, "left_s": p.left_s}
        print(json.dumps(said), flush=True)


def say_end(study: Study, mode: Mode) -> None:
    """The front, once the search is over."""
    _say_front(study, mode, "done")
    if mode in ("screen", "lines"):
        name = study.settings.name
        print(f"next: nas-kd report {name}, nas-kd dashboard {name} or nas-kd export {name}")


def say_stopped(name: str, storage: str | None, mode: Mode) -> None:
    """The front so far, which stays on the screen; nothing where no trial is on it."""
    with suppress(NasKdError):  # stopped before the study was begun
        study = open_study(name, storage)
        if study.front():
            _say_front(study, mode, "stopped")


def _say_front(study: Study, mode: Mode, event: str) -> None:
    if mode == "json":
        print(json.dumps({"event": event} | front_json(study)), flush=True)
    elif mode != "quiet":
        Console(soft_wrap=False).print(front_table(study))


def result(study: Study, trial: FrozenTrial) -> str:
    """Values with their units, or the reason why there are none."""
    if not trial.values:
        return f"{trial.state.name.lower()}: {record(trial).said}"
    named = zip(study.settings.objectives, trial.values, strict=True)
    return ", ".join(f"{value * SCALE[name]:.2f} {UNITS[name]}" for name, value in named)


class Foretold:
    """How long a search will take by the steps of its first trials, until one of them has ended.

    What comes after a training, its evaluation above all, is not in it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.homes: dict[int, Path] = {}
        self._clock = clock
        self._progress: Progress | None = None
        self._first: dict[int, tuple[int, float]] = {}

    def heard(self, kind: str, event: TrialEvent, progress: Progress) -> None:
        """A trial was started, or has ended."""
        self._progress = progress
        if kind == "started":
            self.homes[event.number] = event.study.student_folder(event.trial)
        else:
            self.homes.pop(event.number, None)

    def left_s(self) -> float | None:
        """Seconds of training still to come; None where a trial's time is known, or no pace yet."""
        p = self._progress
        if p is None or p.per_trial_s is not None:
            return None
        now_s = self._clock()
        told = {n: read_now(home, n) for n, home in list(self.homes.items())}
        at = {n: now for n, now in told.items() if now and now.step and now.doing == "distil"}
        for number, now in at.items():
            self._first.setdefault(number, (now.step, now_s))
        went = [(now.step - self._first[n][0], now_s - self._first[n][1]) for n, now in at.items()]
        steps = sum(done for done, _ in went)
        if not steps:
            return None
        step_s = sum(spent_s for _, spent_s in went) / steps
        longest = max(now.steps - now.step for now in at.values())
        to_come = max(0, p.budget - p.counted - len(told)) / len(told)
        return step_s * (longest + to_come * max(now.steps for now in at.values()))


class Lines:
    """A line per event, and where the first trial is once in a while: for logs and pipes."""

    def __init__(self, foretold: Foretold | None = None) -> None:
        self.foretold = foretold or Foretold()

    def said(self, kind: str, detail: str | int) -> None:
        """What is not about a trial."""
        if kind == "reaped":
            print(f"resuming: {detail} interrupted trials are lined up again", flush=True)
        else:
            print(f"{kind}: {detail}", flush=True)

    def trial(self, kind: str, event: TrialEvent, progress: Progress) -> None:
        """A trial with its arch, or with what came of it."""
        self.foretold.heard(kind, event, progress)
        trial, p = event.trial, progress
        if kind == "started":
            print(f"trial {event} started: {record(trial).arch}", flush=True)
            return
        left = f"about {(p.left_s or 0) / 60:.1f} min left"
        said = f"[{p.counted}/{p.budget}] trial {event}: {result(event.study, trial)}"
        print(f"{said} | front {p.front} | {left}", flush=True)

    def tick(self) -> None:
        """Say how long it will take, while nothing but the steps of the first trials says so."""
        if (left_s := self.foretold.left_s()) is not None:
            print(f"no trial has ended yet: {by_steps(left_s)}", flush=True)


def by_steps(left_s: float) -> str:
    """The time left in words, where it is known from steps alone."""
    return f"about {left_s / 60:.1f} min of training left, by its steps"


class Screen:
    """The live screen's contents; rich asks for them twice a second."""

    def __init__(self) -> None:
        self.last = "starting: loading torch and the teacher"
        self.study: Study | None = None
        self.progress: Progress | None = None
        self.archs: dict[int, str] = {}
        self.foretold = Foretold()
        self.since_s: dict[int, float] = {}

    def said(self, kind: str, detail: str | int) -> None:
        """What is not about a trial: the last line."""
        self.last = f"{kind}: {detail}"

    def trial(self, kind: str, event: TrialEvent, progress: Progress) -> None:
        """What runs, and what came of the last one."""
        self.study, self.progress = event.study, progress
        self.foretold.heard(kind, event, progress)
        if kind == "started":
            arch = record(event.trial).arch
            self.archs[event.number] = Brief(event.study.space)(arch)
            self.since_s[event.number] = time.monotonic()
            if self.last.startswith(("preparing", "starting")):
                self.last = "the first trial is under way"
        else:
            self.archs.pop(event.number, None)
            self.last = f"last: trial {event}, {result(event.study, event.trial)}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The screen as it is now, cut to the terminal's height."""
        parts: list[Any] = []
        if self.progress is not None and self.study is not None:
            bar = _bar(self.progress, console.width, self.foretold.left_s())
            parts += [bar, _counts(self.progress)]
            parts.append(_volumes(self.progress, self.study.settings.objectives))
            if self.archs:
                parts += [Text(), self._running()]
            taken = len(parts) + len(self.archs) + TABLE_LINES
            if self.progress.front and (lines := console.size.height - taken) > 0:
                parts += [Text(), front_table(self.study, lines)]
        yield Group(*parts, Text(self.last, no_wrap=True, overflow="ellipsis"))

    def _running(self) -> Table:
        table = Table("worker", "trial", "for s", "doing", box=None, pad_edge=False, expand=True)
        table.add_column("encoder | decoder | latents", ratio=1)
        for column in table.columns:
            column.no_wrap = True
        for number, arch in list(self.archs.items()):
            home = self.foretold.homes.get(number)
            now = read_now(home, number) if home else None
            spent = f"{time.monotonic() - self.since_s[number]:.0f}"
            worker, doing = (now.worker, str(now)) if now else ("", "wait for a worker")
            table.add_row(worker, str(number), spent, Text(doing), Text(arch))
        return table


TABLE_LINES = 10
"""What a front's frame, title and caption, an empty line and the last message take of the height."""


def _bar(p: Progress, width: int, left_s: float | None = None) -> Table:
    row = Table.grid(padding=(0, 1))
    for _ in range(3):
        row.add_column(no_wrap=True)
    times = "no trial has ended yet" if left_s is None else by_steps(left_s)
    if p.per_trial_s is not None and p.left_s is not None:
        times = f"{p.per_trial_s:.1f} s per trial, about {p.left_s / 60:.1f} min left"
    done = f"{p.counted} of {p.budget} trials"
    room = max(width - len(done) - len(times) - 3, 4)
    bar = ProgressBar(total=p.budget, completed=p.counted, width=min(room, BARS_WIDE))
    row.add_row(done, bar, times)
    return row


def _counts(p: Progress) -> Text:
    parts = [
        (f"{p.complete} complete", ""),
        (f"{p.infeasible} infeasible", "yellow" if p.infeasible else ""),
        *([(f"{p.unread} not read", "")] if p.unread else []),
        (f"{p.failed} failed", "red" if p.failed else ""),
        (f"{p.running} running", ""),
    ]
    return Text(", ").join(Text(said, style) for said, style in parts)


def _volumes(p: Progress, objectives: tuple[str, ...]) -> Text:
    if not p.volumes:
        return Text("hypervolume: none yet, no trial is complete")
    over = f"after {len(p.volumes)} archs ({', '.join(objectives)}; of the box seen so far)"
    return Text(f"hypervolume {sparkline(p.volumes)} {over}", no_wrap=True, overflow="ellipsis")


def sparkline(values: list[float]) -> str:
    """The last values, 0 to 1, as bars, then the last one in digits."""
    bars = "".join(BARS[min(int(v * len(BARS)), len(BARS) - 1)] for v in values[-BARS_WIDE:])
    return f"{bars} {values[-1]:.3f}"
