"""Files that nas-kd 0.1 wrote, one of each, still open (``old/``): a student, a coded picture, a study."""

import shutil
from pathlib import Path

import numpy as np
import torch

from nas_kd.codec.bitstream import decode
from nas_kd.codec.checkpoint import load_student
from nas_kd.report.tables import front_json, front_table
from nas_kd.study.study import open_study

OLD = Path(__file__).parent / "old"


def test_a_student_with_a_linear_shortcut_still_decodes_what_it_coded():
    student = load_student(OLD / "student")
    assert student.arch.shortcut
    decoded = decode(student, (OLD / "picture.nkd").read_bytes())
    steps = np.abs(decoded.astype(int) - np.load(OLD / "decoded.npy"))
    assert steps.max() <= 1  # the last network is float32, whose sums may differ


def test_a_student_with_a_linear_shortcut_is_still_one_function_of_its_picture():
    student = load_student(OLD / "student")
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = student.analysis(x)
        patches = torch.nn.functional.conv2d(
            x, student.linear_a.weight, student.linear_a.bias, stride=16
        )
        assert torch.allclose(y, student.g_a(x) + patches, atol=1e-5)


def test_a_study_of_a_space_that_has_changed_since_shows_its_front(tmp_path, monkeypatch):
    shutil.copytree(OLD / "studies", tmp_path / "studies")
    monkeypatch.chdir(tmp_path)
    study = open_study("small")
    members = front_json(study)["front"]
    assert sorted(member["trial"] for member in members) == [0, 1]
    assert all(member["arch"]["shortcut"] for member in members)
    assert front_table(study).row_count == 2
