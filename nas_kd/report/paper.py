"""The seed paper's three tables (arXiv 2509.10366, Tables 2 to 4) with our own figures beside them.

Parameters and MACs are counted and need no training; memory is what the paper's code counts, parameters and
buffers in MiB. Throughput and energy are those of the machine at hand, quality and rate those of a study.
"""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial
from rich.markup import escape
from rich.table import Table

from nas_kd.codec.arch import prim
from nas_kd.codec.checkpoint import read_arch_file
from nas_kd.codec.cost import SHAPE, count
from nas_kd.codec.student import Student
from nas_kd.errors import UsageError
from nas_kd.measurement.codec_energy import frame_energy
from nas_kd.measurement.reading import Reading, require_real
from nas_kd.study.anchor import Anchor
from nas_kd.study.record import rd_of, record
from nas_kd.study.study import Study

LMBDA = 0.025
TEACHER = "bmshj2018-hyperprior:5"
TEACHER_N = 128
TEACHER_HASH = "f8b614e1"
"""Of CompressAI's file of that quality (compressai.zoo.image.model_urls); others are teachers made elsewhere."""
RUNS = 5

LABELS = {
    "parameters_m": "parameters M",
    "memory_mib": "memory MiB",
    "gmac": "GMAC 768x512",
    "fps": "frames/s",
    "energy_mj": "mJ/frame",
    "psnr_db": "PSNR dB",
    "bpp_est": "bpp (est.)",
}
TABLES = {
    "size": ("parameters_m", "memory_mib", "psnr_db", "bpp_est"),
    "compute": ("gmac", "fps", "psnr_db", "bpp_est"),
    "energy": ("energy_mj", "psnr_db", "bpp_est"),
}
NOTES = {
    # Its code (test_channels.py) loads the teacher from the zoo, with tables, and its students without.
    "memory_mib": "memory: parameters and buffers, none with the entropy coder's tables; the paper's teacher has them",
    "gmac": "GMAC: one multiply-add is one, as in the paper's GFLOPs; full forward pass at [1, 3, 512, 768]",
    "fps": "frames/s: forward pass without entropy coding, batch 1",
}
OF_THE_MACHINE = ("fps", "energy_mj")
"""Figures that compare between machines only as a change against the same machine's teacher."""

_PAPER = {
    128: (5.08, 20.18, 34.24, 184.20, 1767.85, 34.53, 0.67),
    112: (4.07, 15.53, 26.70, 209.01, 1600.41, 34.44, 0.66),
    96: (3.17, 12.11, 20.10, 231.61, 1416.34, 34.41, 0.66),
    64: (1.69, 6.46, 9.67, 232.47, 1164.17, 34.11, 0.66),
    32: (0.64, 2.43, 2.98, 231.90, 699.18, 32.71, 0.60),
    16: (0.27, 1.01, 1.02, 233.63, 684.45, 29.98, 0.45),
}
PAPER = {N: dict(zip(LABELS, figures, strict=True)) for N, figures in _PAPER.items()}
"""By width N: Kodak, RTX 3090, batch 1, estimated rates; its "GFLOPs" are multiply-adds."""
DIGITS = 2


@dataclass(frozen=True)
class Row:
    """One model's figures of ours; ``about`` says which study, steps and data they come from."""

    N: int
    ours: dict[str, Reading]
    about: dict[str, Any] = field(default_factory=dict)


def rows(figures: dict[int, dict[str, Reading]], studies: list[Study]) -> list[Row]:
    """One row per width of the paper and study that has trained it, or per width alone."""
    found: list[Row] = []
    untrained = Reading.unavailable("not trained: give a study that has trained this width")
    for N in PAPER:
        trained = [row for study in studies if (row := _trained(study, N)) is not None]
        for quality, about in trained or [({"psnr_db": untrained, "bpp_est": untrained}, {})]:
            found.append(Row(N, figures[N] | quality, about))
    return found


def untrained_figures(N: int, device: str, measure: bool) -> dict[str, Reading]:
    """What there is to say of a width without training it."""
    student = Student(prim(N), (LMBDA,)).eval()
    cost = count(student)
    tensors = [*student.parameters(), *student.buffers()]
    mib = sum(t.nelement() * t.element_size() for t in tensors) / 2**20
    off = Reading.unavailable("not asked for (--no-measure)")
    student.to(device)
    return {
        "parameters_m": Reading.measured(cost.parameters / 1e6, 0.0, "M", "count"),
        "memory_mib": Reading.measured(mib, 0.0, "MiB", "count"),
        "gmac": Reading.measured(cost.gmac, 0.0, "GMAC", cost.tool),
        "fps": frames_per_second(student, device) if measure else off,
        "energy_mj": frame_energy(student, device) if measure else off,
    }


