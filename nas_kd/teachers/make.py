"""Training teachers: a variable-rate codec of ours, or CompressAI's families, each with its card."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas_kd import __version__
from nas_kd.codec.arch import Arch
from nas_kd.codec.checkpoint import (
    ready,
    require_unfinished,
    save_student,
    weights_digest,
)
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.data.images import ImageSet, crop_pool, open_images, to_image, to_tensor
from nas_kd.data.metrics import padded, psnr_db
from nas_kd.device import best_device
from nas_kd.distillation.rotating_crops import anew
from nas_kd.distillation.training import Pictures, Report, Run
from nas_kd.errors import StudyError, TrialFailed
from nas_kd.evaluation.bd_rate import MIN_POINTS, RDCurve, bd_rate, quality_interval
from nas_kd.evaluation.classical import classical_curve
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate, evaluate_real
from nas_kd.files import write_bytes, write_text
from nas_kd.measurement.device_lock import training_on
from nas_kd.reasons import Reason
from nas_kd.recipe import Recipe
from nas_kd.seeds import derived_seed
from nas_kd.teachers.families import ONE_BY_ONE, FixedRate
from nas_kd.teachers.teacher import FixedRateTeacher, load_teacher

FORMATS = {"jpeg": "JPEG", "jpeg2000": "JPEG 2000", "webp": "WebP", "avif": "AVIF"}
"""What a teacher's card compares it with."""
FIRST_CROPS = 1500
"""As many pictures as a trunk starts from."""
TELL_EVERY = 500
"""Pictures between two remarks on how many are read."""


@dataclass(frozen=True)
class CropsOf:
    """What a teacher is trained on: crops of ``size`` pixels of all pictures, drawn anew at every step."""

    data: str = "builtin"
    size: int = 256
    seed: int = 0


def train_teacher(
    arch: Arch,
    crops_of: CropsOf,
    recipe: Recipe,
    eval_data: str,
    out: Path,
    lmbdas: tuple[float, ...] = LMBDAS,
) -> None:
    """Train a codec on pictures alone and write it with its card; resumes from its checkpoint."""
    checkpoint = out / "checkpoint.pt"
    require_unfinished(out, checkpoint)  # refused now, not after hours
    open_images(eval_data, "eval")
    images = open_images(crops_of.data, "train", crops_of.seed, _reading)
    torch.manual_seed(derived_seed(recipe.seed, "init", arch.key))
    student = Student(arch, lmbdas)
    first = crop_pool(images, FIRST_CROPS, crops_of.size, crops_of.seed)
    student.start_from(torch.from_numpy(first).float() / 255)
    _train(student, _pictures(images, crops_of), recipe, checkpoint)
    training = {"crops": asdict(crops_of), "recipe": asdict(recipe), "data": images.fingerprint}
    write_teacher(ready(student), training, eval_data, out)
    checkpoint.unlink(missing_ok=True)


def train_family(
    name: str,
    width: int | None,
    qualities: tuple[int, ...],
    crops_of: CropsOf,
    recipe: Recipe,
    eval_data: str,
    out: Path,
) -> None:
    """Train one model per quality and write them as the zoo's files are, with a card for all.

    A killed run resumes: each quality has a checkpoint, which stays until the card is written.
    """
    open_images(eval_data, "eval")  # refused now, not after hours
    images = open_images(crops_of.data, "train", crops_of.seed, _reading)
    pictures = _pictures(images, crops_of)
    models: list[FixedRate] = []
    checkpoints: list[Path] = []
    for quality in qualities:
        torch.manual_seed(derived_seed(recipe.seed, "init", name, quality))
        codec: Any = FixedRate(name, quality, width)
        checkpoints.append(out / f"checkpoint-{name}-{codec.width}-{quality}.pt")
        _train(codec, pictures, recipe, checkpoints[-1], f"quality {quality}, ")
        models.append(codec)
    files = [_serve(m, f"{name}-{q}", out) for m, q in zip(models, qualities, strict=True)]
    training = {"crops": asdict(crops_of), "recipe": asdict(recipe), "data": images.fingerprint}
    about = {
        "family": name,
        "width": models[0].width,
        "files": dict(zip(qualities, files, strict=True)),
    }
    write_family_card(about | {"training": training}, eval_data, out)
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)


def _pictures(images: ImageSet, crops_of: CropsOf) -> Pictures:
    return anew(images, crops_of.size, crops_of.seed, best_device(), _reading)


def _reading(done: int, of: int) -> None:
    if done % TELL_EVERY == 0:
        print(f"{done} of {of} pictures read", flush=True)


def _train(
    codec: Any, pictures: Pictures, recipe: Recipe, checkpoint: Path, what: str = ""
) -> None:
    """Train it in place on the GPU where there is one; it comes back to the CPU, which codes."""
    device = best_device()
    codec.to(device)
    run = Run(codec, pictures, recipe, checkpoint=checkpoint)
    with training_on(device) as between_steps:
        run.run(_progress(run, recipe, what), between_steps)
    codec.to("cpu")


