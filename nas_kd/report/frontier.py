"""A study's students beside other codecs: BD-rate against what decoding costs.

Published BD-rates are on Kodak against one codec, so they stand beside ours only where the study was judged by Kodak;
elsewhere ours stand beside classical codecs that were measured on the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.trial import FrozenTrial

from nas_kd.data.images import open_images
from nas_kd.errors import StudyError, UsageError
from nas_kd.evaluation.bd_rate import RDCurve, bd_rate
from nas_kd.evaluation.published import ANCHOR, against_anchor, decoders, is_kodak
from nas_kd.report.figures import Pane, absent, complete
from nas_kd.report.rd_plot import COLOURS, DASHES, GREY, Figure
from nas_kd.study.anchor import Anchor
from nas_kd.study.record import cost_of, rd_of, record
from nas_kd.study.settings import TEACHER
from nas_kd.study.study import Study
from nas_kd.study.uncertainty import uncertainty_of, value_of

MACS, TIME = "decoder kMAC per pixel", "decoder ms per 768x512 picture, without entropy coding"
KEYS = {MACS: "frontier-macs", TIME: "frontier-ms"}

Kind = Literal["front", "dominated", "published", "converted"]
LOOKS: dict[Kind, tuple[str, str, str]] = {
    "dominated": (GREY, "o", "circle-open"),
    "front": (COLOURS[0], "D", "diamond"),
    "published": (COLOURS[1], "^", "triangle-up"),
    "converted": (COLOURS[1], "v", "triangle-down-open"),
}
"""Colour, and the marker's name to matplotlib and to Plotly."""


@dataclass(frozen=True)
class Spot:
    """A codec: what its decoder costs, its BD-rate in per cent, half the 95 % interval of it where it is known."""

    name: str
    cost: float
    bd_rate: float
    kind: Kind
    bar: float | None = None
    trial: int | None = None


@dataclass(frozen=True)
class Frontier:
    """Students and others along one cost; ``levels`` are BD-rates of codecs without such a cost."""

    cost: str
    against: str
    spots: list[Spot]
    levels: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def missing(self) -> str | None:
        """Why there is nothing to draw; None where there is."""
        return None if any(spot.trial is not None for spot in self.spots) else self.notes[0]


def frontiers(study: Study, kodak: bool | None = None) -> list[Frontier]:
    """Along the decoder's MACs, and along its time. kodak: whether the study was judged by it, where that is known."""
    on_kodak = judged_by_kodak(study) if kodak is None else kodak
    rates = _on_kodak if on_kodak else _on_its_own(study)
    levels = _levels(study, on_kodak)
    return [_along_macs(study, rates, levels, on_kodak), _along_ms(study, rates, levels, on_kodak)]


def judged_by_kodak(study: Study) -> bool:
    """Whether its evaluation pictures are Kodak's by their pixels, and still those of its trials."""
    try:
        images = open_images(study.settings.eval_data, "eval")
    except UsageError:
        return False
    known = (record(trial).rd for trial in study.trials)
    judged = {rd.data_fingerprint for rd in known if rd is not None}
    return judged == {images.fingerprint} and is_kodak(images)


Rates = Callable[[FrozenTrial], tuple[float | None, float | None]]
"""A trial's BD-rate and its bar."""


def _on_kodak(trial: FrozenTrial) -> tuple[float | None, float | None]:
    """Against what the published ones are against; of its single pictures no curve is published, so there is no bar."""
    return against_anchor(rd_of(trial).curve()), None


def _on_its_own(study: Study) -> Rates:
    return lambda trial: (
        value_of(study, trial, "bd_rate"),
        uncertainty_of(study, trial, "bd_rate"),
    )


def _levels(study: Study, kodak: bool) -> dict[str, float]:
    """Classical codecs, measured on the study's pictures, by the same BD-rate as its students."""
    anchor, found = study.anchor, dict[str, float]()
    if anchor is None:
        return found
    for name, curve in anchor.baselines.items():
        value = against_anchor(curve) if kodak else _in_the_study(anchor, curve)
        if value is not None:
            found[name] = value
    return found


