"""A search, from its settings to its last trial: storage, what is prepared once, both rounds."""

from __future__ import annotations

import math
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from optuna.exceptions import StorageInternalError

from nas_kd.cluster.gpu_sharing import Placement, trials_per_gpu
from nas_kd.errors import NasKdError, UsageError
from nas_kd.places import HERE
from nas_kd.study.domination import drop_checkpoints, line_up_undominated
from nas_kd.study.events import Listen
from nas_kd.study.obstacles import require_levels
from nas_kd.study.polish import polish_front, unpolished
from nas_kd.study.prepare import prepare, warn_if_changed
from nas_kd.study.prepared import Prepared
from nas_kd.study.ranking import rank
from nas_kd.study.settings import Settings
from nas_kd.study.study import Study
from nas_kd.study.transfer import take_over
from nas_kd.teachers.teacher import Teacher, load_teacher


@dataclass(frozen=True)
class Machine:
    """Where trials run.

    Args:
        workers: trials at once.
        address: a Ray cluster to join; None starts Ray here.
        storage: a database URL, where several drivers share the study.
        trials_per_gpu: how many trials share a GPU, in one process; "auto" measures it, 0 trains on the CPU. None:
            measured where PyTorch sees a GPU and no cluster is joined, else trials train on the CPU.
    """

    workers: int
    address: str | None = None
    storage: str | None = None
    trials_per_gpu: int | Literal["auto"] | None = None

    def require_gpu(self) -> None:
        """Raise UsageError where trials are to share a GPU here and none is there: Ray would wait for one."""
        if self.trials_per_gpu and not self.address and not torch.cuda.device_count():
            raise UsageError(
                f"--trials-per-gpu {self.trials_per_gpu}: PyTorch sees no GPU on this machine; leave it out to "
                "train on the CPU"
            )

    def sharing(self, trials: int, gpus: int, left: int) -> Placement:
        """So many trials on each of so many GPUs here; ``left`` are to be run, and no GPU takes all of a few."""
        at_once = self.workers if self.address else max(1, min(self.workers, trials * gpus))
        lanes, workers = trials, math.ceil(at_once / trials)
        if not self.address:  # there, as many workers as Ray finds GPUs for
            workers = min(gpus, at_once)
            lanes = math.ceil(min(at_once, left) / workers)
        return Placement(workers, lanes, 1.0, at_once, 1 / trials)


def search(
    settings: Settings,
    budget: int | None,
    machine: Machine,
    listen: Listen,
    after: ExitStack | None = None,
    root: Path = HERE,
) -> Study:
    """Run trials until the study has ``budget`` finished ones; resumes what was interrupted.

    ``listen`` hears what happens (see Listen). Ray ends with the search, or with ``after`` where other studies
    follow. ``root`` is the folder that ``studies`` is in.
    """
    machine.require_gpu()
    teacher = _teacher_of(settings)  # first: without one, no study is begun
    study = Study(settings, machine.storage, root=root)
    budget = study.affordable(budget)
    try:
        with study.driving():
            take_over(study)
            if reaped := study.reap():
                listen("reaped", reaped)
            if unread := study.line_up_unread() + line_up_undominated(study):
                listen("reaped", unread)
            if study.counted() < budget or unpolished(study):
                prepared = prepare(study, teacher, listen, "cpu" if _on_cpus(machine) else None)
                with nullcontext(after) if after is not None else ExitStack() as up:
                    _run(study, budget, machine, prepared, listen, up)
            else:
                warn_if_changed(study, teacher)
    except UsageError:
        study.withdraw()  # what is refused leaves nothing
        raise
    except StorageInternalError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise NasKdError(
            f"study {settings.name}: its storage failed ({reason}); run the same command again"
        ) from error
    return study


def _run(
    study: Study,
    budget: int,
    machine: Machine,
    prepared: Prepared,
    listen: Listen,
    up: ExitStack,
) -> None:
    from nas_kd.cluster import (
        tune as engine,  # brings Ray, which a search without trials left does not need
    )

    place = placed(machine, study, prepared.lmbdas, listen, budget)
    home = engine.home_open if machine.address else nullcontext
    listen("preparing", "starting Ray and its workers")
    up.enter_context(engine.ray_up(place.tasks, machine.address))
    with home(prepared) as given:
        rank(
            study,
            len(given.lmbdas),
            lambda points: engine.score_all(given, points, place.gpus_of_task),
            listen,
        )
        if study.counted() < budget:
            engine.run_trials(study, budget, given, listen, place)
        while again := line_up_undominated(study):
            listen("preparing", f"energy of {again} more, which may be on the front after all")
            engine.run_trials(study, budget, given, listen, place)
        drop_checkpoints(study)
        polish_front(study, lambda keys: engine.polish_all(given, keys, place.gpus_of_task), listen)


def placed(
    machine: Machine, study: Study, lmbdas: tuple[float, ...], listen: Listen, budget: int
) -> Placement:
    """Where a study's trials run; what was measured for it is kept in the study.

    Raises UsageError where trials are to share a GPU and there is none.
    """
    here, left = torch.cuda.device_count(), max(1, budget - study.counted())
    if _on_cpus(machine) or (machine.trials_per_gpu is None and not here):
        return Placement(machine.workers, 1, 0.0, machine.workers, 0.0)
    if isinstance(machine.trials_per_gpu, int):
        return machine.sharing(machine.trials_per_gpu, max(here, 1), left)
    listen("preparing", "measuring how many trials share a GPU")
    settings = study.settings
    recipe = settings.recipe(settings.steps)
    found = trials_per_gpu(study.space, lmbdas, recipe, settings.crop_size, machine.workers)
    study.keep_packing(found)
    listen("preparing", f"{found['trials']} trials on each GPU")
    return machine.sharing(found["trials"], here, left)


def _teacher_of(settings: Settings) -> Teacher:
    teacher = load_teacher(*settings.teacher_spec)
    require_levels(settings, teacher.name, teacher.levels)
    return teacher


def _on_cpus(machine: Machine) -> bool:
    """Whether trials are known to train on CPUs before it is measured how many share a GPU."""
    said = machine.trials_per_gpu
    return said == 0 or (said is None and machine.address is not None)
