"""Figures of a study as Plotly's JSON (data and layout): for the report's page and the dashboard."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from nas_kd.objectives import BD_RATES, of_kind
from nas_kd.report.rd_plot import COLOURS, GREY, Figure
from nas_kd.study.front import Point, hypervolume, pareto_front, reference_point
from nas_kd.study.record import record
from nas_kd.study.study import Study
from nas_kd.study.uncertainty import EXACT, UNITS, uncertainty_of, value_of

SHOWN_DIMENSIONS = 12
"""Dimensions whose importance is drawn: the first ones, with room for their names."""

MIN_FOR_IMPORTANCE = 160
"""Complete trials below which importances are noise: at 80 random archs of `demo` a share moved by 0.17 from one draw
of them to the next (standard deviation), at 160 by 0.10 (benchmarks/LOG.md)."""


@dataclass(frozen=True)
class Pane:
    """A figure under its title, or the reason why there is none."""

    key: str
    title: str
    figure: Figure | None
    reason: str | None = None


def complete(study: Study) -> list[FrozenTrial]:
    """Complete trials, each arch once, in the order of their numbers."""
    trials = (t for t in study.trials if t.state == TrialState.COMPLETE)
    return [t for t in trials if record(t).same_as is None]


def panes(study: Study) -> list[Pane]:
    """The front, two objectives at a time."""
    asked = (name for name in ("rd_cost", *BD_RATES) if name in study.settings.objectives)
    quality = next(asked, "bd_rate")
    energy = next(iter(of_kind(study.settings.objectives, "energy")), "energy")
    pairs = (("flops", quality), (energy, quality), ("flops", energy))
    return [_pane(study, x, y) for x, y in pairs]


def _pane(study: Study, x: str, y: str) -> Pane:
    title = f"{UNITS[y]} against {UNITS[x]}"
    missing = [n for n in (x, y) if n != "flops" and n not in study.settings.objectives]
    if missing:
        return Pane(f"{x}-{y}", title, None, absent(study, missing[0]))
    if not complete(study):
        return Pane(f"{x}-{y}", title, None, "no trial is complete yet")
    members = {t.number for t in study.front()}
    rest = [t for t in complete(study) if t.number not in members]
    front = sorted(study.front(), key=lambda t: value_of(study, t, x) or 0.0)
    dominated = _points(study, rest, x, y, "dominated", GREY, "circle-open")
    optimal = _points(study, front, x, y, "front", COLOURS[0], "diamond") | {"meta": "accent"}
    for axis, objective in (("x", x), ("y", y)):
        # The front's alone: the bars of a hundred others would hide it.
        bars = [uncertainty_of(study, t, objective) for t in front]
        if any(bar is not None for bar in bars):
            optimal[f"error_{axis}"] = {"type": "data", "array": bars, "thickness": 1, "width": 3}
    optimal["mode"] = "lines+markers" if len(study.settings.objectives) == 2 else "markers"
    optimal["line"] = {"width": 1.5, "shape": "hv", "dash": "dot"}
    optimal["marker"]["size"] = 12
    return Pane(f"{x}-{y}", title, {"data": [dominated, optimal], "layout": _axes(x, y)})


def absent(study: Study, name: str) -> str:
    """Why a study has no figure of an objective."""
    begun = study.made_with.get(f"{name}_meter")
    there = f"; where it ran: {begun}" if begun else ""
    asked = ",".join(study.settings.objectives)
    return f"{name} was not an objective of this study (objectives: {asked}){there}"


def _points(
    study: Study, trials: Sequence[FrozenTrial], x: str, y: str, name: str, colour: str, symbol: str
) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [value_of(study, t, x) for t in trials],
        "y": [value_of(study, t, y) for t in trials],
        "customdata": [t.number for t in trials],
        "marker": {"color": colour, "symbol": symbol, "size": 9},
        "hovertemplate": f"trial %{{customdata}}<br>{UNITS[x]} %{{x:.3f}}<br>{UNITS[y]} %{{y:.2f}}<extra></extra>",
    }


def _axes(x: str, y: str) -> Figure:
    return {"xaxis": {"title": {"text": UNITS[x]}}, "yaxis": {"title": {"text": UNITS[y]}}}


def volumes(points: Sequence[Point]) -> list[float]:
    """After each point, the share of the box that the front so far dominates, 0 to 1.

    The box lies between the best value and the reference point of all points, so that every
    objective counts alike.
    """
    if not points:
        return []
    corner = np.asarray(reference_point(points))
    best = np.min(np.asarray(points, dtype=float), axis=0)
    scaled = [tuple((np.asarray(p) - best) / (corner - best)) for p in points]
    front: list[tuple[float, ...]] = []
    history: list[float] = []
    for point in scaled:
        grown = [*front, point]
        kept = pareto_front(grown)
        if len(grown) - 1 in kept or not history:
            history.append(hypervolume([grown[i] for i in kept], [1.0] * len(corner)))
            front = [grown[i] for i in kept]
        else:
            history.append(history[-1])
    return history


def history(study: Study) -> Pane:
    """The hypervolume against the number of the trial that ended."""
    trials = complete(study)
    if not trials:
        return Pane("history", "Hypervolume", None, "no trial is complete yet")
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "hypervolume",
        "x": [t.number for t in trials],
        "y": volumes([t.values for t in trials]),
        "customdata": [t.number for t in trials],
        "line": {"shape": "hv", "color": COLOURS[0]},
        "marker": {"size": 5},
        "meta": "accent",
        "hovertemplate": "after trial %{x}<br>%{y:.3f}<extra></extra>",
    }
    upright = {"title": {"text": "share of the box dominated"}, "rangemode": "tozero"}
    layout = {"xaxis": {"title": {"text": "trial"}}, "yaxis": upright, "showlegend": False}
    return Pane("history", "Hypervolume", {"data": [trace], "layout": layout})


def importances(study: Study) -> Pane:
    """Which dimensions of the space move which objective (PED-ANOVA, as Optuna does it)."""
    title = "Importance of the space's dimensions"
    done = len(complete(study))
    if done < MIN_FOR_IMPORTANCE:
        reason = f"{done} complete trials: fewer than {MIN_FOR_IMPORTANCE} say nothing about it"
        return Pane("importances", title, None, reason)
    guessed = [name for name in study.settings.objectives if name not in EXACT]
    if not guessed:
        return Pane("importances", title, None, "every objective is computed from the arch exactly")
    found = {name: _importance(study, study.settings.objectives.index(name)) for name in guessed}
    found = {name: shares for name, shares in found.items() if shares}
    if not found:
        reason = "too little differs between the trials to tell the dimensions apart"
        return Pane("importances", title, None, reason)
    total = {d: sum(shares.get(d, 0.0) for shares in found.values()) for d in study.space.vary}
    dimensions = sorted(total, key=lambda d: total[d])[-SHOWN_DIMENSIONS:]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": UNITS[name],
            "y": dimensions,
            "x": [shares.get(d, 0.0) for d in dimensions],
            "marker": {"color": COLOURS[i]},
            "hovertemplate": f"{UNITS[name]}<br>%{{y}}: %{{x:.1f}}<extra></extra>",
        }
        for i, (name, shares) in enumerate(found.items())
    ]
    layout = {"xaxis": {"title": {"text": "share"}}, "yaxis": {"automargin": True, "dtick": 1}}
    if len(total) > len(dimensions):
        title += f", the first {len(dimensions)} of {len(total)}"
    return Pane("importances", title, {"data": data, "layout": layout})


def _importance(study: Study, index: int) -> dict[str, float]:
    with warnings.catch_warnings():
        # It says that low values are what it explains, which is what is wanted.
        warnings.simplefilter("ignore")
        try:
            return optuna.importance.get_param_importances(
                study.optuna, target=lambda trial: trial.values[index]
            )
        except (ValueError, RuntimeError):
            return {}  # all values alike, or a dimension that was never varied
