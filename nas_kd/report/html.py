"""The report: one HTML file that needs nothing else, to send to a colleague.

Its template lies in ``assets/report``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nas_kd import __version__
from nas_kd.errors import UsageError
from nas_kd.files import write_text
from nas_kd.objectives import TABLE
from nas_kd.places import ASSETS
from nas_kd.report.figures import absent, history, importances, panes
from nas_kd.report.frontier import frontier_panes, frontiers
from nas_kd.report.rd_plot import figure, lines_of
from nas_kd.report.seen import Seen, best_first, look
from nas_kd.report.trial_rows import STATES, columns, entry
from nas_kd.study.record import record
from nas_kd.study.settings import KNOWN_OBJECTIVES, OBJECTIVES, TEACHER
from nas_kd.study.study import Study
from nas_kd.study.told_apart import notes

TEMPLATES = ASSETS / "report"

BEGUN = {
    "shared": "slices of weights shared by the space, {} steps of warm-up",
    "teacher": "slices of the teacher, its channels in the order of their importance",
    "scratch": "a linear transform codec, or noise where there is no trunk",
}
FAMILY = "slices of the teacher, which is of one family with the space"
HOW = {name: one.how for name, one in TABLE.items()}


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


def build(study: Study, seen: Seen) -> str:
    """The page as one text."""
    from plotly.offline import get_plotlyjs

    front, search = panes(study), [history(study), importances(study)]
    along = frontiers(study, kodak=bool(seen.published))
    beside = frontier_panes(along)
    shown = [*front, *beside, *search]
    figures = {pane.key: pane.figure for pane in shown if pane.figure is not None}
    figures["curves"] = figure(lines_of(study, seen.baselines, seen.published))
    remarks = dict.fromkeys(note for one in along if not one.missing for note in one.notes)
    return (
        _templates()
        .get_template("report.html")
        .render(
            title=f"{study.settings.name}: front of a codec search",
            lead=_lead(study),
            front=front,
            beside=beside,
            beside_notes=[_sentence(note) for note in remarks],
            search=search,
            notes=[_sentence(note) for note in notes(study)],
            seen=seen,
            curves_note=_curves_note(study, seen),
            method=_method(study),
            data=_data(study, figures, seen),
            css=_trusted("report.css"),
            js=_trusted("report.js"),
            plotly=Markup(get_plotlyjs()),
        )
    )


def _templates() -> Environment:
    loader = FileSystemLoader(TEMPLATES)
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    found.filters["sentence"] = _sentence
    found.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return found


def _trusted(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text())


def _data(study: Study, figures: dict[str, Any], seen: Seen) -> dict[str, Any]:
    """What the page's script reads."""
    best = best_first(study)
    members = {t.number for t in best}
    return {
        "study": study.settings.name,
        "columns": columns(study),
        "trials": [entry(study, t, t.number in members) for t in study.trials],
        "figures": figures,
        "originals": seen.originals,
        "frames": seen.frames,
        "shots": seen.shots,
        "opens": {"trial": best[0].number if best else None, "level": _middle_level(seen)},
    }


def _middle_level(seen: Seen) -> int | None:
    """Of those that were drawn beside the lowest, which is the ugliest."""
    return max((shot["level"] for shot in seen.shots), default=None)


def _lead(study: Study) -> str:
    s = study.settings
    states = [STATES[t.state] for t in study.trials]
    counts = ", ".join(f"{states.count(n)} {n}" for n in STATES.values() if n in states)
    what = f"{len(states)} trials ({counts}); {len(study.front())} on the front. "
    return f"{what}Space {s.space}, teacher {s.teacher}, {s.steps} steps per trial."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _curves_note(study: Study, seen: Seen) -> str:
    note = "Mean over the evaluation pictures. The rates of students and teacher are estimated from likelihoods"
    if seen.baselines:
        note += f"; those of {', '.join(seen.baselines)} (Pillow's, 4:2:0) are whole files. "
        note += "Click the legend to hide or show. "
    else:
        note += f". JPEG, WebP and AVIF are absent: {seen.missing} "
    if seen.published:
        return (
            f"{note}{', '.join(seen.published)}: published on these pictures, real bitstreams. "
            "The paper's students were trained for one lambda each; their rates are estimated."
        )
    return (
        note
        + "The figures of the paper (arXiv 2509.10366) are absent: they are on Kodak, which these are not proved to be."
    )


def _method(study: Study) -> list[tuple[str, str]]:
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
    warmed = s.warmup if study.warmup_steps is None else study.warmup_steps
    family = s.init == "shared" and warmed is None
    facts.append(("started from", FAMILY if family else BEGUN[s.init].format(warmed)))
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
    return facts


def _judged(study: Study) -> str:
    rd = next((rd for t in study.trials if (rd := record(t).rd) is not None), None)
    if rd is None:
        return f"{study.settings.eval_data}; no trial was evaluated"
    names = ", ".join(rd.images[:6]) + (", ..." if len(rd.images) > 6 else "")
    return (
        f"{study.settings.eval_data}: {len(rd.images)} pictures ({names}), "
        f"fingerprint {rd.data_fingerprint[:12]}"
    )
