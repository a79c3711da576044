"""What ``import nas_kd`` offers, in Python: the commands as functions that return what the commands print.

::

    Settings -> search -> Study -> front -> Member -> load_student -> evaluate, measure
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from nas_kd.cluster.launch import Machine
from nas_kd.cluster.launch import search as launch
from nas_kd.codec.arch import Arch, load_arch
from nas_kd.codec.checkpoint import load_student
from nas_kd.codec.student import Student
from nas_kd.cores import cores
from nas_kd.data.images import open_images
from nas_kd.evaluation.rate_distortion import Measured, evaluate_real
from nas_kd.measurement.meters import require_meter
from nas_kd.places import HERE
from nas_kd.study.events import Listen
from nas_kd.study.obstacles import require_clear
from nas_kd.study.record import record
from nas_kd.study.settings import Settings
from nas_kd.study.single import distill_alone
from nas_kd.study.study import Study, open_study
from nas_kd.teachers.subjects import measure_codec

__all__ = [
    "Arch",
    "Member",
    "Settings",
    "Study",
    "distill",
    "evaluate",
    "front",
    "load_student",
    "measure",
    "search",
]


class Member(NamedTuple):
    """A trial on the front: its values by objective, its arch, the folder of its student."""

    trial: int
    values: dict[str, float]
    arch: Arch
    student: Path


def search(
    settings: Settings,
    budget: int | None = None,
    workers: int | None = None,
    storage: str | None = None,
    listen: Listen | None = None,
    root: str | Path = HERE,
) -> Study:
    """Run a study until it has ``budget`` finished trials; the same call again resumes.

    It lies in ``studies/NAME`` below ``root``. Raises UsageError where the settings cannot hold, MeterError
    where energy is asked for and there is no meter.

    Args:
        settings: what is searched.
        budget: finished trials in the end; by default the whole grid, else 20.
        workers: trials at once; by default one per core.
        storage: a database URL, where several drivers share the study.
        listen: hears (kind, detail) of what happens; of a trial, the detail holds the study and the number.
        root: by default the current folder.
    """
    require_clear([settings], root=Path(root))
    require_meter(settings.objectives)
    machine = Machine(workers or cores(), storage=storage)
    hears = listen or (lambda kind, detail: None)
    return launch(settings, budget, machine, hears, root=Path(root))


def front(study: Study | str, storage: str | None = None) -> list[Member]:
    """The Pareto front of a study, given or by name, ordered by its first objective."""
    opened = open_study(study, storage) if isinstance(study, str) else study
    names = opened.settings.objectives
    return [
        Member(
            trial.number,
            dict(zip(names, trial.values, strict=True)),
            record(trial).arch,
            opened.student_folder(trial),
        )
        for trial in opened.front()
    ]


def distill(
    arch: Arch | str | Path,
    out: str | Path,
    settings: Settings | None = None,
    root: str | Path = HERE,
) -> dict[str, Any]:
    """Train one student as a trial with these settings is trained, and write it to ``out``; returns its figures.

    Args:
        arch: what to build, or the file (.toml, .json) that says so.
        out: folder for the student; ``load_student`` reads it.
        settings: those of a study, by whose trial it then ends; by default a search's, from a transform codec.
        root: the folder whose ``studies`` keeps what studies share; by default the current one.
    """
    built = arch if isinstance(arch, Arch) else load_arch(Path(arch))
    chosen = settings or Settings("alone", "demo", objectives=("bd_rate", "flops"), init="scratch")
    return distill_alone(chosen, built, Path(out), root=Path(root))


def evaluate(student: Student | str | Path, data: str = "builtin") -> Measured:
    """Rate and distortion by real bitstreams, every level, on ``builtin`` or a folder of pictures."""
    codec = student if isinstance(student, Student) else load_student(student)
    return evaluate_real(codec, open_images(data, "eval"))


def measure(path: str | Path, quick: bool = False) -> dict[str, Any]:
    """MACs, memory, latency and energy of a student's folder, an arch file or a teacher, beside ``mini``'s.

    As ``nas-kd measure --json`` prints them; a figure that could not be measured is null with its reason.
    """
    return measure_codec(path, quick)