def _in_the_study(anchor: Anchor, curve: RDCurve) -> float | None:
    if anchor.interval_db is None:
        return None
    try:
        return bd_rate(anchor.curve, curve, anchor.interval_db).value
    except StudyError:
        return None


def _along_macs(study: Study, rates: Rates, levels: dict[str, float], kodak: bool) -> Frontier:
    def kmac_px(trial: FrozenTrial) -> float:
        cost = cost_of(trial)
        return cost.decoder_macs / cost.pixels / 1e3

    others = [
        Spot(name, one.kmac_px, one.bd_rate, "converted" if one.converted else "published")
        for name, one in (decoders() if kodak else {}).items()
        if one.bd_rate is not None
    ]
    ours, missing = _ours(study, kmac_px, rates)
    notes = missing + [_beside(kodak), *_lines(study, levels)]
    return Frontier(MACS, _against(study, kodak), [*others, *ours], levels, notes)


def _along_ms(study: Study, rates: Rates, levels: dict[str, float], kodak: bool) -> Frontier:
    name = "latency:decoder"
    if name not in study.settings.objectives:
        return Frontier(TIME, _against(study, kodak), [], {}, [absent(study, name)])
    ours, missing = _ours(study, lambda trial: value_of(study, trial, name), rates)
    elsewhere = "published times are of other devices, and left out"
    notes = [*missing, elsewhere, *_lines(study, levels)]
    return Frontier(TIME, _against(study, kodak), ours, levels, notes)


def _ours(
    study: Study, cost: Callable[[FrozenTrial], float | None], rates: Rates
) -> tuple[list[Spot], list[str]]:
    """Complete trials that have both figures, the dominated first; and why there are none."""
    members = {t.number for t in study.front()}
    spots = []
    for trial in (t for t in complete(study) if record(t).cost and record(t).rd):
        x, (y, bar) = cost(trial), rates(trial)
        if x is not None and y is not None:
            kind: Kind = "front" if trial.number in members else "dominated"
            name = f"trial {trial.number}"
            spots.append(Spot(name, x, y, kind, bar if kind == "front" else None, trial.number))
    spots.sort(key=lambda spot: (spot.kind == "front", spot.cost))
    if spots:
        return spots, []
    if "bd_rate" not in study.settings.objectives:
        return [], [absent(study, "bd_rate")]
    return [], ["no trial is complete yet"]


def _against(study: Study, kodak: bool) -> str:
    if kodak:
        return ANCHOR
    name = TEACHER if study.anchor is None else study.anchor.name
    return f"teacher {study.settings.teacher}" if name == TEACHER else name


def _beside(kodak: bool) -> str:
    if kodak:
        return (
            "published codecs on Kodak, over the PSNR that both curves cover where a curve was published; ours by "
            "estimated rates"
        )
    return "published codecs are left out: their figures are on Kodak, which these pictures are not proved to be"


def _lines(study: Study, levels: Mapping[str, float]) -> list[str]:
    """Which lines there are, and of which codec none can be drawn."""
    found = [f"lines: {', '.join(levels)} on the same pictures, whole files"] if levels else []
    if lacking := [name for name in study.baselines if name not in levels]:
        found.append(
            f"{', '.join(lacking)}: no line, for there is no sound BD-rate over this interval"
        )
    return found


# ------------------------------------------------------------------ for pages


def frontier_panes(found: Sequence[Frontier]) -> list[Pane]:
    """Each as a figure, or the reason why there is none. The title, which wraps, has what axes have no room for."""
    return [
        Pane(
            KEYS[one.cost],
            f"BD-rate % against {one.against}, by {one.cost}",
            None if one.missing else _figure(one),
            one.missing,
        )
        for one in found
    ]


def _figure(one: Frontier) -> Figure:
    data = [_level(one, *item, place) for place, item in enumerate(one.levels.items())]
    data += [_trace(one, kind) for kind in LOOKS if any(s.kind == kind for s in one.spots)]
    along = {"title": {"text": one.cost.partition(" per 768")[0]}, "type": "log"}
    return {"data": data, "layout": {"xaxis": along, "yaxis": {"title": {"text": "BD-rate %"}}}}


