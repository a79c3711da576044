import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas_kd.alone import distill_alone
from nas_kd.cost import count
from nas_kd.errors import UsageError
from nas_kd.space import load_arch, load_space
from nas_kd.study import Settings
from nas_kd.teacher import load_teacher
from nas_kd.weights import load_student, weights_digest

torch.set_num_threads(1)
ARCH = load_space("demo").extreme(largest=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(noise).resize((128, 96), Image.Resampling.BICUBIC).save(folder / "a.png")
    return str(folder)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    """What is kept for the next trial lies below the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(pictures: str) -> Settings:
    return Settings(
        name="alone",
        space="demo",
        objectives=("bd_rate", "flops"),
        steps=2,
        batch=2,
        crops=16,
        crop_size=64,
        data=pictures,
        eval_data=pictures,
    )


@pytest.mark.thorough
def test_the_next_student_finds_the_teachers_outputs(tmp_path: Path, settings: Settings):
    heard: list[list[str]] = [[], []]
    for i, said in enumerate(heard):
        distill_alone(
            settings, ARCH, tmp_path / str(i), lambda kind, what, said=said: said.append(what)
        )
    assert "teacher's outputs: 16 of 16 crops" in heard[0]
    assert [what for what in heard[0] if what.startswith("distilled: step 2 of 2, loss ")]
    assert not [what for what in heard[1] if "outputs" in what]
    assert weights_digest(load_student(tmp_path / "0")) == weights_digest(
        load_student(tmp_path / "1")
    )


def test_outputs_over_the_limit_are_refused(tmp_path: Path, settings: Settings):
    with pytest.raises(UsageError, match="GB"):
        distill_alone(settings, ARCH, tmp_path / "student", pool_gb=1e-6)


def test_an_arch_distilled_alone_leaves_a_student_and_its_figures(
    tmp_path: Path, settings: Settings
):
    said = distill_alone(settings, ARCH, tmp_path / "student")
    assert sorted(p.name for p in (tmp_path / "student").iterdir()) == [
        "arch.json",
        "student.safetensors",
    ]
    student = load_student(tmp_path / "student")
    assert student.arch == ARCH.canonical()
    assert said["flops"] == count(student).macs
    assert len(said["rd"]["bpp_est"]) == student.levels == 6
    assert json.loads(json.dumps(said)) == said
    with pytest.raises(UsageError, match="student: holds a finished codec already"):
        distill_alone(settings, ARCH, tmp_path / "student")


def test_a_cache_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, settings: Settings):
    (tmp_path / "studies").touch()
    with pytest.raises(UsageError, match="the cache studies/.cache: cannot be written"):
        distill_alone(settings, ARCH, tmp_path / "student")


def test_the_built_in_teachers_arch_can_be_given_as_an_arch_file(tmp_path: Path):
    teacher = load_teacher("mini")
    file = tmp_path / "arch.json"
    file.write_text(json.dumps({"arch": teacher.student.arch.to_json()}))
    assert load_arch(file) == teacher.student.arch


def test_the_card_of_the_built_in_teacher_is_true_of_its_weights():
    teacher = load_teacher("mini")
    folder = Path(__file__).parents[1] / "nas_kd" / "teachers" / "mini"
    card = json.loads((folder / "card.json").read_text())
    assert card["sha256"] == teacher.fingerprint
    assert card["psnr_db"] == sorted(card["psnr_db"])
    assert card["bd_rate_percent"]["JPEG"] < 0
