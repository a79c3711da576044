"""What a person sees while a search runs: a live screen, plain lines, JSON lines or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nas_kd.figures import complete, volumes
from nas_kd.report import SCALE, UNITS, front_json, front_table
from nas_kd.space import Arch
from nas_kd.study import Study, open_study

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
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        budget: int | None,
        show: Any,
        storage: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.budget, self.show = name, budget, show
        self.storage, self.clock = storage, clock
        self.study: Study | None = None
        self.begun_s: float | None = None
        self.seen = 0

    def listen(self, kind: str, detail: Any) -> None:
        """One event of ``launch.search``."""
        if kind not in ("started", "trial"):
            self.show(kind, detail, None, None)
            return
        self.study = self.study or open_study(self.name, self.storage)
        self.begun_s = self.clock() if self.begun_s is None else self.begun_s
        self.seen += kind == "trial"
        self.show(kind, detail, self.study, self.progress(self.study))

    def progress(self, study: Study) -> Progress:
        """Now."""
        states = [t.state for t in study.trials]
        per_trial_s = left_s = None
        budget = study.affordable(self.budget)
        if self.seen and self.begun_s is not None:
            per_trial_s = (self.clock() - self.begun_s) / self.seen
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
        with Live(get_renderable=screen.render, refresh_per_second=2, transient=True):
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


def result(study: Study, trial: FrozenTrial) -> str:
    """Values with their units, or the reason why there are none."""
    if not trial.values:
        return f"{trial.state.name.lower()}: {trial.user_attrs.get('reason')}"
    named = zip(study.settings.objectives, trial.values, strict=True)
    return ", ".join(f"{value * SCALE[name]:.2f} {UNITS[name]}" for name, value in named)


class Screen:
    """The live screen's contents; rich asks for them twice a second."""

    def __init__(self) -> None:
        self.said = "starting"
        self.study: Study | None = None
        self.progress: Progress | None = None
        self.front: Table | None = None
        self.archs: dict[int, str] = {}
        self.since_s: dict[int, float] = {}

    def __call__(
        self, kind: str, detail: Any, study: Study | None, progress: Progress | None
    ) -> None:
        """An event."""
        self.study, self.progress = study, progress
        if study is None:
            self.said = f"{kind}: {detail}"
            return
        trial = study.trials[detail]
        if kind == "started":
            self.archs[detail] = str(Arch.from_json(trial.user_attrs["arch"]))
            self.since_s[detail] = time.monotonic()
        else:
            self.archs.pop(detail, None)
            self.said = f"last: trial {detail}, {result(study, trial)}"
        self.front = front_table(study)

    def render(self) -> Group:
        """The screen as it is now."""
        parts: list[Any] = []
        if self.progress is not None:
            parts += [Text(_counts(self.progress)), Text(_times(self.progress))]
            if self.progress.volumes:
                parts.append(Text(f"hypervolume {sparkline(self.progress.volumes)}"))
            if self.archs:
                parts.append(self._running())
            if self.front is not None and self.progress.front:
                parts.append(self.front)
        return Group(*parts, Text(self.said))

    def _running(self) -> Table:
        table = Table("trial", "for s", "running arch", box=None, pad_edge=False)
        for number, arch in list(self.archs.items()):
            spent = time.monotonic() - self.since_s[number]
            table.add_row(str(number), f"{spent:.0f}", escape(arch))
        return table


def _counts(p: Progress) -> str:
    return (
        f"{p.counted} of {p.budget} trials: {p.complete} complete, {p.infeasible} infeasible; "
        f"{p.failed} failed, {p.running} running"
    )


def _times(p: Progress) -> str:
    if p.per_trial_s is None or p.left_s is None:
        return "no trial has ended yet"
    return f"{p.per_trial_s:.1f} s per trial, about {p.left_s / 60:.1f} min left"


def sparkline(values: list[float]) -> str:
    """The last values, 0 to 1, as bars, then the last one in digits."""
    bars = "".join(BARS[min(int(v * len(BARS)), len(BARS) - 1)] for v in values[-BARS_WIDE:])
    return f"{bars} {values[-1]:.3f}"