def _trace(one: Frontier, kind: Kind) -> Figure:
    spots = [spot for spot in one.spots if spot.kind == kind]
    colour, _, symbol = LOOKS[kind]
    trace: Figure = {
        "type": "scatter",
        "mode": "markers",
        "name": kind,
        "x": [spot.cost for spot in spots],
        "y": [spot.bd_rate for spot in spots],
        "text": [spot.name for spot in spots],
        "marker": {"color": colour, "symbol": symbol, "size": 12 if kind == "front" else 9},
        "hovertemplate": "%{text}<br>%{x:.2f}<br>%{y:+.1f} %<extra></extra>",
    }
    if kind in ("published", "converted"):
        return trace | {
            "mode": "markers+text",
            "textposition": "top center",
            "textfont": {"size": 10},
        }
    trace["customdata"] = [spot.trial for spot in spots]
    bars = [spot.bar for spot in spots]
    if any(bar is not None for bar in bars):
        trace["error_y"] = {"type": "data", "array": bars, "thickness": 1, "width": 3}
    return trace | ({"meta": "accent"} if kind == "front" else {})


def _level(one: Frontier, name: str, value: float, place: int) -> Figure:
    costs = [spot.cost for spot in one.spots]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [min(costs) / 1.2, max(costs) * 1.2],
        "y": [value, value],
        "line": {"dash": list(DASHES)[place % len(DASHES)], "color": GREY},
        "hovertemplate": f"{name}<br>%{{y:+.1f}} %<extra></extra>",
    }


# ------------------------------------------------------------------ for files


def draw_frontier(axes: Any, one: Frontier) -> None:
    """On matplotlib's axes; the reason in their place where there is nothing to draw."""
    axes.set(xlabel=one.cost, ylabel=f"BD-rate % against {one.against}")
    if one.missing:
        axes.text(0.5, 0.5, f"absent:\n{one.missing}", ha="center", va="center", wrap=True)
        axes.set(xticks=[], yticks=[])
        return
    for place, (name, value) in enumerate(one.levels.items()):
        dash = list(DASHES.values())[place % len(DASHES)]
        axes.axhline(value, color=GREY, linestyle=dash, label=name)
    for kind in LOOKS:
        if spots := [spot for spot in one.spots if spot.kind == kind]:
            _draw_spots(axes, kind, spots)
    axes.set_xscale("log")
    axes.legend(fontsize="small")


PLACES = [(dx, dy) for dy in (5, -12, 18, -25, 31, -38) for dx in (5, -5)]
"""Where a name may stand, in points from its mark; the first is preferred."""


def place_names(axes: Any) -> None:
    """Put each name where it is inside and covers no other and no mark; the figure has its layout, and keeps it."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    legend = axes.get_legend()
    names = [text for text in axes.texts if hasattr(text, "xyann")]
    marks = axes.transData.transform([name.xy for name in names]) if names else []
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in marks]
    taken += [] if legend is None else [legend.get_window_extent()]
    for name in names:
        for dx, dy in PLACES:
            name.set(position=(dx, dy), ha="left" if dx > 0 else "right")
            name.get_window_extent()  # moves it; with its line
            box = Text.get_window_extent(name)
            inside = axes.bbox.contains(*box.p0) and axes.bbox.contains(*box.p1)
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _draw_spots(axes: Any, kind: Kind, spots: list[Spot]) -> None:
    colour, marker, _ = LOOKS[kind]
    bars = [spot.bar or 0.0 for spot in spots]
    filled = "full" if kind in ("front", "published") else "none"
    style = {"fmt": marker, "color": colour, "fillstyle": filled, "capsize": 3, "elinewidth": 1}
    at = [spot.cost for spot in spots], [spot.bd_rate for spot in spots]
    axes.errorbar(*at, yerr=bars if any(bars) else None, label=kind, **style)
    for spot in spots:
        said = spot.name if spot.trial is None else str(spot.trial)
        axes.annotate(
            said,
            (spot.cost, spot.bd_rate),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize="small",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 4},
        ).set_in_layout(False)
