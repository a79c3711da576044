"""Training without a study: one student."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from nas_kd.curves import measured_once
from nas_kd.data import open_images
from nas_kd.errors import TrialFailed
from nas_kd.prepare import CURVES, interval_db
from nas_kd.space import Arch
from nas_kd.study import CACHE, Settings
from nas_kd.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teacher import load_teacher
from nas_kd.trial import CHECKPOINT, Anchor, Task, run_trial


def distill_alone(settings: Settings, arch: Arch, out: Path) -> dict[str, Any]:
    """One trial with these settings; the student lands in ``out``. Returns its figures."""
    teacher = load_teacher(settings.teacher, settings.weights, settings.lmbda, settings.teacher_z)
    recipe = PoolRecipe(settings.data, settings.crops, settings.crop_size, settings.seed)
    images = open_images(settings.eval_data, "eval")
    curve = measured_once(CACHE / CURVES, teacher, images).curve()
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
