"""The front trained on at the end of a search: what is exported. A trial's own values stay as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial

from nas_kd.codec.checkpoint import load_student, ready, save_student
from nas_kd.codec.student import Student
from nas_kd.distillation.loss import Adapters
from nas_kd.distillation.training import Run
from nas_kd.errors import NasKdError
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate
from nas_kd.measurement.device_lock import training_on
from nas_kd.objectives import SIMILAR
from nas_kd.recipe import Recipe
from nas_kd.study.anchor import bd_rate_of, similar_bd_rate_of
from nas_kd.study.events import Listen
from nas_kd.study.large_crops import after, before
from nas_kd.study.record import CHECKPOINT, Lost, record
from nas_kd.study.settings import QUALITY
from nas_kd.study.study import Study
from nas_kd.study.trial import Task, rd_cost
from nas_kd.teachers.targets import Lessons


def polished_key(arch_key: str) -> str:
    """The folder beside the student's that its polished form lies in."""
    return f"{arch_key}-polished"


def unpolished(study: Study) -> list[FrozenTrial]:
    """Members of the front that were not trained on by as many steps as the settings ask for."""
    steps, done = study.settings.polish, study.polished
    if not steps:
        return []
    return [t for t in study.front() if done.get(t.number, {}).get("steps") != steps]


def polish(task: Task, arch_key: str, students: Path, steps: int) -> dict[str, Any]:
    """Train a stored student on, evaluate and store it beside; resumes from its checkpoints.

    Returns:
        steps, rd (as trials keep it), bd_rate (None without one) and rd_cost. Raises TrialFailed at a NaN.
    """
    student = load_student(students / arch_key).to(task.device)
    folder = students / polished_key(arch_key)
    stages = stages_of(task, folder, steps)
    _train_on(task, student, stages)
    similar = SIMILAR in task.objectives
    measured = evaluate(StudentCodec(ready(student)), task.eval_images, task.device, similar)
    save_student(student.cpu(), folder, {"rd": measured.to_json(), "polish_steps": steps})
    for stage in stages:
        stage.checkpoint.unlink(missing_ok=True)
    return {
        "steps": steps,
        "rd": measured.to_json(),
        "bd_rate": bd_rate_of(task.anchor, measured).value,
        "rd_cost": rd_cost(measured, task.lmbdas),
    } | ({SIMILAR: similar_bd_rate_of(task.anchor, measured).value} if similar else {})


class Stage(NamedTuple):
    """A part of a polish, which may be gone on with by itself."""

    recipe: Recipe
    pool: Lessons
    checkpoint: Path


def stages_of(task: Task, folder: Path, steps: int) -> list[Stage]:
    """The parts of a polish of so many steps, in order."""
    recipe, checkpoint = replace(task.recipe, steps=steps), folder / f"{steps}-{CHECKPOINT}"
    if task.large is None:
        return [Stage(recipe, task.pool, checkpoint)]
    last = folder / f"{steps}-large-{CHECKPOINT}"
    return [
        Stage(before(recipe), task.pool, checkpoint),
        Stage(after(recipe, task.crop_size), task.large, last),
    ]


def _train_on(task: Task, student: Student, stages: list[Stage]) -> None:
    """Through all stages; what is not the student's own, the adapters, goes on as well."""
    adapters: Adapters | None = None
    with training_on(task.device) as between_steps:
        for recipe, pool, checkpoint in stages:
            run = Run(student, pool, recipe, task.weights, pool.latent_widths, checkpoint)
            if adapters is not None and run.adapters is not None and run.step == 0:
                run.adapters.load_state_dict(adapters.state_dict())
            run.run(between_steps=between_steps)
            adapters = run.adapters


Polished = Callable[[list[str]], Iterable[dict[str, Any] | Lost]]
"""Trains the students of arch keys on: what ``polish`` returns of each, where it was not lost."""


def polish_front(
    study: Study, polished: Polished, listen: Listen = lambda kind, detail: None
) -> None:
    """Train on what is not yet; a student that cannot be keeps its unpolished form, with the reason.

    Raises NasKdError at the end where students were interrupted: those are tried again.
    """
    members, lost = unpolished(study), list[str]()
    rows = polished([study.student_folder(trial).name for trial in members])
    for done, (trial, row) in enumerate(zip(members, rows, strict=True), start=1):
        said = f"polished: {done} of {len(members)} students of the front"
        if isinstance(row, Lost):
            said += f"; trial {trial.number} keeps its unpolished student {row.said}"
        if isinstance(row, Lost) and row.was_interrupted:
            lost.append(row.message)
        else:
            found = asdict(row) if isinstance(row, Lost) else row
            keep(study, trial, found | {"steps": study.settings.polish})
        listen("preparing", said)
    if lost:
        raise NasKdError(
            f"polish: {len(lost)} of {len(members)} students were interrupted ({lost[0]}); mend that and "
            "run the same command again"
        )


def keep(study: Study, trial: FrozenTrial, found: dict[str, Any]) -> None:
    """Record what polishing a trial's student came to."""
    with study.locks.exclusive():  # other drivers record theirs
        study.keep_polished(trial.number, found)


def gained(study: Study, trial: FrozenTrial) -> dict[str, Any] | None:
    """The record of a trial's polished student where it is better in the study's quality objective."""
    found = study.polished.get(trial.number)
    if found is None or "reason" in found:
        return None
    name = next((o for o in study.settings.objectives if o in QUALITY), "rd_cost")
    before = record(trial).rd_cost
    if name in study.settings.objectives:
        before = trial.values[study.settings.objectives.index(name)]
    after = found.get(name)
    return found if after is not None and before is not None and after < before else None


def best_folder(study: Study, trial: FrozenTrial) -> Path:
    """Where the better one of a trial's two students lies: as it was scored, or polished."""
    own = study.student_folder(trial)
    return own.with_name(polished_key(own.name)) if gained(study, trial) else own
