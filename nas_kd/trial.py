"""One trial as a plain function: build, cost gate, distil, evaluate, measure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nas_kd.bd import RDCurve, bd_rate
from nas_kd.cost import Cost, count
from nas_kd.data import ImageSet, derived_seed
from nas_kd.distill import Weights
from nas_kd.energy import find_meter, measure_energy
from nas_kd.errors import Stopped, TrialFailed
from nas_kd.evaluate import Measured, StudentCodec, evaluate
from nas_kd.reading import Reading
from nas_kd.space import Arch
from nas_kd.student import Student
from nas_kd.targets import TargetPool
from nas_kd.train import Recipe, Report, Run
from nas_kd.weights import ready, save_student

OBJECTIVES = ("bd_rate", "flops", "energy")
CHECKPOINT = "checkpoint.pt"
"""Beside the student; it stays until the outcome is stored, so that a lost outcome costs no training."""


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


@dataclass
class Outcome:
    """What came of one trial: a value per objective, or the reason why there are none."""

    values: list[Any] | None
    reason: str | None = None
    uncovered_db: float = 0.0
    attrs: dict[str, Any] = field(default_factory=dict)


def distil(task: Task, arch: Arch, folder: Path, report: Any = None) -> Student:
    """Train the student of an arch; its checkpoint lies in ``folder`` until it is saved there."""
    torch.manual_seed(derived_seed(task.recipe.seed, "init", arch.key))
    student = Student(arch, task.lmbdas)
    student.initialise_linear(task.pool.pictures())
    student.to(task.device)
    checkpoint = folder / CHECKPOINT
    run = Run(student, task.pool, task.recipe, task.weights, task.pool.latent_widths, checkpoint)
    try:
        run.run(report)
    except Stopped:
        run.save()
        raise
    return ready(student)


def run_trial(
    task: Task,
    arch: Arch,
    folder: Path,
    report: Report | None = None,
) -> Outcome:
    """Build, count, distil, evaluate and measure one student; it is saved into ``folder``."""
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    cost = count(Student(arch, task.lmbdas))
    attrs: dict[str, Any] = {"arch_key": arch.key, "cost": cost.to_json(), "seconds": seconds}
    if task.max_gmac is not None and cost.macs > task.max_gmac * 1e9:
        return Outcome(None, "over_max_gmac", 0.0, attrs)
    seconds["start"] = time.perf_counter() - started

    def hear(step: int, metrics: dict[str, float]) -> None:
        attrs.setdefault("first_step", step)
        if report is not None:
            report(step, metrics | {"macs": float(cost.macs)})

    try:
        student = distil(task, arch, folder, hear)
        seconds["distil"] = time.perf_counter() - started - sum(seconds.values())
        measured = evaluate(StudentCodec(student), task.eval_images, task.device)
    except TrialFailed as failure:
        return Outcome(None, failure.reason, 0.0, attrs | {"message": str(failure)})
    seconds["evaluate"] = time.perf_counter() - started - sum(seconds.values())
    outcome = _score(task, student, cost, measured, attrs)
    save_student(student, folder, {"rd": measured.to_json(), "steps": task.recipe.steps})
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
        reading = frame_energy(student, task.device)
        attrs["energy"] = reading.to_json()
        values["energy"] = reading.value_or_none
        if values["energy"] is None:
            return Outcome(None, f"energy: {reading.reason}", 0.0, attrs)
    if bd.value is None:
        return Outcome(None, bd.reason, bd.uncovered_db, attrs)
    return Outcome([values[name] for name in task.objectives], None, 0.0, attrs)


def frame_energy(student: Student, device: str) -> Reading:
    """Energy of one forward pass (encoder and decoder, no entropy coding) of a 768x512 frame, mJ."""
    meter = find_meter(device)
    if isinstance(meter, Reading):
        return meter
    frame = torch.rand(1, 3, 512, 768, device=device)

    def iteration() -> None:
        with torch.inference_mode():
            student(frame, 1.0)

    def synchronise() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return measure_energy(meter, iteration, synchronise=synchronise)
