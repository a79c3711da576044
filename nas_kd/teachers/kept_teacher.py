"""A teacher in a folder of the cache, from which workers take it wherever they run: not by its name or its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from nas_kd.codec.bottleneck import without_waits
from nas_kd.codec.checkpoint import load_student, save_student
from nas_kd.files import write_bytes, write_text
from nas_kd.teachers.teacher import (
    FixedRateTeacher,
    HybridTeacher,
    Teacher,
    VariableRateTeacher,
)
from nas_kd.teachers.zoo import Member, fitted

ABOUT = "teacher.json"
OTHER = "other"
"""Folder of the teacher of the hyper-latents, in that of the other one."""


def keep_teacher(teacher: Teacher, folder: Path) -> None:
    """Write what ``kept_teacher`` reads; the teacher is on the CPU."""
    folder.mkdir(exist_ok=True)
    if isinstance(teacher, HybridTeacher):
        keep_teacher(teacher.other, folder / OTHER)
        teacher = teacher.main
    about: dict[str, Any] = {"name": teacher.name, "lmbdas": list(teacher.lmbdas)}
    if isinstance(teacher, FixedRateTeacher):
        for level, model in enumerate(teacher.members, 1):
            state = {name: t.contiguous() for name, t in model.state_dict().items()}
            write_bytes(_member(folder, level), save(state))
        prints = teacher.fingerprint.split("+")
        about["members"] = list(zip(teacher.families, prints, strict=True))
    else:
        assert isinstance(teacher, VariableRateTeacher)
        save_student(teacher.student, folder)
    write_text(folder / ABOUT, json.dumps(about) + "\n")


def kept_teacher(folder: Path) -> Teacher:
    """The teacher that ``keep_teacher`` wrote, on the CPU."""
    about = json.loads((folder / ABOUT).read_text())
    lmbdas = tuple(about["lmbdas"])
    main: Teacher
    if "members" in about:
        members = [
            Member(family, None, _model(folder, level, family), sha256)
            for level, (family, sha256) in enumerate(about["members"], 1)
        ]
        main = FixedRateTeacher(about["name"], members, lmbdas)
    else:
        main = VariableRateTeacher(about["name"], load_student(folder))
    return HybridTeacher(main, kept_teacher(folder / OTHER)) if (folder / OTHER).is_dir() else main


def _member(folder: Path, level: int) -> Path:
    return folder / f"level-{level}.safetensors"


def _model(folder: Path, level: int, family: str) -> Any:
    model = fitted(family, load_file(_member(folder, level)))
    assert model is not None
    return without_waits(model)
