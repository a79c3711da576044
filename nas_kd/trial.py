"""One trial as a plain function: build, cost gate, distil, evaluate, measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nas_kd.bd import RDCurve, bd_rate
from nas_kd.codec_energy import frame_energy
from nas_kd.cost import Cost, count
from nas_kd.data import ImageSet, derived_seed
from nas_kd.distill import Weights
from nas_kd.errors import TrialFailed
from nas_kd.evaluate import Measured, StudentCodec, evaluate
from nas_kd.passes import training_on
from nas_kd.reading import Reading, require_real
from nas_kd.space import Arch
from nas_kd.student import Student
from nas_kd.targets import TargetPool
from nas_kd.train import Recipe, Run
from nas_kd.weights import ready, save_student

OBJECTIVES = ("bd_rate", "flops", "energy")


@dataclass(frozen=True)
class Anchor:
    """What students are compared with: the teacher's curve and the fixed quality interval."""

    curve: RDCurve
    interval_db: tuple[float, float]


@dataclass(frozen=True)
class Task:
    """What every trial of a study shares."""

    lmbdas: tuple[float, ...]
    recipe: Recipe
    weights: Weights
    objectives: tuple[str, ...]
    pool: TargetPool
    eval_images: ImageSet
    anchor: Anchor
    max_gmac: float | None = None
    device: str = "cpu"
    frame_energy: Callable[[Student, str], Reading] = frame_energy


@dataclass
class Outcome:
    """What came of one trial: a value per objective, or the reason why there are none."""

    values: list[Any] | None
    reason: str | None = None
    uncovered_db: float = 0.0
    attrs: dict[str, Any] = field(default_factory=dict)


def distil(
    task: Task,
    arch: Arch,
    folder: Path,
    report: Any = None,
    between_steps: Callable[[], None] | None = None,
) -> Student:
    """Train the student of an arch; its checkpoint lies in ``folder`` until it is saved there."""
    torch.manual_seed(derived_seed(task.recipe.seed, "init", arch.key))
    student = Student(arch, task.lmbdas)
    student.initialise_linear(task.pool.pictures())
    student.to(task.device)
    checkpoint = folder / "checkpoint.pt"
    run = Run(student, task.pool, task.recipe, task.weights, task.pool.latent_widths, checkpoint)
    run.run(report, between_steps)
    return ready(student)


def run_trial(
    task: Task,
    arch: Arch,
    folder: Path,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> Outcome:
    """Build, count, distil, evaluate and measure one student; it is saved into ``folder``."""
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    cost = count(Student(arch, task.lmbdas))
    attrs: dict[str, Any] = {"arch_key": arch.key, "cost": cost.to_json(), "seconds": seconds}
    if task.max_gmac is not None and cost.macs > task.max_gmac * 1e9:
        return Outcome(None, "over_max_gmac", 0.0, attrs)
    seconds["start"] = time.perf_counter() - started
    try:
        with training_on(task.device) as between_steps:
            student = distil(task, arch, folder, report, between_steps)
            seconds["distil"] = time.perf_counter() - started - sum(seconds.values())
            measured = evaluate(StudentCodec(student), task.eval_images, task.device)
    except TrialFailed as failure:
        return Outcome(None, failure.reason, 0.0, attrs | {"message": str(failure)})
    seconds["evaluate"] = time.perf_counter() - started - sum(seconds.values())
    outcome = _score(task, student, cost, measured, attrs)
    save_student(student, folder, {"rd": measured.to_json(), "steps": task.recipe.steps})
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    seconds["rest"] = time.perf_counter() - started - sum(seconds.values())
    return outcome


def _score(
    task: Task, student: Student, cost: Cost, measured: Measured, attrs: dict[str, Any]
) -> Outcome:
    attrs["rd"] = measured.to_json()
    bd = bd_rate(task.anchor.curve, measured.curve(), task.anchor.interval_db)
    attrs |= {"bd_pchip": bd.pchip, "bd_psnr_db": bd.bd_psnr_db, "uncovered_db": bd.uncovered_db}
    values: dict[str, float | None] = {"bd_rate": bd.value, "flops": float(cost.macs)}
    if "energy" in task.objectives:
        reading = task.frame_energy(student, task.device)
        require_real(reading)
        attrs["energy"] = reading.to_json()
        values["energy"] = reading.value_or_none
        if values["energy"] is None:
            return Outcome(None, f"energy: {reading.reason}", 0.0, attrs)
    if bd.value is None:
        return Outcome(None, bd.reason, bd.uncovered_db, attrs)
    return Outcome([values[name] for name in task.objectives], None, 0.0, attrs)