def frames_per_second(student: Student, device: str, runs: int = RUNS) -> Reading:
    """Forward passes per second (no entropy coding) at 768x512, batch 1: the median of a few runs."""
    frame = torch.rand(SHAPE, device=device)
    times_s = []
    with torch.inference_mode():
        for _ in range(runs + 1):
            started = time.perf_counter()
            student(frame, 1.0)
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            times_s.append(time.perf_counter() - started)
    rates = [1 / t for t in times_s[1:]]  # the first one warms up
    doubt = statistics.stdev(rates) / runs**0.5
    details = {"device": device_name(device), "runs_s": times_s[1:]}
    return Reading.measured(1 / statistics.median(times_s[1:]), doubt, "frames/s", "clock", details)


def device_name(device: str) -> str:
    """The device in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads"


def _trained(study: Study, N: int) -> tuple[dict[str, Reading], dict[str, Any]] | None:
    """Quality and rate of a width in a study at the paper's lambda, if it has them."""
    settings, weights = study.settings, study.settings.loss
    about: dict[str, Any] = {
        "study": settings.name,
        "data": settings.data,
        "eval_data": settings.eval_data,
    }
    if N == TEACHER_N:
        return _teacher(study, about)
    trial = next((t for t in study.trials if _is_prim(t, N)), None)
    level = None if trial is None else _level(study, trial)
    if trial is None or level is None:
        return None
    loss = f"{weights.form} x {weights.kd_x:g} y {weights.kd_y:g} z {weights.kd_z:g}"
    about |= {"steps": settings.steps, "loss": loss, "teacher": _taught_by(study)}
    rd = rd_of(trial)
    return _quality(rd.mean_rate[level], rd.mean_psnr_db[level], settings.eval_data), about


def _teacher(
    study: Study, about: dict[str, Any]
) -> tuple[dict[str, Reading], dict[str, Any]] | None:
    """The teacher's own row, where it is as wide as the paper's."""
    anchor = study.anchor
    if anchor is None or anchor.teacher.name.partition(",")[0] != TEACHER:
        return None
    if _teacher_width(anchor) not in (None, TEACHER_N):
        return None
    curve = anchor.curve
    official = (anchor.teacher.fingerprint or TEACHER_HASH).startswith(TEACHER_HASH)
    trained = "CompressAI's" if official else "see the card beside its file"
    about = about | {"loss": "rate-distortion", "data": trained}
    return _quality(curve.bpp[0], curve.psnr_db[0], study.settings.eval_data), about


def _teacher_width(anchor: Anchor) -> int | None:
    """N of a study's teacher, where the study says it: the channels of its hyper-latents."""
    widths = anchor.teacher.latent_widths
    return None if widths is None else widths[1]


def _taught_by(study: Study) -> str:
    """The teacher of a study's students in words, none where nothing came from it."""
    if not study.settings.loss.needs_teacher:
        return "none"
    anchor = study.anchor
    if anchor is None:
        return study.settings.teacher
    width, name, curve = _teacher_width(anchor), anchor.teacher.name, anchor.curve
    if width is None or len(curve.bpp) > 1:
        return name
    return f"{name} of N = {width}, {curve.psnr_db[0]:.2f} dB at {curve.bpp[0]:.2f} bpp"


def _quality(bpp: float, psnr_db: float, data: str) -> dict[str, Reading]:
    source = f"pictures {data}"
    return {
        "psnr_db": Reading.measured(psnr_db, 0.0, "dB", source),
        "bpp_est": Reading.measured(bpp, 0.0, "bpp", source),
    }


def _is_prim(trial: FrozenTrial, N: int) -> bool:
    known = record(trial)
    return known.arch_key == prim(N).key and known.rd is not None


def _level(study: Study, trial: FrozenTrial) -> int | None:
    """Which of the trial's levels was trained for the paper's lambda."""
    try:
        lmbdas = read_arch_file(study.student_folder(trial))["lmbdas"]
    except UsageError:
        return None
    return lmbdas.index(LMBDA) if LMBDA in lmbdas else None


