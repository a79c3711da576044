"""What a person sees while a search runs: a live screen, plain lines, JSON lines or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas_kd.figures import complete, volumes
from nas_kd.follow import read_now
from nas_kd.report import Brief, front_json, front_table
from nas_kd.space import Arch
from nas_kd.study import Study, open_study
from nas_kd.uncertainty import SCALE, UNITS

Mode = Literal["screen", "lines", "json", "quiet"]
Listen = Callable[[str, Any], None]
BARS = "▁▂▃▄▅▆▇█"
BARS_WIDE = 40


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


class Watch:
    """Turns a search's events into progress; ``show`` says it.

    Args:
        name: of the study, which exists by the first event about a trial.
        budget: trials the study shall have in the end; None for its default.
        show: hears (kind, detail, study, progress); the last two are None before the first trial.
        storage: the study's database URL, where it is not its own SQLite.
    """

    def __init__(
        self,
        name: str,
        budget: int | None,
        show: Any,
        storage: str | None = None,
    ):
        self.name, self.budget, self.show = name, budget, show
        self.storage = storage
        self.study: Study | None = None
        self.spent_s: list[float] = []
        self.at_once = 1

    def listen(self, kind: str, detail: Any) -> None:
        """One event of ``launch.search``."""
        if kind not in ("started", "trial"):
            self.show(kind, detail, None, None)
            return
        self.study = self.study or open_study(self.name, self.storage)
        if kind == "trial" and (spent := self.study.trials[detail].user_attrs.get("seconds")):
            self.spent_s.append(sum(spent.values()))
        self.show(kind, detail, self.study, self.progress(self.study))

    def progress(self, study: Study) -> Progress:
        """Now; a worker's first trial, which loads what all need, is timed only while there is no other."""
        states = [t.state for t in study.trials]
        self.at_once = max(self.at_once, states.count(TrialState.RUNNING))
        per_trial_s = left_s = None
        budget = study.affordable(self.budget)
        if self.spent_s:
            usual_s = self.spent_s[self.at_once :] or self.spent_s
            per_trial_s = sum(usual_s) / len(usual_s) / self.at_once
            left_s = max(0, budget - study.counted()) * per_trial_s
        return Progress(
            budget,
            study.counted(),
            states.count(TrialState.RUNNING),
            states.count(TrialState.COMPLETE),
            states.count(TrialState.PRUNED),
            states.count(TrialState.FAIL),
            len(study.front()),
            volumes([t.values for t in complete(study)]),
            per_trial_s,
            left_s,
        )


@contextmanager
def watching(
    name: str, budget: int | None, mode: Mode, storage: str | None = None
) -> Iterator[Listen]:
    """A listener for ``launch.search`` that shows what it hears for as long as the context lasts."""
    if mode == "screen":
        screen = Screen()
        with Live(screen, refresh_per_second=2, transient=True):
            yield Watch(name, budget, screen, storage).listen
    else:
        shows = {"lines": say_line, "json": say_json, "quiet": say_nothing}
        yield Watch(name, budget, shows[mode], storage).listen


def mode_of(quiet: bool, as_json: bool) -> Mode:
    """A screen for a terminal, lines for everything else, unless asked otherwise."""
    if as_json:
        return "json"
    if quiet:
        return "quiet"
    return "screen" if sys.stdout.isatty() else "lines"


def say_nothing(kind: str, detail: Any, study: Study | None, progress: Progress | None) -> None:
    """For --quiet."""


def say_line(kind: str, detail: Any, study: Study | None, progress: Progress | None) -> None:
    """A line per event, for logs and pipes."""
    if kind == "reaped":
        print(f"resuming: {detail} interrupted trials are lined up again", flush=True)
    elif study is None or progress is None:
        print(f"{kind}: {detail}", flush=True)
    elif kind == "started":
        arch = Arch.from_json(study.trials[detail].user_attrs["arch"])
        print(f"trial {detail} started: {arch}", flush=True)
    else:
        left = f"about {(progress.left_s or 0) / 60:.1f} min left"
        counted = f"[{progress.counted}/{progress.budget}]"
        said = f"{counted} trial {detail}: {result(study, study.trials[detail])}"
        print(f"{said} | front {progress.front} | {left}", flush=True)


