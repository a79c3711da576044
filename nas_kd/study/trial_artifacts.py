"""What the dashboard shows of a trial: a note, its R-D plot, crops, the student to download.

A finished trial is immutable in Optuna: the worker draws
(nas_kd.report.illustrate), and the study attaches before it tells.
"""

from __future__ import annotations

import importlib.metadata
import platform
import zipfile
from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from nas_kd import __version__
from nas_kd.codec.arch import Arch
from nas_kd.codec.bfloat16 import is_quick
from nas_kd.codec.checkpoint import ARCH, WEIGHTS
from nas_kd.codec.cost import Cost
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.reading import Reading
from nas_kd.objectives import TABLE
from nas_kd.study.record import Outcome, record
from nas_kd.study.storage import set_constraints

METRIC_NAMES = {name: one.metric for name, one in TABLE.items()}
STORE = "artifacts"
PLOT, CROPS = "rd.png", "crops.png"
PACKAGES = ("torch", "compressai", "optuna", "ray", "fvcore")


def store(folder: Path) -> FileSystemArtifactStore:
    """The artifacts of the study in a folder; whoever adds to them makes the folder."""
    return FileSystemArtifactStore(folder / STORE)


def made_with(device: str) -> dict[str, str]:
    """Versions and machine of a search, and what became of its energy meter."""
    meter = find_meter(device)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "nas_kd": __version__,
        "python": platform.python_version(),
        **versions,
        "device": f"{device}, {platform.machine()}",
        "blocks_trained_in": "bfloat16" if device == "cpu" and is_quick() else "float32",
        "energy_meter": f"no meter: {meter.reason}" if isinstance(meter, Reading) else meter.name,
    }


def attach(trial: optuna.Trial, folder: Path, outcome: Outcome, names: tuple[str, ...]) -> None:
    """Note, constraint and artifacts of a trial that is about to be told."""
    from optuna_dashboard import save_note

    set_constraints(trial.study, trial, constraints_of(outcome))
    own = record(trial)
    save_note(trial, note(outcome, names, own.arch if own.begun else None))
    if outcome.record.arch_key is None:
        return
    student = folder / "students" / outcome.record.arch_key
    found = [student / name for name in (PLOT, CROPS) if (student / name).is_file()]
    if (student / WEIGHTS).is_file():
        found.append(_archive(student, student / f"trial-{trial.number:04d}.zip"))
    (folder / STORE).mkdir(parents=True, exist_ok=True)
    for file in found:
        upload_artifact(artifact_store=store(folder), file_path=str(file), study_or_trial=trial)
        if file.suffix == ".zip":
            file.unlink()


def constraints_of(outcome: Outcome) -> list[float]:
    """What a trial lacks, 0 where nothing: decibels of the interval, and the share by which it is over a limit."""
    short_db = 0.0 if outcome.values is not None else float(outcome.uncovered_db)
    return [short_db, outcome.record.over]


def attach_same(trial: optuna.Trial, known: int) -> None:
    """The note of a trial whose arch was tried before."""
    from optuna_dashboard import save_note

    save_note(trial, f"The same arch as trial {known}, whose outcome this is; nothing was trained.")


def _archive(student: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name in (WEIGHTS, ARCH):
            archive.write(student / name, f"{file.stem}/{name}")
    return file


def note(outcome: Outcome, names: tuple[str, ...], arch: Arch | None = None) -> str:
    """A trial in Markdown: result or reason, arch in words, R-D table, costs by part."""
    lines = [_result(outcome, names), ""]
    if arch is not None:
        lines += _in_words(arch)
    own = outcome.record
    if own.rd is not None:
        lines += [*_points(own.rd), ""]
    if own.cost is not None:
        lines += _costs(own.cost)
    for name, reading in own.readings.items():
        lines += [f"{name.capitalize()}: {_read(reading)}", ""]
    if own.seconds:
        spent = ", ".join(f"{name} {s:.1f} s" for name, s in own.seconds.items())
        lines += [f"Time: {spent}", ""]
    if own.traceback is not None:
        lines += ["```", own.traceback.rstrip(), "```"]
    return "\n".join(lines)


def _points(rd: Measured) -> list[str]:
    points = enumerate(zip(rd.mean_rate, rd.mean_psnr_db, strict=True), 1)
    rows = [f"| {level} | {rate:.4f} | {quality_db:.2f} |" for level, (rate, quality_db) in points]
    return ["| level | bpp (estimated) | PSNR dB |", "|--:|--:|--:|", *rows]


def _result(outcome: Outcome, names: tuple[str, ...]) -> str:
    if outcome.values is None:
        message = outcome.record.message
        said = "" if message is None else f": {message}"
        lacks = f" ({outcome.uncovered_db:.2f} dB short)" if outcome.uncovered_db else ""
        return f"**no values: {outcome.reason}**{lacks}{said}"
    pairs = zip(names, outcome.values, strict=True)
    return "**" + ", ".join(_valued(n, value) for n, value in pairs) + "**"


def _valued(name: str, value: float) -> str:
    if name == "flops":
        return f"{value / 1e9:.3f} GMAC per 768x512 frame"
    return f"{METRIC_NAMES[name]} {value:.6g}"


def _in_words(arch: Arch) -> list[str]:
    """A line each, for the dashboard breaks none."""
    linear = ", linear shortcut" if arch.shortcut else ""
    latents = f"M {arch.M}, hyper {arch.hyper}, {arch.entropy}{linear}"
    rows = (("encoder", arch.encoder), ("decoder", arch.decoder), ("latents", latents))
    return ["| arch | |", "|---|---|", *(f"| {name} | {what} |" for name, what in rows), ""]


def _costs(cost: Cost) -> list[str]:
    parts = sorted(cost.parts.items(), key=lambda part: -part[1])
    rows = [f"| {name} | {n / 1e6:.1f} | {n / cost.macs:.0%} |" for name, n in parts if n]
    about = (
        f"{cost.parameters:,} parameters, {cost.gmac:.3f} GMAC at {list(cost.shape)} ({cost.tool})"
    )
    return [about, "", "| part | MMAC | share |", "|---|--:|--:|", *rows, ""]


def _read(reading: Reading) -> str:
    if reading.state != "measured":
        return f"{reading.state}, {reading.reason}"
    return f"{reading.value:.3f} +- {reading.uncertainty:.3f} {reading.unit} ({reading.source})"
