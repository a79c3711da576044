"""The front as a table and as JSON."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial
from rich import box
from rich.markup import escape
from rich.table import Table

from nas_kd.codec.arch import Arch
from nas_kd.codec.search_space import SearchSpace
from nas_kd.data.images import open_images
from nas_kd.errors import UsageError
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.evaluation.classical import CODECS, against, classical_curve, in_words, lacking
from nas_kd.evaluation.published import against_published, require_kodak, split_names
from nas_kd.measurement.energy_model import of_readings
from nas_kd.objectives import TABLE, of_kind
from nas_kd.study.domination import absences
from nas_kd.study.polish import best_folder
from nas_kd.study.record import cost_of, rd_of, record
from nas_kd.study.study import Study
from nas_kd.study.told_apart import alike, notes
from nas_kd.study.uncertainty import SCALE

HEADS = {name: one.head for name, one in TABLE.items()}
"""Of a table's columns, which are narrow."""

Beside = dict[str, dict[int, dict[str, Any]]]
"""Of each classical codec, by trial: BD-rate of the front's member against it, or the reason why there is none."""


def front_against(study: Study, versus: str = ",".join(CODECS)) -> Beside:
    """The front against codecs, by comma, on the study's evaluation pictures.

    Students' rates are estimates, as in the study; classical codecs' are whole files. Raises UsageError where the
    pictures are not those that the study was judged by, or are not Kodak and a published curve is named.
    """
    measured_here, others = split_names(versus)
    images = open_images(study.settings.eval_data, "eval")
    members = study.front()
    if any(rd_of(t).data_fingerprint != images.fingerprint for t in members):
        raise UsageError(
            f"eval_data {study.settings.eval_data}: not the pictures that study {study.settings.name} was "
            "judged by; put those back, or leave --baselines and --versus out"
        )
    require_kodak(images, others)
    found: Beside = {
        name: {t.number: against_published(name, curve_of(t)) for t in members} for name in others
    }
    for name in measured_here:
        reason = lacking(name)
        anchor = None if reason else classical_curve(name, images)
        found[name] = {
            t.number: against(anchor, curve_of(t))
            if anchor
            else {"bd_rate": None, "reason": reason}
            for t in members
        }
    return found


def curve_of(trial: FrozenTrial) -> RDCurve:
    """The estimated R-D curve of a trial."""
    return rd_of(trial).curve()


def front_json(study: Study, baselines: Beside | None = None) -> dict[str, Any]:
    """The front, the anchor and the counts of trials by state."""
    states, anchor = [t.state.name for t in study.trials], study.anchor
    return {
        "study": study.settings.name,
        "objectives": list(study.settings.objectives),
        "anchor": None if anchor is None else anchor.to_json(),
        "trials": {name: states.count(name) for name in sorted(set(states))},
        "front": [_member(study, t) for t in study.front()],
        "alike": alike(study),
        "energy_models": _energy_models(study),
    } | ({} if baselines is None else {"baselines": baselines})


def _energy_models(study: Study) -> dict[str, Any]:
    """Beside the measured energies: how far off a model of MACs, bytes and kernels is that was fitted to them."""
    own = [record(t) for t in study.trials]
    readings = [one.readings for one in own if one.same_as is None]
    models = {
        name: of_readings(there[name] for there in readings if name in there)
        for name in of_kind(study.settings.objectives, "energy")
    }
    return {name: model.to_json() for name, model in models.items() if model is not None}


def _member(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "values": dict(zip(study.settings.objectives, trial.values, strict=True)),
        "arch": record(trial).arch.to_json(),
        "cost": cost_of(trial).to_json(),
        "rd": rd_of(trial).to_json(),
        "student": str(best_folder(study, trial)),
        "polished": study.polished.get(trial.number),
    }


DRAWS = 32
"""Random archs that show which words of an arch vary in a space."""


def words(arch: Arch) -> list[list[str]]:
    """An arch as words: of its encoder, its decoder and its latents, always as many."""
    latents = [f"M{arch.M}", f"h{arch.hyper}", arch.entropy, "+linear" if arch.shortcut else ""]
    return [str(arch.encoder).split(), str(arch.decoder).split(), latents]


class Brief:
    """Says an arch in the words that vary in its space: encoder | decoder | latents."""

    def __init__(self, space: SearchSpace):
        seen = [words(space.draw(seed)) for seed in range(DRAWS)]
        self._varies = [
            [len(set(column)) > 1 for column in zip(*part, strict=True)]
            for part in zip(*seen, strict=True)
        ]

    def __call__(self, arch: Arch) -> str:
        """The words; the whole arch where none varies, or where it is of another space than today's of that name."""
        if [len(part) for part in words(arch)] != [len(part) for part in self._varies]:
            return str(arch)
        kept = [
            " ".join(word for word, varies in zip(part, places, strict=True) if varies and word)
            for part, places in zip(words(arch), self._varies, strict=True)
        ]
        return " | ".join(part for part in kept if part) or str(arch)


def _percent(found: dict[str, Any]) -> str:
    value = found["bd_rate"]
    return "-" if value is None else f"{value:+.1f}"


def _partly(baselines: Beside) -> list[str]:
    """BD-rates over a part of a member's own interval: a line each, with the part."""
    return [
        f"trial {number} against {name}: {in_words(found)}"
        for name, rows in baselines.items()
        for number, found in rows.items()
        if found.get("common")
    ]


def front_table(study: Study, lines: int | None = None, baselines: Beside | None = None) -> Table:
    """The front for a terminal, one row per member; ``lines`` keeps it to so many, each on one line.

    Archs are said in the words that vary in their space; beside classical codecs there is no room for them.
    """
    title = f"{study.settings.name}: front of {study.counted()} trials"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    members = study.front()
    table.caption = "\n".join(_caption(study, lines, baselines)) or None
    heads = ["trial", *(HEADS[name] for name in study.settings.objectives)]
    heads += [f"% vs\n{name}" for name in baselines] if baselines else ["dec\nkMAC/px"]
    heads += [] if lines is not None or baselines else ["params\nM"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    if not baselines:
        table.add_column(
            "encoder | decoder | latents", no_wrap=lines is not None, ratio=1 if lines else None
        )
    table.expand = lines is not None
    brief = Brief(study.space)
    for trial in members[:lines]:
        figures = [str(trial.number), *_figures(study, trial, baselines, lines is None)]
        said = [] if baselines else [escape(brief(record(trial).arch))]
        table.add_row(*figures, *said)
    return table


def _caption(study: Study, lines: int | None, baselines: Beside | None) -> list[str]:
    if lines is None:
        return list(map(escape, [*notes(study), *absences(study), *_partly(baselines or {})]))
    more = len(study.front()) - lines
    return [f"and {more} more: nas-kd front {study.settings.name}"] if more > 0 else []


def _figures(study: Study, trial: FrozenTrial, baselines: Beside | None, whole: bool) -> list[str]:
    cost = cost_of(trial)
    named = zip(study.settings.objectives, trial.values, strict=True)
    values = [f"{value * SCALE[name]:.2f}" for name, value in named]
    if baselines:
        return values + [_percent(rows[trial.number]) for rows in baselines.values()]
    size = [f"{cost.parameters / 1e6:.3f}"] if whole else []
    return [*values, f"{cost.decoder_macs / cost.pixels / 1e3:.2f}", *size]