def say_json(kind: str, detail: Any, study: Study | None, progress: Progress | None) -> None:
    """One JSON object per event."""
    event: dict[str, Any] = {"event": kind}
    if study is None or progress is None:
        event["detail"] = detail
    else:
        trial = study.trials[detail]
        event |= {"trial": detail, "state": trial.state.name.lower()}
        event["arch"] = trial.user_attrs.get("arch")
        event["reason"] = trial.user_attrs.get("reason")
        event["values"] = trial.values and dict(
            zip(study.settings.objectives, trial.values, strict=True)
        )
        event |= {"counted": progress.counted, "budget": progress.budget, "front": progress.front}
        event["hypervolume"] = progress.volumes[-1] if progress.volumes else None
        event |= {"per_trial_s": progress.per_trial_s, "left_s": progress.left_s}
    print(json.dumps(event), flush=True)


def say_end(study: Study, mode: Mode) -> None:
    """The front, once the search is over."""
    if mode == "json":
        print(json.dumps({"event": "done"} | front_json(study)), flush=True)
    elif mode != "quiet":
        Console(soft_wrap=False).print(front_table(study))
        name = study.settings.name
        print(f"next: nas-kd report {name}, nas-kd dashboard {name} or nas-kd export {name}")


def result(study: Study, trial: FrozenTrial) -> str:
    """Values with their units, or the reason why there are none."""
    if not trial.values:
        return f"{trial.state.name.lower()}: {trial.user_attrs.get('reason')}"
    named = zip(study.settings.objectives, trial.values, strict=True)
    return ", ".join(f"{value * SCALE[name]:.2f} {UNITS[name]}" for name, value in named)


class Screen:
    """The live screen's contents; rich asks for them twice a second."""

    def __init__(self) -> None:
        self.said = "starting: loading torch and the teacher"
        self.study: Study | None = None
        self.progress: Progress | None = None
        self.archs: dict[int, str] = {}
        self.homes: dict[int, Path] = {}
        self.since_s: dict[int, float] = {}

    def __call__(
        self, kind: str, detail: Any, study: Study | None, progress: Progress | None
    ) -> None:
        """An event."""
        if study is None:
            self.said = f"{kind}: {detail}"
            return
        self.study, self.progress = study, progress
        trial = study.trials[detail]
        if kind == "started":
            self.archs[detail] = Brief(study.space)(Arch.from_json(trial.user_attrs["arch"]))
            self.homes[detail] = study.student_folder(trial)
            self.since_s[detail] = time.monotonic()
            if self.said.startswith(("preparing", "starting")):
                self.said = "the first trial is under way"
        else:
            self.archs.pop(detail, None)
            self.said = f"last: trial {detail}, {result(study, trial)}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The screen as it is now, cut to the terminal's height."""
        parts: list[Any] = []
        if self.progress is not None and self.study is not None:
            parts += [_bar(self.progress, console.width), _counts(self.progress)]
            parts.append(_volumes(self.progress, self.study.settings.objectives))
            if self.archs:
                parts += [Text(), self._running()]
            taken = len(parts) + len(self.archs) + TABLE_LINES
            if self.progress.front and (lines := console.size.height - taken) > 0:
                parts += [Text(), front_table(self.study, lines)]
        yield Group(*parts, Text(self.said, no_wrap=True, overflow="ellipsis"))

    def _running(self) -> Table:
        table = Table("worker", "trial", "for s", "doing", box=None, pad_edge=False, expand=True)
        table.add_column("encoder | decoder | latents", ratio=1)
        for column in table.columns:
            column.no_wrap = True
        for number, arch in list(self.archs.items()):
            now = read_now(self.homes[number], number)
            spent = f"{time.monotonic() - self.since_s[number]:.0f}"
            worker, doing = (now.worker, str(now)) if now else ("", "wait for a worker")
            table.add_row(worker, str(number), spent, Text(doing), Text(arch))
        return table


TABLE_LINES = 10
"""What a front's frame, title and caption, an empty line and the last message take of the height."""


def _bar(p: Progress, width: int) -> Table:
    row = Table.grid(padding=(0, 1))
    for _ in range(3):
        row.add_column(no_wrap=True)
    times = "no trial has ended yet"
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
