"""The front as a table, as JSON and as a plot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from nas_kd.baselines import CODECS, against, classical_curve, in_words, lacking
from nas_kd.bd import RDCurve
from nas_kd.data import open_images
from nas_kd.errors import UsageError
from nas_kd.polish import RECORD, best_folder
from nas_kd.space import Arch, SearchSpace
from nas_kd.study import Study

UNITS = {
    "bd_rate": "BD-rate %",
    "flops": "GMAC (768x512)",
    "energy": "mJ per frame",
    "rd_cost": "R-D cost bpp",
}
SCALE = {"bd_rate": 1.0, "flops": 1e-9, "energy": 1.0, "rd_cost": 1.0}


Beside = dict[str, dict[int, dict[str, Any]]]
"""Of each classical codec, by trial: BD-rate of the front's member against it, or the reason why there is none."""


def front_against(study: Study) -> Beside:
    """The front against classical codecs on the study's evaluation pictures.

    Students' rates are estimates, as in the study; the codecs' are whole files. Raises UsageError where the
    pictures are not those that the study was judged by.
    """
    images = open_images(study.settings.eval_data, "eval")
    members = study.front()
    if any(t.user_attrs["rd"]["data_fingerprint"] != images.fingerprint for t in members):
        raise UsageError(
            f"eval_data {study.settings.eval_data}: not the pictures that study {study.settings.name} was "
            "judged by; put those back, or leave --baselines out"
        )
    found: Beside = {}
    for name in CODECS:
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
    rd = trial.user_attrs["rd"]
    return RDCurve(tuple(rd["bpp_est"]), tuple(rd["psnr_db"]))


def front_json(study: Study, baselines: Beside | None = None) -> dict[str, Any]:
    """The front, the anchor and the counts of trials by state."""
    states = [t.state.name for t in study.trials]
    return {
        "study": study.settings.name,
        "objectives": list(study.settings.objectives),
        "anchor": study.optuna.user_attrs.get("anchor"),
        "trials": {name: states.count(name) for name in sorted(set(states))},
        "front": [_member(study, t) for t in study.front()],
    } | ({} if baselines is None else {"baselines": baselines})


def _member(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "values": dict(zip(study.settings.objectives, trial.values, strict=True)),
        "arch": trial.user_attrs["arch"],
        "cost": trial.user_attrs["cost"],
        "rd": trial.user_attrs["rd"],
        "student": str(best_folder(study, trial)),
        "polished": study.optuna.user_attrs.get(RECORD, {}).get(str(trial.number)),
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
        """The words; the whole arch where none varies."""
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
    """The front for a terminal, one row per member; ``lines`` keeps it to so many, each on one line."""
    table = Table(title=f"{study.settings.name}: front of {study.counted()} trials")
    members = study.front()
    if lines is not None and len(members) > lines:
        table.caption = f"and {len(members) - lines} more: nas-kd front {study.settings.name}"
    table.add_column("trial", justify="right")
    for name in study.settings.objectives:
        table.add_column(UNITS[name], justify="right")
    for column in ("dec kMAC/px", *(f"% vs {name}" for name in baselines or ())):
        table.add_column(column, justify="right")
    if lines is None:
        table.add_column("params M", justify="right")
        table.add_column("arch", overflow="fold")
    else:
        table.add_column("encoder | decoder | latents", no_wrap=True, ratio=1)
        table.expand = True
    said = str if lines is None else Brief(study.space)
    for trial in members[:lines]:
        cost = trial.user_attrs["cost"]
        pixels = cost["shape"][2] * cost["shape"][3]
        named = zip(study.settings.objectives, trial.values, strict=True)
        values = [f"{value * SCALE[name]:.2f}" for name, value in named]
        figures = [*values, f"{cost['decoder_macs'] / pixels / 1e3:.2f}"]
        figures += [_percent(rows[trial.number]) for rows in (baselines or {}).values()]
        figures += [f"{cost['parameters'] / 1e6:.3f}"] if lines is None else []
        arch = Arch.from_json(trial.user_attrs["arch"])
        table.add_row(str(trial.number), *figures, escape(said(arch)))
    return table


def plot_front(study: Study, file: Path) -> None:
    """Left, all trials with the front; right, the front's R-D curves beside the teacher's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    _plot_objectives(study, left)
    _plot_curves(study, right)
    temporary = file.with_name(f".{os.getpid()}.{file.name}")
    figure.savefig(temporary, dpi=120)
    plt.close(figure)
    os.replace(temporary, file)


def _plot_objectives(study: Study, axes: Any) -> None:
    names = study.settings.objectives
    x, y = (1, 0) if len(names) > 1 else (0, 0)

    def draw(trials: list[FrozenTrial], **style: Any) -> None:
        points = [(t.values[x] * SCALE[names[x]], t.values[y] * SCALE[names[y]]) for t in trials]
        axes.plot([p[0] for p in points], [p[1] for p in points], **style)

    done = [t for t in study.trials if t.state == TrialState.COMPLETE]
    draw(done, linestyle="", marker="o", color="0.7", label="trials")
    by_x = sorted(study.front(), key=lambda t: t.values[x])
    draw(by_x, linestyle="-", marker="o", color="#0072b2", label="front")
    axes.set(xlabel=UNITS[names[x]], ylabel=UNITS[names[y]])
    axes.legend()


def _plot_curves(study: Study, axes: Any) -> None:
    anchor = study.optuna.user_attrs.get("anchor")
    if anchor:
        curve = anchor["curve"]
        axes.plot(curve["bpp"], curve["psnr_db"], "k--", marker="s", label=anchor["teacher"])
    for trial in study.front():
        rd = trial.user_attrs["rd"]
        axes.plot(rd["bpp_est"], rd["psnr_db"], marker=".", label=f"trial {trial.number}")
    axes.set(xlabel="bpp (estimated)", ylabel="PSNR dB")
    axes.legend(fontsize="small")
