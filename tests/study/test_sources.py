"""What a study rests on: a teacher or pictures that changed since it was begun stop it before any work."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nas_kd.errors import StudyError
from nas_kd.study.polish import polish
from nas_kd.study.prepare import drawn_anew, prepare, warn_if_changed
from nas_kd.study.study import Settings, Study
from nas_kd.study.task import task_of
from nas_kd.study.trial import run_trial
from nas_kd.teachers.lessons import TaughtCrops
from nas_kd.teachers.teacher import load_teacher

torch.set_num_threads(1)


def picture(folder, name: str, seed: int) -> None:
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(noise).resize((80, 64)).save(folder / name)


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    for folder in ("train", "eval"):
        picture(tmp_path / folder, "a.png", 0)
    small = {"steps": 1, "init": "scratch", "crops": 16, "crop_size": 64, "batch": 1}
    return Settings("s", "demo", data="train", eval_data="eval", **small)


def begin(settings: Settings, teacher=None) -> dict[str, str]:
    """Prepare the study; the fingerprints that it keeps."""
    study = Study(settings)
    prepare(study, teacher or load_teacher("mini"), lambda kind, detail: None)
    return study.optuna.user_attrs["sources"]


def test_a_study_keeps_what_it_rests_on_and_resumes_with_it(settings):
    kept = begin(settings)
    assert set(kept) == {"teacher", "data", "eval_data", "crops"}
    assert all(kept.values())
    assert begin(settings) == kept


def test_how_crops_are_come_by_is_by_device_and_stays_what_it_was_when_a_study_was_begun(settings):
    on_gpu, on_cpu = Study(settings), Study(replace(settings, name="c"))
    assert drawn_anew(on_gpu, "cuda")
    assert drawn_anew(Study(settings), "cpu")
    assert not drawn_anew(on_cpu, "cpu")
    assert not drawn_anew(Study(replace(settings, name="c")), "cuda")


def test_a_study_of_an_earlier_version_goes_on_with_stored_crops_on_a_gpu(settings):
    begin(settings)
    Study(settings).optuna.set_user_attr("sources", {})
    assert not drawn_anew(Study(settings), "cuda")


@pytest.mark.thorough
def test_a_trial_and_its_polish_learn_from_a_teacher_in_the_step(settings, tmp_path):
    study, told = Study(replace(settings, objectives=("rd_cost", "flops"))), []
    study.keep_sources({"crops": "anew"})
    prepared = prepare(study, load_teacher("mini"), lambda kind, detail: told.append(detail))
    assert "crops are drawn anew at every step, and the teacher works on them in it" in told
    task, arch = task_of(prepared), study.space.corners(False)[0]
    assert isinstance(task.pool, TaughtCrops)
    students = tmp_path / "students"
    outcome = run_trial(task, arch, students / arch.key)
    assert outcome.reason is None
    assert polish(task, arch.key, students, 1)["rd_cost"] > 0


@pytest.mark.parametrize(("what", "folder"), [("data", "train"), ("eval_data", "eval")])
def test_pictures_that_changed_stop_a_study(settings, tmp_path, what, folder):
    kept = begin(settings)
    picture(tmp_path / folder, "b.png", 1)
    with pytest.raises(StudyError, match=rf"study s: {what} {folder} is not what it was"):
        begin(settings)
    (tmp_path / folder / "b.png").unlink()
    assert begin(settings) == kept


def test_a_teacher_of_other_weights_stops_a_study_also_one_without_sources(settings):
    begin(settings)
    other = load_teacher("mini")
    other.fingerprint = "0123456789"
    for _ in range(2):
        with pytest.raises(StudyError, match="teacher mini is not what .*fingerprint 01234567, it"):
            begin(settings, other)
        # As an earlier version left it: its anchor alone knows the teacher.
        Study(settings).optuna.set_user_attr("sources", {})


def test_a_finished_study_says_that_its_teacher_has_changed(settings, caplog):
    begin(settings)
    caplog.clear()
    teacher = load_teacher("mini")
    warn_if_changed(Study(settings), teacher)
    assert not caplog.messages
    teacher.fingerprint = "0123456789"
    warn_if_changed(Study(settings), teacher)
    (said,) = caplog.messages
    assert "teacher mini is not what it was" in said
    assert "--name" in said
