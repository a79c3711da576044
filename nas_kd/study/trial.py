"""One trial as a plain function: build, cost gate, distil, evaluate, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nas_kd.codec.checkpoint import ready, save_student
from nas_kd.codec.cost import Cost, count
from nas_kd.codec.space import Arch
from nas_kd.codec.student import Student
from nas_kd.data.images import ImageSet
from nas_kd.distillation.loss import Weights
from nas_kd.distillation.training import Recipe, Report, Run
from nas_kd.errors import EarlyStop, TrialFailed
from nas_kd.evaluation.bd_rate import MIN_POINTS, BDRate, RDCurve, bd_rate, quality_interval
from nas_kd.evaluation.rate_distortion import Measured, StudentCodec, evaluate
from nas_kd.measurement.device_lock import training_on
from nas_kd.measurement.reading import require_real
from nas_kd.objectives import MEASURED, SIMILAR, TABLE, of_kind
from nas_kd.reasons import Reason
from nas_kd.seeds import derived_seed
from nas_kd.study.cost_gate import OF_KIND, Measure, gate
from nas_kd.study.limits import Limits, excess, reason_of
from nas_kd.supernet.from_teacher import Inherited
from nas_kd.supernet.shared_weights import Shared
from nas_kd.teachers.targets import TargetPool

CHECKPOINT = "checkpoint.pt"
"""Beside the student; it stays until the outcome is stored, so that a lost outcome costs no training."""


@dataclass(frozen=True)
class Anchor:
    """What students are compared with: a curve, the teacher's or another's, and the quality interval, if any.

    baselines: curves that are drawn beside it. name: whose the curve is. similar: the same by MS-SSIM in dB, where a
    study has that objective.
    """

    curve: RDCurve
    interval_db: tuple[float, float] | None
    baselines: dict[str, RDCurve] = field(default_factory=dict)
    name: str = "teacher"
    similar: Anchor | None = None


def interval_of(curve: RDCurve) -> tuple[float, float] | None:
    """The curve's quality interval in dB; None where it has too few levels for any BD-rate."""
    return quality_interval(curve) if len(curve.bpp) >= MIN_POINTS else None


def rd_cost(measured: Measured, lmbdas: tuple[float, ...]) -> float:
    """R + lmbda 255^2 D in bits per pixel, mean over levels and pictures; D of 8-bit pictures in [0, 1]."""
    points = zip(lmbdas, measured.rate, measured.psnr_db, strict=True)
    costs = [
        rate + lmbda * 255**2 * 10 ** (-quality / 10)
        for lmbda, rates, qualities in points
        for rate, quality in zip(rates, qualities, strict=True)
    ]
    return sum(costs) / len(costs)


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
    limits: Limits = Limits()
    device: str = "cpu"
    shared: Shared | Inherited | None = None
    measures: Mapping[str, Measure] = field(default_factory=lambda: OF_KIND)


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
    begun: Callable[[int], None] = lambda step: None,
) -> Student:
    """Train the student of an arch; its checkpoint lies in ``folder`` until it is saved there.

    ``begun`` hears the step it begins at: above 0 where a checkpoint was there.
    """
    student = initial(task, arch).to(task.device)
    checkpoint = folder / CHECKPOINT
    run = Run(student, task.pool, task.recipe, task.weights, task.pool.latent_widths, checkpoint)
    begun(run.step)
    try:
        run.run(report, between_steps)
    except EarlyStop:
        run.save()
        raise
    return ready(student)


def initial(task: Task, arch: Arch) -> Student:
    """The student before its own training: slices of the shared weights or the teacher, a transform codec, or noise."""
    if task.shared is not None:
        return task.shared.student(arch)
    torch.manual_seed(derived_seed(task.recipe.seed, "init", arch.key))
    student = Student(arch, task.lmbdas)
    student.start_from(task.pool.pictures())
    return student


