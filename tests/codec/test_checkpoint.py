import json
from pathlib import Path

import pytest
import torch

from nas_kd.codec.arch import prim
from nas_kd.codec.checkpoint import load_student, save_student
from nas_kd.codec.student import Student
from nas_kd.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_student(Student(prim(8, 8)), tmp_path / "s")
    return tmp_path / "s"


def without(folder: Path, key: str) -> str:
    return json.dumps(
        {k: v for k, v in json.loads((folder / "arch.json").read_text()).items() if k != key}
    )


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda s: (s / "arch.json").unlink(), "no codec there .arch.json is missing."),
        (lambda s: (s / "arch.json").write_text("{"), "no codec there .arch.json is damaged."),
        (lambda s: (s / "arch.json").write_text(without(s, "sha256")), "sha256 is missing"),
        (lambda s: (s / "student.safetensors").unlink(), "student.safetensors: cannot be loaded"),
    ],
)
def test_what_is_wrong_with_a_codecs_folder_is_said_in_words(folder: Path, harm, says: str):
    harm(folder)
    with pytest.raises(UsageError, match=says) as caught:
        load_student(folder)
    assert "Error" not in str(caught.value)


def test_a_file_in_place_of_a_folder_is_said_to_be_one(folder: Path):
    with pytest.raises(UsageError, match="no codec there .a file, no folder."):
        load_student(folder / "arch.json")


def test_weights_that_are_no_numbers_are_named(folder: Path):
    student = load_student(folder)
    with torch.no_grad():
        student.get_parameter("g_a.head.weight").fill_(float("nan"))
    save_student(student, folder)
    with pytest.raises(UsageError, match="safetensors: g_a.head.weight holds NaN or infinite"):
        load_student(folder)


def test_others_may_read_a_codec_as_they_may_any_file(folder: Path):
    (folder / "any").write_text("")
    modes = {(folder / name).stat().st_mode for name in ("any", "arch.json", "student.safetensors")}
    assert len(modes) == 1
