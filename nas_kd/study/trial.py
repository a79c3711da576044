"""One trial as a plain function: cost gate, build, distil, evaluate, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nas_kd.codec.arch import Arch
from nas_kd.codec.checkpoint import ready, save_student
from nas_kd.codec.cost import Cost, count
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.student import Student
from nas_kd.data.images import ImageSet
from nas_kd.distillation.training import Report, Run
from nas_kd.errors import EarlyStop, TrialFailed
from nas_kd.evaluation.rate_distortion import Measured, StudentCodec, evaluate
from nas_kd.measurement.device_lock import training_on
from nas_kd.measurement.reading import Reading, require_real
from nas_kd.objectives import MEASURED, SIMILAR, TABLE, of_kind
from nas_kd.reasons import Reason
from nas_kd.recipe import Recipe, Weights
from nas_kd.seeds import derived_seed
from nas_kd.study.anchor import Anchor, bd_rate_of, similar_bd_rate_of
from nas_kd.study.cost_gate import OF_KIND, Measure, gate
from nas_kd.study.domination import Bound
from nas_kd.study.limits import Limits, excess, reason_of
from nas_kd.study.record import CHECKPOINT, Outcome
from nas_kd.study.uncertainty import by_picture
from nas_kd.supernet.from_teacher import Inherited
from nas_kd.supernet.shared_weights import Shared
from nas_kd.teachers.targets import Lessons
from nas_kd.turns import TURNS


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
    """What every trial of a study shares; ``large`` has the crops that a polish ends on."""

    lmbdas: tuple[float, ...]
    recipe: Recipe
    weights: Weights
    objectives: tuple[str, ...]
    pool: Lessons
    eval_images: ImageSet
    anchor: Anchor
    limits: Limits = Limits()
    device: str = "cpu"
    shared: Shared | Inherited | None = None
    large: Lessons | None = None
    crop_size: int = 256
    measures: Mapping[str, Measure] = field(default_factory=lambda: OF_KIND)


def distil(
    task: Task,
    student: Student,
    folder: Path,
    report: Report | None = None,
    between_steps: Callable[[], None] | None = None,
    begun: Callable[[int], None] = lambda step: None,
) -> Student:
    """Train a student; its checkpoint lies in ``folder`` until it is saved there.

    ``begun`` hears the step it begins at: above 0 where a checkpoint was there.
    """
    student, checkpoint = student.to(task.device), folder / CHECKPOINT
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
    bound: Bound | None = None,
) -> Outcome:
    """Gate, build, count, distil, evaluate and measure one student; it is saved into ``folder``.

    ``doing`` hears what comes next: wait for the device, distil, evaluate, measure energy. Above ``bound`` nothing
    is measured.
    """
    clock = Laps()
    attrs: dict[str, Any] = {"arch_key": arch.key, "seconds": clock.seconds}
    if (reason := _over_free_limits(task, arch, attrs)) is not None:
        return Outcome(None, reason, 0.0, attrs)
    doing("wait for the device")
    with training_on(task.device), TURNS:  # it draws noise
        student = initial(task, arch)
    cost = count(student)
    attrs["cost"] = cost.to_json()
    if (reason := _over_measured_limits(task, student, attrs)) is not None:
        return Outcome(None, reason, 0.0, attrs)
    clock.lap("start")

    def begun(step: int) -> None:
        attrs["first_step"] = step

    try:
        doing("wait for the device")
        with training_on(task.device) as between_steps:
            doing("distil")
            student = distil(task, student, folder, report, between_steps, begun)
            clock.lap("distil")
            doing("evaluate")
            similar = SIMILAR in task.objectives
            measured = evaluate(StudentCodec(student), task.eval_images, task.device, similar)
    except TrialFailed as failure:
        return Outcome(None, failure.reason, 0.0, attrs | {"message": str(failure)})
    clock.lap("evaluate")
    if measured_ones := of_kind(task.objectives, *MEASURED):
        doing(f"measure {TABLE[measured_ones[0]].kind}")
    outcome = _score(task, student, cost, measured, attrs, bound)
    save_student(student, folder, {"rd": measured.to_json(), "steps": task.recipe.steps})
    clock.lap("rest")
    return outcome


class Laps:
    """Seconds by the name of what was done in them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """What was done since the last lap."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def _over_free_limits(task: Task, arch: Arch, attrs: dict[str, Any]) -> str | None:
    """The reason of an arch over a limit that is known in advance; nothing is built for it."""
    return _judged(task.limits.free_ratios(arch_cost(arch, len(task.lmbdas))), attrs)


def _over_measured_limits(task: Task, student: Student, attrs: dict[str, Any]) -> str | None:
    """The reason of a student that is over a limit by measurement, or whose cost could not be measured."""
    found = gate(student, task.limits, task.device)
    if found.readings:
        attrs["gate"] = found.readings
    return found.missing or _judged(found.ratios, attrs)


def _judged(ratios: dict[str, float], attrs: dict[str, Any]) -> str | None:
    """The reason of a broken limit, if one is; the ratios are kept."""
    if ratios:
        attrs |= {"limit_ratios": ratios, "over": excess(ratios)}
    return reason_of(ratios)


def _score(
    task: Task,
    student: Student,
    cost: Cost,
    measured: Measured,
    attrs: dict[str, Any],
    bound: Bound | None = None,
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
    if bound is not None and (unread := _unread(task, measured, values, bound)):
        return Outcome(None, Reason.DOMINATED.because(bound.said), 0.0, attrs | unread)
    for name in of_kind(task.objectives, *MEASURED):
        kind = TABLE[name].kind
        reading = task.measures[kind](student, task.device, TABLE[name].part)
        require_real(reading)
        attrs[name] = reading.to_json()
        values[name] = reading.value_or_none
        if values[name] is None:
            return Outcome(None, Reason(kind).because(reading.reason), 0.0, attrs)
    return Outcome([values[name] for name in task.objectives], None, 0.0, attrs)


def _unread(
    task: Task, measured: Measured, values: dict[str, float | None], bound: Bound
) -> dict[str, Any]:
    """What is kept of a student that is known to be dominated: its quality, and why it has no energy."""
    (name,) = of_kind(task.objectives, "quality")
    value = values[name]
    if value is None or not bound.excludes(value, by_picture(task.anchor, measured, name)):
        return {}
    absent = Reading.unavailable(f"not read: {bound.said}").to_json()
    return {"quality": {name: value}} | {one: absent for one in of_kind(task.objectives, *MEASURED)}
