"""Plots as files: the front, and the frontier beside other codecs."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import wrap
from typing import Any
from unittest.mock import patch

from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_pgf import RendererPgf
from matplotlib.figure import Figure as MplFigure
from matplotlib.text import Text
from optuna.trial import FrozenTrial, TrialState

from nas_kd.files import replacing
from nas_kd.report.frontier import draw_frontier, frontiers, place_names
from nas_kd.report.rd_plot import COLOURS, draw, lines_of
from nas_kd.study.record import record
from nas_kd.study.study import Study
from nas_kd.study.told_apart import notes
from nas_kd.study.uncertainty import UNITS, uncertainty_of, value_of

WIDTH = 150
"""Characters of a line of notes under a plot."""


def plot_front(study: Study, file: Path) -> None:
    """Left, all trials with the front; right, the front's R-D curves beside teacher and classical codecs."""
    figure = MplFigure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_objectives(study, left)
    draw(right, lines_of(study, study.baselines))
    _say(figure, notes(study))
    _save(figure, file)


def plot_frontier(study: Study, file: Path) -> None:
    """BD-rate against the decoder's MACs and against its time, beside other codecs."""
    figure = MplFigure(figsize=(12, 5.5), layout="constrained")
    found = frontiers(study)
    panes = figure.subplots(1, 2)
    for axes, one in zip(panes, found, strict=True):
        draw_frontier(axes, one)
    _say(figure, list(dict.fromkeys(note for one in found for note in one.notes)))
    figure.draw_without_rendering()
    for axes in panes:
        place_names(axes)
    _save(figure, file)


def _say(figure: MplFigure, notes: list[str]) -> None:
    if notes:
        text = "\n".join(line for note in notes for line in wrap(note, WIDTH))
        figure.supxlabel(text, fontsize="small")


def _save(figure: MplFigure, file: Path) -> None:
    with replacing(file) as temporary:
        if file.suffix == ".pgf":
            _save_pgf(figure, temporary)
        else:
            figure.savefig(temporary, dpi=120)


def _save_pgf(figure: MplFigure, file: Path) -> None:
    """Without LaTeX: texts take the room that they take in other formats, and come out in the document's fonts."""
    for text in figure.findobj(Text):
        if "$" not in text.get_text():
            text.set_text(re.sub(r"([#&_])", r"\\\1", text.get_text()))
    size = RendererBase.get_text_width_height_descent
    with patch.object(RendererPgf, "get_text_width_height_descent", size):
        figure.savefig(file, backend="pgf")


def _plot_objectives(study: Study, axes: Any) -> None:
    names = study.settings.objectives
    x, y = (names[1], names[0]) if len(names) > 1 else (names[0], names[0])

    def draw(trials: list[FrozenTrial], **style: Any) -> None:
        at = [[value_of(study, t, name) for t in trials] for name in (x, y)]
        axes.plot(*at, **style)
        for trial, *point in zip(trials, *at, strict=True):
            said = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": "small"}
            axes.annotate(str(trial.number), point, color=style["color"], **said)

    members = sorted(study.front(), key=lambda t: value_of(study, t, x) or 0.0)
    numbers = {t.number for t in members}
    done = [t for t in study.trials if t.state == TrialState.COMPLETE]
    rest = [t for t in done if t.number not in numbers and record(t).same_as is None]
    draw(rest, linestyle="", marker="o", fillstyle="none", color="0.5", label="dominated")
    stairs = {"linestyle": ":", "drawstyle": "steps-post"} if len(names) == 2 else {"linestyle": ""}
    draw(members, marker="D", color=COLOURS[0], label="front", **stairs)
    _bars(study, members, (x, y), axes)
    axes.set(xlabel=UNITS[x], ylabel=UNITS[y])
    axes.legend()


def _bars(study: Study, members: list[FrozenTrial], names: tuple[str, str], axes: Any) -> None:
    """The front's alone: the bars of a hundred others would hide it."""
    for trial in members:
        x, y = (value_of(study, trial, name) for name in names)
        dx, dy = (uncertainty_of(study, trial, name) for name in names)
        if dx is not None or dy is not None:
            style = {"ecolor": COLOURS[0], "elinewidth": 1, "capsize": 3, "fmt": "none"}
            axes.errorbar([x], [y], xerr=dx, yerr=dy, **style)