def _progress(run: Run, recipe: Recipe, what: str = "") -> Report:
    started, first = time.monotonic(), run.step

    def report(step: int, metrics: dict[str, float]) -> None:
        if step % 100 == 0 or step == recipe.steps:
            per_step = (time.monotonic() - started) / max(step - first, 1)
            left = (recipe.steps - step) * per_step / 60
            loss = f"loss {metrics['loss']:.4f}, bpp {metrics['bpp']:.4f}"
            print(f"{what}step {step} of {recipe.steps}: {loss}, {left:.1f} min left", flush=True)

    return report


def _serve(codec: FixedRate, stem: str, out: Path) -> str:
    """Write a model as CompressAI serves it, 8 hex of its sha256 in its name; returns the name.

    An older file of the same quality goes: two would be one too many to choose from.
    """
    with torch.no_grad():
        codec.model.eval().update(force=True, update_quantiles=True)
    packed = BytesIO()
    torch.save(codec.model.state_dict(), packed)
    digest = hashlib.sha256(packed.getbuffer()).hexdigest()[:8]
    file = out / f"{stem}-{digest}.pth.tar"
    write_bytes(file, packed.getbuffer())
    for older in set(out.glob(f"{stem}-*.pth.tar")) - {file}:
        older.unlink()
    return file.name


def write_family_card(about: dict[str, Any], eval_data: str, out: Path) -> None:
    """The card of a family's models: estimated curve, and real rates where decoding is not one by one."""
    images = open_images(eval_data, "eval")
    teacher = load_teacher(str(out))
    assert isinstance(teacher, FixedRateTeacher)
    curve = evaluate(teacher, images).curve()
    slow = about["family"] in ONE_BY_ONE
    card = {
        "nas_kd": __version__,
        "torch": torch.__version__,
        **about,
        "lmbdas": teacher.lmbdas,
        "evaluated_on": {"pictures": len(images), "fingerprint": images.fingerprint},
        "bpp_est": curve.bpp,
        "psnr_db": curve.psnr_db,
        "bpp": f"absent: {about['family']} decodes position by position"
        if slow
        else [_real_bpp(model, images, q) for q, model in enumerate(teacher.members, 1)],
        "bd_rate_est_percent": _against_formats(curve, images),
        "sha256": teacher.fingerprint,
    }
    write_text(out / "card.json", json.dumps(card, indent=1) + "\n")


@torch.no_grad()
def _real_bpp(model: Any, images: ImageSet, level: int) -> float:
    """Mean bits per pixel of CompressAI's own strings, which must decode to what the estimate saw.

    Raises TrialFailed with reason ``mismatch`` where the decoded picture is another one.
    """
    rates = []
    for image in images.images:
        x = padded(to_tensor(image))
        coded = model.compress(x)
        decoded = model.decompress(coded["strings"], coded["shape"])["x_hat"]
        if psnr_db(to_image(decoded), to_image(model(x)["x_hat"])) < 60:
            raise TrialFailed(Reason.MISMATCH, f"level {level}: decoder and encoder disagree")
        bits = 8 * sum(len(string) for part in coded["strings"] for string in part)
        rates.append(bits / (image.shape[0] * image.shape[1]))
    return float(np.mean(rates))


def write_teacher(
    student: Student,
    training: dict[str, Any],
    eval_data: str,
    out: Path,
    family: str | None = None,
) -> None:
    """Save a teacher with its card: how it was trained, its real R-D curve, classical codecs beside it.

    ``family`` is the fingerprint of the space whose archs were trained as its slices.
    """
    images = open_images(eval_data, "eval")
    measured = evaluate_real(student, images)
    estimated = evaluate(StudentCodec(student), images).curve()
    curve = measured.curve()
    card = {
        "nas_kd": __version__,
        "torch": torch.__version__,
        "training": training,
        "evaluated_on": {"pictures": len(images), "fingerprint": images.fingerprint},
        "bpp": curve.bpp,
        "psnr_db": curve.psnr_db,
        "bpp_est": estimated.bpp,
        "bd_rate_percent": _against_formats(curve, images),
        "sha256": weights_digest(student),
    }
    about = {"card": "card.json"} | ({"family": family} if family else {})
    save_student(student, out, about)
    write_text(out / "card.json", json.dumps(card, indent=1) + "\n")


def _against_formats(curve: RDCurve, images: ImageSet) -> dict[str, Any] | str:
    """BD-rate in percent against classical codecs, or why there is none."""
    if len(curve.bpp) < MIN_POINTS:
        return f"absent: {len(curve.bpp)} levels, and a BD-rate needs {MIN_POINTS}"
    try:
        interval_db = quality_interval(curve)
    except StudyError as error:  # hours of training are not lost for a curve that is none
        return f"absent: {error}"
    rates = {
        name: bd_rate(classical_curve(codec, images), curve, interval_db)
        for codec, name in FORMATS.items()
    }
    return {
        name: rate.value if rate.value is not None else f"absent: {rate.reason}"
        for name, rate in rates.items()
    }
