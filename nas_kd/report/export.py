"""Export: front members as folders that encode and decode real files, verified before they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from optuna.trial import FrozenTrial

from nas_kd import __version__
from nas_kd.codec.checkpoint import load_student, save_student, weights_digest
from nas_kd.codec.onnx import export_onnx
from nas_kd.codec.onnx_int8 import export_int8
from nas_kd.data.images import crop_pool, open_images
from nas_kd.data.similarity import in_words
from nas_kd.errors import UsageError
from nas_kd.evaluation.int8 import decoder_ms, int8_bd_rate
from nas_kd.evaluation.rate_distortion import Measured, evaluate_real
from nas_kd.files import replacing_folder, write_text
from nas_kd.measurement.front_energy import write_front_energy
from nas_kd.places import BUILTIN
from nas_kd.report.hub import CONFIG, RD, README, config, header, usage
from nas_kd.study.polish import best_folder, gained
from nas_kd.study.record import cost_of, rd_of, record
from nas_kd.study.study import Study

CALIBRATION_CROPS, CALIBRATION_PX = 24, 256
"""What int8 files are calibrated on, of the built-in training pictures."""


def export_front(study: Study, out: Path, progress: Any = None, onnx: bool = False) -> list[Path]:
    """Write every front member below ``out``; each folder appears whole or not at all."""
    members = study.front()
    if not members:
        raise UsageError(
            f"study '{study.settings.name}': its front is empty; run more trials with `nas-kd search`"
        )
    folders = []
    for trial in members:
        folders.append(export_trial(study, trial, out / f"trial-{trial.number:04d}", onnx))
        if progress is not None:
            progress(trial, folders[-1])
    return folders


def export_trial(study: Study, trial: FrozenTrial, folder: Path, onnx: bool = False) -> Path:
    """One student: real bitstreams on the evaluation set first, then the files."""
    student = load_student(best_folder(study, trial))
    images = open_images(study.settings.eval_data, "eval")
    measured = evaluate_real(student, images)
    about = {"study": study.settings.name, "trial": trial.number, "nas_kd": __version__}
    name = f"{study.settings.name}-{trial.number}"
    with replacing_folder(folder) as temporary:
        save_student(student, temporary, about)
        more: dict[str, Any] = {
            "estimated_in_search": rd_of(trial).to_json(),
            "measured": measured.to_json(),
        }
        more |= {"sha256": weights_digest(student)}
        more |= {"polished": polished} if (polished := gained(study, trial)) else {}
        write_text(temporary / RD, rd_file(name, measured.to_json(), more))
        if onnx:
            export_onnx(student, temporary)
        write_text(temporary / README, header() + _card(study, trial, measured) + usage())
        write_text(temporary / CONFIG, config())
        write_front_energy(temporary, student, images, record(trial).readings)
    return folder


def export_student_onnx(student: Path, out: Path) -> list[Path]:
    """encoder.onnx and decoder.onnx of a student's folder, below ``out``."""
    codec = load_student(student)
    _make(out)
    return export_onnx(codec, out)


class Int8(NamedTuple):
    """The int8 files, what they lose on the built-in photographs, and ms of the float and the int8 decoder."""

    written: list[Path]
    bd_rate: float | str
    decoder_ms: tuple[float, float]


def export_student_int8(student: Path, out: Path, say: Callable[[str], None]) -> Int8:
    """The int8 files of a student's folder, below ``out``; ``say`` is told how far it is."""
    codec = load_student(student)
    _make(out)
    say(f"calibrating on {CALIBRATION_CROPS} crops")
    crops = crop_pool(open_images(BUILTIN, "train"), CALIBRATION_CROPS, CALIBRATION_PX, 0)
    written = export_int8(codec, out, torch.from_numpy(crops).float() / 255)

    def judged(done: int, of: int) -> None:
        say(f"{done} of {of} pictures judged")

    lost = int8_bd_rate(codec, out, open_images(BUILTIN, "eval"), judged)
    return Int8(written, lost, decoder_ms(out))


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}); give another") from error


def rd_file(name: str, figures: dict[str, Any], more: dict[str, Any]) -> str:
    """The text of ``rd.json``: CompressAI's result file, with what else is known beside it.

    ``python -m compressai.utils.plot -f rd.json`` draws it.
    """
    similar = figures.get("ms_ssim", [None])
    alike = {} if None in similar else {"ms-ssim-rgb": similar}
    shape = {
        "name": name,
        "description": "real entropy-coded strings, header apart",
        "results": {"bpp": figures["bpp"], "psnr-rgb": figures["psnr_db"]} | alike,
    }
    return json.dumps(shape | more, indent=1) + "\n"


def _card(study: Study, trial: FrozenTrial, measured: Measured) -> str:
    curve = measured.curve()
    settings, cost = study.settings, cost_of(trial)
    pairs = zip(settings.objectives, trial.values, strict=True)
    lines = [
        f"# {settings.name}, trial {trial.number}",
        "",
        str(record(trial).arch),
        "",
        f"Distilled from `{Path(settings.teacher).name}`, {settings.steps} steps of {settings.batch} crops of "
        f"{settings.crop_size} px, data `{Path(settings.data).name}`, seed {settings.seed}.",
        "",
        *[f"- {name}: {value:.6g}" for name, value in pairs],
        f"- parameters: {cost.parameters:,}",
        f"- MACs: encoder {cost.encoder_macs:,}, decoder {cost.decoder_macs:,} "
        f"at {list(cost.shape)}",
        "",
        f"Real bitstreams on `{Path(settings.eval_data).name}` ({len(measured.images)} pictures):",
        "",
        "| level | bpp | PSNR dB | MS-SSIM |",
        "|---|---|---|---|",
    ]
    points = zip(curve.bpp, curve.psnr_db, measured.mean_ms_ssim(), strict=True)
    lines += [
        f"| {level} | {rate:.4f} | {psnr:.2f} | {in_words(similar)} |"
        for level, (rate, psnr, similar) in enumerate(points, start=1)
    ]
    return "\n".join(lines) + "\n"
