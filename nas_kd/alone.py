"""Training without a study: one student, or a teacher with its card."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nas_kd import __version__
from nas_kd.baselines import jpeg_curve, webp_curve
from nas_kd.bd import bd_rate, quality_interval
from nas_kd.data import crop_pool, derived_seed, open_images
from nas_kd.errors import TrialFailed
from nas_kd.evaluate import StudentCodec, evaluate, evaluate_real
from nas_kd.prepare import interval_db
from nas_kd.space import Arch
from nas_kd.student import Student
from nas_kd.study import Settings
from nas_kd.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teacher import load_teacher
from nas_kd.train import CropPool, Recipe, Run
from nas_kd.trial import CHECKPOINT, Anchor, Task, run_trial
from nas_kd.weights import ready, save_student, weights_digest, write_text


def distill_alone(settings: Settings, arch: Arch, out: Path) -> dict[str, Any]:
    """One trial with these settings; the student lands in ``out``. Returns its figures."""
    teacher = load_teacher(settings.teacher, settings.weights, settings.lmbda, settings.teacher_z)
    recipe = PoolRecipe(settings.data, settings.crops, settings.crop_size, settings.seed)
    images = open_images(settings.eval_data, "eval")
    curve = evaluate(teacher, images).curve()
    interval = interval_db(curve)
    objectives = settings.objectives if interval else ("rd_cost", "flops")
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(
            teacher.lmbdas,
            settings.recipe(settings.steps),
            settings.loss,
            objectives,
            TargetPool(target_pool(Path(scratch), teacher, recipe)),
            images,
            Anchor(curve, interval),
        )
        outcome = run_trial(task, arch, out)
    if outcome.reason == "nan":
        raise TrialFailed("nan", outcome.attrs["message"])
    (out / CHECKPOINT).unlink(missing_ok=True)
    named: dict[str, Any] = {"flops": float(outcome.attrs["cost"]["macs"])}
    named |= dict(zip(objectives, outcome.values or (), strict=False))
    return {"student": str(out), **named, "reason": outcome.reason, **outcome.attrs}


def train_teacher(arch: Arch, pool: PoolRecipe, recipe: Recipe, eval_data: str, out: Path) -> None:
    """Train a codec on pictures alone and write it with its card; resumes from its checkpoint."""
    images = open_images(pool.data, "train", pool.seed)
    crops = torch.from_numpy(crop_pool(images, pool.crops, pool.size, pool.seed))
    torch.manual_seed(derived_seed(recipe.seed, "init", arch.key))
    student = Student(arch)
    student.initialise_linear(crops[:1500].float() / 255)
    checkpoint = out / "checkpoint.pt"
    run = Run(student, CropPool(crops), recipe, checkpoint=checkpoint)
    started, first = time.monotonic(), run.step

    def report(step: int, metrics: dict[str, float]) -> None:
        if step % 100 == 0 or step == recipe.steps:
            per_step = (time.monotonic() - started) / max(step - first, 1)
            left = (recipe.steps - step) * per_step / 60
            loss = f"loss {metrics['loss']:.4f}, bpp {metrics['bpp']:.4f}"
            print(f"step {step} of {recipe.steps}: {loss}, {left:.1f} min left", flush=True)

    run.run(report)
    training = {"pool": asdict(pool), "recipe": asdict(recipe), "data": images.fingerprint}
    write_teacher(ready(student), training, eval_data, out)
    checkpoint.unlink(missing_ok=True)


def write_teacher(student: Student, training: dict[str, Any], eval_data: str, out: Path) -> None:
    """Save a teacher with its card: how it was trained, its real R-D curve, JPEG and WebP beside it."""
    images = open_images(eval_data, "eval")
    measured = evaluate_real(student, images)
    estimated = evaluate(StudentCodec(student), images).curve()
    curve = measured.curve()
    versus = {"JPEG": jpeg_curve(images), "WebP": webp_curve(images)}
    rates = {name: bd_rate(other, curve, quality_interval(curve)) for name, other in versus.items()}
    card = {
        "nas_kd": __version__,
        "torch": torch.__version__,
        "training": training,
        "evaluated_on": {"pictures": len(images), "fingerprint": images.fingerprint},
        "bpp": curve.bpp,
        "psnr_db": curve.psnr_db,
        "bpp_est": estimated.bpp,
        "bd_rate_percent": {
            name: rate.value if rate.value is not None else f"absent: {rate.reason}"
            for name, rate in rates.items()
        },
        "sha256": weights_digest(student),
    }
    save_student(student, out, {"card": "card.json"})
    write_text(out / "card.json", json.dumps(card, indent=1) + "\n")