def difference(N: int, name: str, reading: Reading) -> float | None:
    """Ours, rounded as the paper rounds, less the paper's."""
    value = reading.value_or_none
    return None if value is None else round(round(value, DIGITS) - PAPER[N][name], DIGITS) + 0.0


def to_teacher_percent(all_rows: list[Row], row: Row, name: str) -> dict[str, float | None]:
    """Change against the teacher's row: the paper's, and ours."""
    teacher = next(r for r in all_rows if r.N == TEACHER_N).ours[name].value_or_none
    ours = row.ours[name].value_or_none
    return {
        "paper": round(100 * (PAPER[row.N][name] / PAPER[TEACHER_N][name] - 1), 1),
        "ours": round(100 * (ours / teacher - 1), 1) if ours is not None and teacher else None,
    }


def to_json(all_rows: list[Row], device: str) -> dict[str, Any]:
    """The tables as JSON can hold them; an absent figure is null with its reason."""
    return {
        "source": "arXiv 2509.10366, Tables 2 to 4",
        "device": device_name(device),
        "tables": {
            table: [_row_json(all_rows, row, names) for row in all_rows]
            for table, names in TABLES.items()
        },
    }


def _row_json(all_rows: list[Row], row: Row, names: tuple[str, ...]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in names:
        require_real(row.ours[name])
        figures[name] = {
            "paper": PAPER[row.N][name],
            "ours": row.ours[name].to_json(),
            "difference": difference(row.N, name, row.ours[name]),
        }
        if name in OF_THE_MACHINE:
            figures[name]["to_teacher_percent"] = to_teacher_percent(all_rows, row, name)
    model = "teacher" if row.N == TEACHER_N else "student"
    return {"model": model, "N": row.N, **row.about, "figures": figures}


def tables(all_rows: list[Row], device: str) -> list[Table]:
    """The three tables for a terminal; each cell holds the paper's figure, ours and the difference."""
    return [_table(title, names, all_rows, device) for title, names in TABLES.items()]


def _table(title: str, names: tuple[str, ...], all_rows: list[Row], device: str) -> Table:
    table = Table(
        title=f"{title}: paper, ours (difference); {device_name(device)}",
        caption="\n".join(_notes(names, all_rows)),
        caption_justify="left",
    )
    machine = [name for name in names if name in OF_THE_MACHINE]
    table.add_column("N")
    for heading in (*(LABELS[n] for n in names), *(f"{LABELS[n]} to teacher %" for n in machine)):
        table.add_column(heading, justify="right", overflow="fold")
    sources = _sources(all_rows)
    for row in all_rows:
        mark = f" [{sources.index(_source(row)) + 1}]" if row.about else ""
        table.add_row(
            escape(f"{row.N}{' teacher' if row.N == TEACHER_N else ''}{mark}"),
            *(_cell(row, name) for name in names),
            *(_percent_cell(to_teacher_percent(all_rows, row, name)) for name in machine),
        )
    return table


def _sources(all_rows: list[Row]) -> list[str]:
    """What trained rows come from, each once; their place is the mark of a row."""
    return list(dict.fromkeys(_source(row) for row in all_rows if row.about))


def _source(row: Row) -> str:
    about = row.about
    steps = f"{about['steps']} steps, " if "steps" in about else ""
    teacher = f"teacher {about['teacher']}, " if "teacher" in about else ""
    return (
        f"{about['study']}: {steps}loss {about['loss']}, {teacher}data {about['data']}, "
        f"judged by {about['eval_data']}"
    )


def _cell(row: Row, name: str) -> str:
    reading, paper = row.ours[name], PAPER[row.N][name]
    value, off = reading.value_or_none, difference(row.N, name, reading)
    if value is None or off is None:
        return f"{paper:.{DIGITS}f}, absent"
    return f"{paper:.{DIGITS}f}, {value:.{DIGITS}f} ({off:+.{DIGITS}f})"


def _percent_cell(percent: dict[str, float | None]) -> str:
    ours = percent["ours"]
    return f"{percent['paper']:+.1f}, {'absent' if ours is None else f'{ours:+.1f}'}"


def _notes(names: tuple[str, ...], all_rows: list[Row]) -> list[str]:
    reasons = [(LABELS[name], row.ours[name].reason) for row in all_rows for name in names]
    absent = [f"{label} absent: {reason}" for label, reason in dict.fromkeys(reasons) if reason]
    marked = [escape(f"[{i}] {source}") for i, source in enumerate(_sources(all_rows), 1)]
    return marked + [NOTES[name] for name in names if name in NOTES] + absent
