"""R-D curves, drawn in one way: as Plotly's JSON for pages, by matplotlib for files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.report.crops import spread
from nas_kd.report.paper import PAPER
from nas_kd.study.record import rd_of
from nas_kd.study.study import Study

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that the colour-blind tell apart (Okabe and Ito, Color Universal Design, 2008)."""
GREY = "#888888"

SHOWN_CURVES = 6
"""R-D curves of the front that are drawn; the report draws the chosen trial's beside them."""

DASHES: dict[str, Any] = {"dot": (0, (1, 1)), "dashdot": "-.", "longdash": (0, (6, 2))}
"""Of others' curves, which are all grey: Plotly's names and matplotlib's."""
MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "cross": "P",
    "star": "*",
}
"""Of students' curves, likewise."""

RATE, QUALITY = "bits per pixel (of learned codecs estimated)", "PSNR dB"

Figure = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A curve and whose it is; of a student its trial. A mark is points with labels and without a line between them."""

    name: str
    curve: RDCurve
    kind: Literal["teacher", "student", "classical", "published", "mark"]
    trial: int | None = None
    labels: tuple[str, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether it is of the study: those fill the picture, others go on beyond it."""
        return self.kind in ("teacher", "student")


def lines_of(
    study: Study,
    baselines: Mapping[str, RDCurve],
    published: Mapping[str, RDCurve] | None = None,
) -> list[Line]:
    """The teacher, classical codecs and the front, by estimated rate.

    published: others' on Kodak, where the study was judged by it; the paper's points come with them.
    """
    found = []
    if (anchor := study.anchor) is not None:
        found.append(Line(f"teacher {anchor.teacher.name}", anchor.teacher_curve, "teacher"))
    found += [Line(name, curve, "classical") for name, curve in baselines.items()]
    found += [Line(name, curve, "published") for name, curve in (published or {}).items()]
    if published:
        found.append(_papers())
    front = study.front()
    shown = [front[i - 1] for i in spread(len(front), SHOWN_CURVES)] if front else []
    for trial in shown:
        curve = rd_of(trial).curve()
        found.append(Line(f"trial {trial.number}", curve, "student", trial.number))
    return found


def _papers() -> Line:
    points = sorted((p["bpp_est"], p["psnr_db"], f"paper, N = {N}") for N, p in PAPER.items())
    rates, qualities, labels = zip(*points, strict=True)
    return Line("paper, lambda 0.025", RDCurve(rates, qualities), "mark", labels=labels)


def limits(lines: Sequence[Line]) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Of both axes, by the learned codecs; None where there are none."""
    learned = [line.curve for line in lines if line.learned]
    if not learned:
        return None
    highest = max(curve.bpp[-1] for curve in learned)
    low = min(min(curve.psnr_db) for curve in learned)
    high = max(max(curve.psnr_db) for curve in learned)
    margin = 0.1 * (high - low) or 1.0
    return (0.0, 1.05 * highest), (low - margin, high + margin)


def _places(lines: Sequence[Line]) -> list[int]:
    """Which of its own kind each is, from 0."""
    kinds = [line.kind for line in lines]
    return [kinds[:i].count(kind) for i, kind in enumerate(kinds)]


# ------------------------------------------------------------------ for files


def draw(axes: Any, lines: Sequence[Line]) -> None:
    """The curves on matplotlib's axes."""
    for line, place in zip(lines, _places(lines), strict=True):
        axes.plot(line.curve.bpp, line.curve.psnr_db, label=line.name, **_style(line, place))
    if (found := limits(lines)) is not None:
        axes.set(xlim=found[0], ylim=found[1])
    axes.set(xlabel=RATE, ylabel=QUALITY)
    axes.legend(fontsize="small")


def _style(line: Line, place: int) -> dict[str, Any]:
    if line.kind == "teacher":
        return {"color": "black", "linestyle": "--", "marker": "s"}
    if line.kind == "mark":
        return {"color": GREY, "linestyle": "", "marker": "x"}
    if line.kind == "student":
        marker = list(MARKERS.values())[place % len(MARKERS)]
        return {"color": COLOURS[place % len(COLOURS)], "marker": marker, "markersize": 4}
    dash = list(DASHES.values())[place % len(DASHES)]
    return {"color": GREY, "linestyle": dash, "linewidth": 1 + 0.5 * (line.kind == "classical")}


# ------------------------------------------------------------------ for pages


def figure(lines: Sequence[Line]) -> Figure:
    """The curves as Plotly's data and layout; a point of a student's has its trial as customdata."""
    data = [_trace(line, place) for line, place in zip(lines, _places(lines), strict=True)]
    upright: Figure = {"title": {"text": QUALITY}}
    level: Figure = {"title": {"text": "bits per pixel"}}
    if (found := limits(lines)) is not None:
        level, upright = level | {"range": list(found[0])}, upright | {"range": list(found[1])}
    return {"data": data, "layout": {"xaxis": level, "yaxis": upright}}


def _trace(line: Line, place: int) -> Figure:
    curve, count = line.curve, len(line.curve.bpp)
    levels = [f"{line.name}, level {i}" for i in range(1, count + 1)]
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if line.learned else "markers" if line.kind == "mark" else "lines",
        "name": line.name,
        "x": list(curve.bpp),
        "y": list(curve.psnr_db),
        "text": list(line.labels) or (levels if line.learned else [line.name] * count),
        "hovertemplate": "%{text}<br>%{x:.3f} bpp<br>%{y:.2f} dB<extra></extra>",
    }
    return trace | _look(line, place)


def _look(line: Line, place: int) -> Figure:
    if line.kind == "teacher":
        return {"line": {"dash": "dash", "width": 3}, "meta": "ink"}
    if line.kind == "mark":
        return {"marker": {"symbol": "x", "size": 9, "color": GREY}}
    if line.kind == "student":
        marker = list(MARKERS)[place % len(MARKERS)]
        return {
            "marker": {"symbol": marker, "size": 8},
            "line": {"color": COLOURS[place % len(COLOURS)]},
            "customdata": [line.trial] * len(line.curve.bpp),
        }
    dash = list(DASHES)[place % len(DASHES)]
    return {"line": {"dash": dash, "color": GREY, "width": 1 + (line.kind == "classical")}}
