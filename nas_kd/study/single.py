"""Training without a search: one student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from nas_kd.codec.arch import Arch
from nas_kd.codec.checkpoint import require_unfinished
from nas_kd.codec.search_space import SearchSpace, load_space
from nas_kd.data.picture_files import require_writable
from nas_kd.device import best_device, one_thread
from nas_kd.errors import NasKdError, SpaceError, TrialFailed
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.reading import Reading
from nas_kd.objectives import BD_RATES, TABLE
from nas_kd.places import CACHE, HERE
from nas_kd.reasons import Reason
from nas_kd.study.anchor import anchor_of
from nas_kd.study.events import Listen
from nas_kd.study.prepare import targets, told_of, travelling, warm
from nas_kd.study.record import CHECKPOINT, Outcome
from nas_kd.study.settings import Settings
from nas_kd.study.task import task_of
from nas_kd.study.trial import Task, run_trial
from nas_kd.study.uncertainty import SCALE, UNITS
from nas_kd.supernet.from_teacher import require_slices
from nas_kd.teachers.teacher import Teacher, load_teacher


def distill_alone(
    settings: Settings,
    arch: Arch,
    out: Path,
    listen: Listen = lambda kind, details: None,
    root: Path = HERE,
) -> dict[str, Any]:
    """One trial with these settings, as a worker runs it; the student lands in ``out``.

    Returns its figures. What studies share (the teacher's outputs and curve, shared weights) is kept for
    others that ask the same. Raises TrialFailed at a NaN, NasKdError where a limit keeps the arch from training.

    Args:
        settings: of a search that would try this arch.
        arch: of the student; part of the settings' space where it starts from shared weights.
        out: its folder; a run that was killed goes on from the checkpoint there.
        listen: hears ("preparing", where it is).
        root: the folder that ``studies``, and in it what studies share, is in.
    """
    require_unfinished(out, out / CHECKPOINT)
    cache = root / CACHE
    require_writable(cache, "the cache", folder=True)
    teacher = load_teacher(*settings.teacher_spec)
    space = load_space(settings.space)
    _require_start(settings, space, teacher, arch)
    pool = targets(settings, teacher, listen, cache)
    shared = warm(settings, space, teacher, pool, listen, cache)
    anchor = anchor_of(settings, teacher, listen, cache)
    prepared = travelling(settings, teacher, pool, shared, anchor, out.parent)
    task = task_of(prepared, best_device())
    task = replace(task, objectives=_objectives(task))
    with one_thread():  # as a worker has
        outcome = run_trial(task, arch, out, told_of("distilled", settings.steps, listen))
    cost = outcome.record.cost
    if cost is None or outcome.record.rd is None:
        raise _failed(outcome)
    (out / CHECKPOINT).unlink(missing_ok=True)
    named: dict[str, Any] = {"flops": float(cost.macs)}
    named |= dict(zip(task.objectives, outcome.values or (), strict=False))
    said = {"student": str(out), **named, "reason": outcome.reason, **outcome.attrs}
    interval_db = anchor.interval_db and list(anchor.interval_db)
    return said | {"against": anchor.name, "interval_db": interval_db}


def _require_start(settings: Settings, space: SearchSpace, teacher: Teacher, arch: Arch) -> None:
    """Raise SpaceError where the student could not start as the settings have it."""
    if settings.init == "teacher":
        require_slices([arch], teacher)
    if settings.init == "shared" and space.params_of(arch) is None:
        raise SpaceError(
            f"arch {arch} is none of space {settings.space}, of whose shared weights a student would be a "
            "slice (init = 'shared'): give an arch of that space, or a study with init = 'scratch', or none"
        )


def _objectives(task: Task) -> tuple[str, ...]:
    """The task's objectives as far as they can be had: a curve of one level has no BD-rate."""
    metered = not isinstance(find_meter(task.device), Reading)
    kept = tuple(o for o in task.objectives if TABLE[o].kind != "energy" or metered)
    if any(task.anchor.by(o).interval_db is None for o in kept if o in BD_RATES):
        return ("rd_cost", *(o for o in kept if TABLE[o].kind != "quality"))
    return kept


def _failed(outcome: Outcome) -> NasKdError:
    reason = outcome.reason or Reason.CRASH
    if outcome.record.message is not None:
        return TrialFailed(reason, outcome.record.message)
    by = f", by {outcome.record.over:.0%}" if outcome.record.over else ""
    return NasKdError(f"nothing was trained: {reason}{by}; give another arch, or other limits")


def in_a_table(said: dict[str, Any]) -> Table:
    """What ``distill_alone`` returned, for people."""
    table = Table(title=said["student"], show_header=False)
    for name in UNITS:
        if said.get(name) is not None:
            table.add_row(UNITS[name], f"{said[name] * SCALE[name]:.2f}{_against(name, said)}")
    if said["reason"]:
        table.add_row("reason", f"no values as a trial: {said['reason']}")
    table.add_row("parameters M", f"{said['cost']['parameters'] / 1e6:.3f}")
    points = zip(said["rd"]["bpp_est"], said["rd"]["psnr_db"], strict=True)
    for level, (bpp, psnr_db) in enumerate(points, 1):
        table.add_row(f"level {level}", f"{bpp:.3f} bpp (estimated), {psnr_db:.2f} dB")
    return table


def _against(name: str, said: dict[str, Any]) -> str:
    if name != "bd_rate":
        return ""
    low, high = said["interval_db"]
    return f" against the {said['against']}'s curve, {low:.1f} to {high:.1f} dB"
