"""A small study with real, untrained students; only its objective values and reasons are given."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nas_kd.codec.arch import Arch
from nas_kd.codec.checkpoint import ready, save_student
from nas_kd.codec.cost import count
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.data.images import ImageSet, open_images
from nas_kd.evaluation.rate_distortion import Measured, StudentCodec, evaluate
from nas_kd.report.illustrate import illustrate
from nas_kd.study.anchor import Anchor
from nas_kd.study.record import Outcome
from nas_kd.study.study import Settings, Study
from nas_kd.study.trial_artifacts import made_with

NAME = "small"
VALUES = ([40.0, 3e9], [30.0, 5e9], [60.0, 4e9])
"""Trials 0 and 1 are the front; 2 is dominated."""


def small_study(folder: Path) -> None:
    """Three complete trials, an infeasible and a crashed one, below ``folder``."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        _make(_pictures(folder))
    finally:
        os.chdir(before)


def _pictures(folder: Path) -> str:
    rows, columns = np.mgrid[0:128, 0:192]
    red = 128 + 90 * np.sin(rows / 9.0) * np.cos(columns / 13.0)
    picture = np.stack([red, red[::-1], 255 - red], axis=2).astype(np.uint8)
    (folder / "pictures").mkdir()
    Image.fromarray(picture).save(folder / "pictures" / "waves.png")
    return str(folder / "pictures")


def _make(pictures: str) -> None:
    study = Study(Settings(NAME, "demo", objectives=("bd_rate", "flops"), eval_data=pictures))
    study.optuna.set_user_attr("made_with", made_with("cpu"))
    images = open_images(pictures, "eval")
    anchor = None
    for values in (*VALUES, None):
        asked = study.ask(9)
        assert asked is not None
        number, arch = asked
        student, measured = _student(arch, images)
        if anchor is None:
            anchor = Anchor(measured.curve(), (20.0, 30.0))
            record = {"teacher": "mini", "curve": measured.curve().to_json()}
            study.optuna.set_user_attr("anchor", record | {"interval_db": [20.0, 30.0]})
        outcome = Outcome(values, None if values else "partial_overlap", 0.0 if values else 2.5)
        cost, seconds = count(student).to_json(), {"distil": 1.5}
        outcome.attrs = {"arch_key": arch.key, "cost": cost, "seconds": seconds}
        outcome.attrs["rd"] = measured.to_json()
        home = study.folder / "students" / arch.key
        save_student(student, home)
        illustrate(anchor, images, home, outcome)
        study.tell(number, outcome)
    crashed = study.ask(9)
    assert crashed is not None
    said = {"message": "</script><b>out of memory"}
    study.tell(crashed[0], Outcome(None, "crash", attrs=said))


def _student(arch: Arch, images: ImageSet) -> tuple[Student, Measured]:
    torch.manual_seed(0)
    student = ready(Student(arch, LMBDAS))
    return student, evaluate(StudentCodec(student), images)
