"""The report: one HTML file that needs nothing else, to send to a colleague."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from nas_kd import __version__
from nas_kd.codec.checkpoint import load_student
from nas_kd.codec.cost import Cost
from nas_kd.data.images import ImageSet, open_images
from nas_kd.errors import UsageError
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.evaluation.classical import beside
from nas_kd.evaluation.published import is_kodak, shown
from nas_kd.evaluation.rate_distortion import StudentCodec
from nas_kd.files import write_text
from nas_kd.objectives import TABLE
from nas_kd.places import ASSETS
from nas_kd.reasons import Reason
from nas_kd.report.crops import crops, data_uri, shots, spread
from nas_kd.report.figures import (
    Figure,
    Pane,
    absent,
    curves,
    history,
    importances,
    panes,
)
from nas_kd.study.record import record
from nas_kd.study.settings import KNOWN_OBJECTIVES, OBJECTIVES, QUALITY, TEACHER
from nas_kd.study.study import Study
from nas_kd.study.uncertainty import UNITS, notes, uncertainty_of, value_of

PICTURES, MEMBERS, LEVELS = 3, 5, 2
"""Crops in the page: 30 at most, some 2 MB."""

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "infeasible",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
BEGUN = {
    "shared": "slices of weights shared by the space, {} steps of warm-up",
    "teacher": "slices of the teacher, its channels in the order of their importance",
    "scratch": "a linear transform codec, or noise where there is no trunk",
}
HOW = {name: one.how for name, one in TABLE.items()}


@dataclass(frozen=True)
class Seen:
    """What the pictures of the evaluation set add: baselines' curves and coded crops.

    published: others' curves, where the set is Kodak.
    """

    baselines: Mapping[str, RDCurve]
    originals: dict[str, str]
    shots: list[dict[str, Any]]
    missing: str | None = None
    published: dict[str, RDCurve] = field(default_factory=dict)


def write_report(study: Study, out: Path) -> None:
    """Write the report; raises UsageError where the study has no trials or the file cannot be written."""
    if not study.trials:
        raise UsageError(
            f"study '{study.settings.name}': has no trials yet; run `nas-kd search` first"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, build(study, look(study)))
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); give another") from error


def look(study: Study) -> Seen:
    """Baselines and reconstructions on the study's evaluation pictures, where they can still be read."""
    baselines = study.baselines
    try:
        images = open_images(study.settings.eval_data, "eval")
    except UsageError as error:
        return Seen(baselines, {}, [], f"The evaluation pictures cannot be read: {error}")
    if (differs := _other_pictures(study, images)) is not None:
        return Seen(baselines, {}, [], differs)
    baselines = baselines or beside(images)
    originals = crops(images, PICTURES)
    front = best_first(study)
    chosen = [front[i - 1] for i in spread(len(front), MEMBERS)] if front else []
    taken: list[dict[str, Any]] = []
    for trial in chosen:
        if (study.student_folder(trial) / "student.safetensors").is_file():
            codec = StudentCodec(load_student(study.student_folder(trial)))
            wanted = [1, *spread(codec.levels, 3)[1:-1]][:LEVELS]  # the lowest, and a middle one
            taken += [_shot(trial, s) for s in shots(codec, originals, wanted)]
    missing = (
        None
        if taken
        else "No student of the front is stored any more, or no picture is large enough."
    )
    shown_originals = {n: data_uri(image) for n, image in originals.items()}
    published = shown() if is_kodak(images) else {}
    return Seen(baselines, shown_originals, taken, missing, published)


def best_first(study: Study) -> list[FrozenTrial]:
    """The front by BD-rate or R-D cost, where one is an objective; else by the first."""
    names = study.settings.objectives
    place = next((i for i, name in enumerate(names) if name in QUALITY), 0)
    return sorted(study.front(), key=lambda trial: trial.values[place])


def _other_pictures(study: Study, images: ImageSet) -> str | None:
    judged = {rd.data_fingerprint for t in study.trials if (rd := record(t).rd) is not None}
    if judged - {images.fingerprint}:
        return (
            f"The pictures in {study.settings.eval_data} are not those that the study was judged by; "
            "baselines and reconstructions are left out."
        )
    return None


def _shot(trial: FrozenTrial, shot: Any) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "picture": shot.picture,
        "level": shot.level,
        "bpp_est": shot.bpp_est,
        "psnr_db": shot.psnr_db,
        "uri": data_uri(shot.image),
    }