def run_trial(
    task: Task,
    arch: Arch,
    folder: Path,
    report: Report | None = None,
    doing: Callable[[str], None] = lambda what: None,
) -> Outcome:
    """Build, count, distil, evaluate and measure one student; it is saved into ``folder``.

    ``doing`` hears what comes next: wait for the device, distil, evaluate, measure energy.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    cost = count(Student(arch, task.lmbdas))
    attrs: dict[str, Any] = {"arch_key": arch.key, "cost": cost.to_json(), "seconds": seconds}
    if (stopped := _at_the_gate(task, arch, attrs)) is not None:
        return stopped
    seconds["start"] = time.perf_counter() - started

    def begun(step: int) -> None:
        attrs["first_step"] = step

    def hear(step: int, metrics: dict[str, float]) -> None:
        if report is not None:
            report(step, metrics | {"macs": float(cost.macs)})

    try:
        doing("wait for the device")
        with training_on(task.device) as between_steps:
            doing("distil")
            student = distil(task, arch, folder, hear, between_steps, begun)
            seconds["distil"] = time.perf_counter() - started - sum(seconds.values())
            doing("evaluate")
            similar = SIMILAR in task.objectives
            measured = evaluate(StudentCodec(student), task.eval_images, task.device, similar)
    except TrialFailed as failure:
        return Outcome(None, failure.reason, 0.0, attrs | {"message": str(failure)})
    seconds["evaluate"] = time.perf_counter() - started - sum(seconds.values())
    if measured_ones := of_kind(task.objectives, *MEASURED):
        doing(f"measure {TABLE[measured_ones[0]].kind}")
    outcome = _score(task, student, cost, measured, attrs)
    save_student(student, folder, {"rd": measured.to_json(), "steps": task.recipe.steps})
    seconds["rest"] = time.perf_counter() - started - sum(seconds.values())
    return outcome


def _at_the_gate(task: Task, arch: Arch, attrs: dict[str, Any]) -> Outcome | None:
    """The outcome of an arch that breaks a limit, or whose cost could not be measured."""
    gated = gate(Student(arch, task.lmbdas), task.limits, task.device)
    if gated.readings:
        attrs["gate"] = gated.readings
    if gated.missing is not None:
        return Outcome(None, gated.missing, 0.0, attrs)
    if gated.ratios:
        attrs |= {"limit_ratios": gated.ratios, "over": excess(gated.ratios)}
    reason = reason_of(gated.ratios)
    return None if reason is None else Outcome(None, reason, 0.0, attrs)


def _score(
    task: Task, student: Student, cost: Cost, measured: Measured, attrs: dict[str, Any]
) -> Outcome:
    attrs["rd"] = measured.to_json()
    bd = bd_rate_of(task.anchor, measured)
    attrs |= {"bd_pchip": bd.pchip, "bd_psnr_db": bd.bd_psnr_db, "uncovered_db": bd.uncovered_db}
    attrs["rd_cost"] = rd_cost(measured, task.lmbdas)
    rates = {"bd_rate": bd} | (
        {SIMILAR: similar_bd_rate_of(task.anchor, measured)} if SIMILAR in task.objectives else {}
    )
    for name, found in rates.items():
        if found.value is None and name in task.objectives:
            return Outcome(None, found.reason, found.uncovered_db, attrs)
    values: dict[str, float | None] = {name: found.value for name, found in rates.items()}
    values["rd_cost"] = attrs["rd_cost"]
    values |= {"flops": float(cost.macs), "flops:decoder": float(cost.decoder_macs)}
    values["params"] = float(cost.parameters)
    for name in of_kind(task.objectives, *MEASURED):
        kind = TABLE[name].kind
        reading = task.measures[kind](student, task.device, TABLE[name].part)
        require_real(reading)
        attrs[name] = reading.to_json()
        values[name] = reading.value_or_none
        if values[name] is None:
            return Outcome(None, Reason(kind).because(reading.reason), 0.0, attrs)
    return Outcome([values[name] for name in task.objectives], None, 0.0, attrs)


def bd_rate_of(anchor: Anchor, measured: Measured) -> BDRate:
    """BD-rate of a measured student over the study's interval, or the reason why there is none."""
    if anchor.interval_db is None:
        return BDRate(None, Reason.TOO_FEW_POINTS, None, None, 0.0, (0.0, 0.0))
    return bd_rate(anchor.curve, measured.curve(), anchor.interval_db)


def similar_bd_rate_of(anchor: Anchor, measured: Measured) -> BDRate:
    """The same with MS-SSIM in dB as quality; decibels that it lacks are such."""
    assert anchor.similar is not None, "the anchor of a study with this objective has it"
    if anchor.similar.interval_db is None:
        return BDRate(None, Reason.TOO_FEW_POINTS, None, None, 0.0, (0.0, 0.0))
    own = anchor.similar
    return bd_rate(own.curve, measured.similarity_curve(), own.interval_db)
