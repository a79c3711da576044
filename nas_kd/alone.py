"""Training without a study: one student."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nas_kd.curves import measured_once
from nas_kd.data import open_images
from nas_kd.errors import TrialFailed
from nas_kd.passes import best_device
from nas_kd.prepare import CURVES, Listen, interval_db, targets, told_of
from nas_kd.settings import CACHE, Settings
from nas_kd.space import Arch
from nas_kd.targets import TargetPool
from nas_kd.teacher import load_teacher
from nas_kd.trial import CHECKPOINT, Anchor, Task, run_trial


def distill_alone(
    settings: Settings,
    arch: Arch,
    out: Path,
    listen: Listen = lambda kind, details: None,
    pool_gb: float = math.inf,
) -> dict[str, Any]:
    """One trial with these settings; the student lands in ``out``. Returns its figures.

    The teacher's outputs and curve are kept for other trials and searches that ask the same.

    Args:
        settings: of a search that would try this arch; it starts as a transform codec, or from noise.
        arch: of the student.
        out: its folder; a run that was killed goes on from the checkpoint there.
        listen: hears ("preparing", where it is).
        pool_gb: what teachers' outputs may take on disk.
    """
    device = best_device()
    teacher = load_teacher(settings.teacher, settings.weights, settings.lmbda, settings.teacher_z)
    images = open_images(settings.eval_data, "eval")
    curve = measured_once(CACHE / CURVES, teacher, images, device).curve()
    interval = interval_db(curve)
    objectives = settings.objectives if interval else ("rd_cost", "flops")
    task = Task(
        teacher.lmbdas,
        settings.recipe(settings.steps),
        settings.loss,
        objectives,
        TargetPool(targets(settings, teacher, listen, pool_gb), device),
        images,
        Anchor(curve, interval),
        device=device,
    )
    outcome = run_trial(task, arch, out, told_of("distilled", settings.steps, listen))
    if outcome.reason == "nan":
        raise TrialFailed("nan", outcome.attrs["message"])
    (out / CHECKPOINT).unlink(missing_ok=True)
    named: dict[str, Any] = {"flops": float(outcome.attrs["cost"]["macs"])}
    named |= dict(zip(objectives, outcome.values or (), strict=False))
    return {"student": str(out), **named, "reason": outcome.reason, **outcome.attrs}