def build(study: Study, seen: Seen) -> str:
    """The page as one text."""
    from plotly.offline import get_plotlyjs

    front, search = panes(study), [history(study), importances(study)]
    figures = {pane.key: pane.figure for pane in [*front, *search] if pane.figure is not None}
    figures["curves"] = curves(study, seen.baselines, seen.published)
    return Template((ASSETS / "report.html").read_text()).substitute(
        title=html.escape(f"{study.settings.name}: front of a codec search"),
        lead=_lead(study),
        css=(ASSETS / "report.css").read_text(),
        panes=_panes(front) + _notes(study),
        curves_note=_curves_note(study, seen),
        pictures=_pictures(seen),
        search=_panes(search),
        search_note="Hypervolume: the share that the front dominates of the box between the best value of each "
        "objective and 10 % of the range beyond its worst. Importances: PED-ANOVA, per objective; "
        "MACs, which are computed from the arch, have none.",
        method=_method(study),
        data=_embedded(study, figures, seen),
        plotly=get_plotlyjs(),
        js=(ASSETS / "report.js").read_text(),
    )


def _embedded(study: Study, figures: dict[str, Figure], seen: Seen) -> str:
    columns = [{"name": "trial", "digits": 0}, {"name": "state", "digits": None}]
    columns += [{"name": UNITS[name], "digits": 2} for name in _columns(study)]
    columns += [{"name": name, "digits": 2} for name in ("enc kMAC/px", "dec kMAC/px")]
    columns += [{"name": "params M", "digits": 3}, {"name": "seconds", "digits": 0}]
    columns += [{"name": name, "digits": None} for name in ("reason", *study.space.vary)]
    columns.append({"name": "arch", "digits": None, "hidden": True})  # in the CSV, and by a click
    best = best_first(study)
    members = {t.number for t in best}
    data = {
        "study": study.settings.name,
        "columns": columns,
        "trials": [_trial(study, t, t.number in members) for t in study.trials],
        "figures": figures,
        "originals": seen.originals,
        "shots": seen.shots,
        "opens": {"trial": best[0].number if best else None, "level": _middle_level(seen)},
    }
    # Inside a script element only this sequence could end it.
    return json.dumps(data, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")


def _middle_level(seen: Seen) -> int | None:
    """Of those that were drawn beside the lowest, which is the ugliest."""
    return max((shot["level"] for shot in seen.shots), default=None)


def _columns(study: Study) -> list[str]:
    searched = study.settings.objectives
    return [name for name in KNOWN_OBJECTIVES if name in searched or name == "flops"]


def _trial(study: Study, trial: FrozenTrial, member: bool) -> dict[str, Any]:
    known = record(trial)
    cost, rd = known.cost, known.rd
    arch = str(known.arch) if known.begun else ""
    values = [value_of(study, trial, name) for name in _columns(study)]
    costs: list[float | None] = [None, None, None]
    if cost is not None:
        sides = [macs / cost.pixels / 1e3 for macs in (cost.encoder_macs, cost.decoder_macs)]
        costs = [*sides, cost.parameters / 1e6]
    spent = sum(known.seconds.values()) if known.seconds else None
    state, reason = STATES[trial.state], _reason(study, trial)
    chosen = [trial.params.get(name) for name in study.space.vary]
    return {
        "number": trial.number,
        "front": member,
        "row": [trial.number, state, *values, *costs, spent, reason, *chosen, arch],
        "facts": _facts(study, trial, member, arch),
        "rd": None if rd is None else list(zip(rd.mean_rate, rd.mean_psnr_db, strict=True)),
        "parts": _parts(cost) if cost else None,
    }


def _reason(study: Study, trial: FrozenTrial) -> str:
    known = record(trial)
    if known.same_as is not None:
        return f"same arch as trial {known.same_as}"
    again = [t.number for t in study.trials if record(t).retry_of == trial.number]
    said = known.said or (Reason.INTERRUPTED if again else "")
    return f"{said}, again as trial {again[0]}" if again else said


def _facts(study: Study, trial: FrozenTrial, member: bool, arch: str) -> list[tuple[str, str]]:
    known = record(trial)
    found = [("state", STATES[trial.state] + (", on the front" if member else ""))]
    if reason := _reason(study, trial):
        found.append(("reason", f"{reason}: {known.message}" if known.message else reason))
    for name in _columns(study):
        value, bar = value_of(study, trial, name), uncertainty_of(study, trial, name)
        if value is not None:
            found.append(
                (UNITS[name], f"{value:.2f}" + (f" ± {bar:.2f}" if bar is not None else ""))
            )
    if known.cost is not None:
        found.append(("parameters", f"{known.cost.parameters:,}"))
    found += [
        ("dimensions", ", ".join(f"{k} {v}" for k, v in trial.params.items())),
        ("arch", arch),
    ]
    if known.seconds:
        spent = ", ".join(f"{name} {s:.1f} s" for name, s in known.seconds.items())
        found.append(("time", spent))
    return found


def _parts(cost: Cost) -> list[tuple[str, int, float]]:
    parts = sorted(cost.parts.items(), key=lambda part: -part[1])
    return [(name, macs, macs / cost.macs) for name, macs in parts if macs]


def _lead(study: Study) -> str:
    s = study.settings
    states = [STATES[t.state] for t in study.trials]
    counts = ", ".join(f"{states.count(n)} {n}" for n in STATES.values() if n in states)
    what = f"{len(states)} trials ({counts}); {len(study.front())} on the front. "
    return html.escape(f"{what}Space {s.space}, teacher {s.teacher}, {s.steps} steps per trial.")


def _panes(shown: list[Pane]) -> str:
    """What there is side by side, then what is absent and why."""
    drawn = [
        f'<div class="pane"><h3>{html.escape(p.title)}</h3><div class="plot" data-figure="{p.key}"></div></div>'
        for p in shown
        if p.figure is not None
    ]
    reasons: dict[str, list[str]] = {}
    for p in shown:
        if p.figure is None:
            reasons.setdefault(p.reason or "", []).append(p.title)
    missing = [
        f'<p class="absent">Absent: {html.escape("; ".join(titles))}. {html.escape(_sentence(reason))}</p>'
        for reason, titles in reasons.items()
    ]
    return f'<div class="panes">{"".join(drawn)}</div>{"".join(missing)}'


def _notes(study: Study) -> str:
    """What the bars of the front say of its members."""
    return "".join(f'<p class="small">{html.escape(_sentence(note))}</p>' for note in notes(study))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _curves_note(study: Study, seen: Seen) -> str:
    note = "Mean over the evaluation pictures. The rates of students and teacher are estimated from likelihoods"
    if seen.baselines:
        note += f"; those of {', '.join(seen.baselines)} (Pillow's, 4:2:0) are whole files. "
        note += "Click the legend to hide or show. "
    else:
        note += f". JPEG, WebP and AVIF are absent: {html.escape(seen.missing or '')} "
    if seen.published:
        return (
            f"{note}{', '.join(seen.published)}: published on these pictures, real bitstreams. "
            "The paper's students were trained for one lambda each; their rates are estimated."
        )
    return (
        note
        + "The figures of the paper (arXiv 2509.10366) are absent: they are on Kodak, which these are not proved to be."
    )


def _pictures(seen: Seen) -> str:
    if not seen.shots:
        return f'<p class="absent">Absent: {html.escape(seen.missing or "")}</p>'
    controls = "".join(
        f'<select id="shot-{name}" aria-label="{name}"></select>'
        for name in ("trial", "picture", "level")
    )
    return (
        f'<div class="controls">{controls}</div><div class="compare" id="compare">'
        '<img id="original" alt="the original"><img id="coded" alt="the reconstruction"></div>'
        '<input class="slide" id="slide" type="range" min="0" max="100" value="50" '
        'aria-label="how much of the reconstruction is shown"><p class="small" id="said"></p>'
    )


def _method(study: Study) -> str:
    s = study.settings
    anchored = "the teacher" if s.anchor == TEACHER else f"{s.anchor} (whole files)"
    facts: list[tuple[str, str]] = [
        (name, HOW[name].replace("{anchor}", anchored))
        for name in KNOWN_OBJECTIVES
        if name in s.objectives
    ]
    facts += [(f"{n}: absent", absent(study, n)) for n in OBJECTIVES if n not in s.objectives]
    anchor = study.anchor
    if anchor is not None and anchor.interval_db is not None:
        low, high = anchor.interval_db
        facts.append(
            ("compared over", f"{low:.2f} to {high:.2f} dB of PSNR, within the teacher's range")
        )
    facts.append(("judged by", _judged(study)))
    warmed = study.warmup_steps
    facts.append(("started from", BEGUN[s.init].format(s.warmup if warmed is None else warmed)))
    facts.append(
        (
            "trained on",
            f"{s.data}: {s.crops} crops of {s.crop_size} px, {s.steps} steps of {s.batch}",
        )
    )
    facts.append(
        ("distilled with", f"weights {s.kd_x} (output), {s.kd_y} (y), {s.kd_z} (z); form {s.form}")
    )
    facts.append(("seed", str(s.seed)))
    made = study.made_with
    said = ", ".join(f"{k} {v}" for k, v in made.items()) if made else "versions were not recorded"
    facts += [("searched with", said), ("this page", f"nas-kd {__version__}, plotly.js embedded")]
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts)
    return f'<dl class="facts">{rows}</dl>'


def _judged(study: Study) -> str:
    rd = next((rd for t in study.trials if (rd := record(t).rd) is not None), None)
    if rd is None:
        return f"{study.settings.eval_data}; no trial was evaluated"
    names = ", ".join(rd.images[:6]) + (", ..." if len(rd.images) > 6 else "")
    return (
        f"{study.settings.eval_data}: {len(rd.images)} pictures ({names}), "
        f"fingerprint {rd.data_fingerprint[:12]}"
    )
