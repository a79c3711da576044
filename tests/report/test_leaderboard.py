"""Many students in one table: one set, one anchor, one interval, and nothing invented."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.codec.checkpoint import load_student, ready, save_student, weights_digest
from nas_kd.codec.cost import count
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.data.images import BUILTIN, open_images
from nas_kd.errors import StudyError, UsageError
from nas_kd.evaluation.bd_rate import RDCurve, bd_rate
from nas_kd.evaluation.classical import classical_curve
from nas_kd.evaluation.rate_distortion import evaluate_real
from nas_kd.measurement.codec_energy import ENERGY
from nas_kd.measurement.reading import Reading
from nas_kd.places import TEACHERS
from nas_kd.report import leaderboard as boards
from nas_kd.report.export import rd_file

MINI = TEACHERS / "mini"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, timed_briefly) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    whole = open_images(BUILTIN, "eval").images[0]
    Image.fromarray(np.ascontiguousarray(whole[40:168, 60:252])).save(folder / "a.png")
    return str(folder)


@pytest.fixture(scope="module")
def students(pictures, tmp_path_factory) -> Path:
    """``mini`` as an export of it looks, and as `distill` leaves it; a half of it in the same folder."""
    folder = tmp_path_factory.mktemp("students")
    for name in ("bare", "exported"):
        shutil.copytree(MINI, folder / name)
    mini, images = load_student(MINI), open_images(pictures, "eval")
    measured = evaluate_real(mini, images).to_json()
    more = {"measured": measured, "sha256": weights_digest(mini)}
    (folder / "exported" / boards.RD).write_text(rd_file("mini", measured, more))
    reading = Reading.measured(21.5, 0.1, "mJ", "NVML").to_json()
    kept = {"trained_on_pictures": reading, "device": "NVIDIA H100 80GB"}
    (folder / "exported" / ENERGY).write_text(json.dumps(kept))
    return folder


@pytest.fixture(scope="module")
def board(students, pictures) -> boards.Board:
    return boards.leaderboard([students, students / "bare"], pictures, "jpeg")


def test_each_student_is_there_once_with_its_own_figures(board, pictures):
    images, mini = open_images(pictures, "eval"), load_student(MINI)
    assert [entry.folder.name for entry, _ in board.rows] == ["bare", "exported"]
    jpeg, curve = classical_curve("jpeg", images), evaluate_real(mini, images).curve()
    low = max(jpeg.psnr_db[0], curve.psnr_db[0])
    assert board.interval_db == (low, min(jpeg.psnr_db[-1], curve.psnr_db[-1]))
    for entry, rate in board.rows:
        assert rate == bd_rate(jpeg, curve, board.interval_db)
        assert entry.cost == count(mini)


def test_energy_is_the_exports_with_its_device_or_absent(board):
    bare, exported = (entry.energy for entry, _ in board.rows)
    assert (exported["value"], exported["device"]) == (21.5, "NVIDIA H100 80GB")
    assert bare == boards.NO_ENERGY


def test_an_exports_points_are_taken_where_they_are_of_these_pictures_and_weights(
    students, pictures, monkeypatch
):
    home, images = students / "exported", open_images(pictures, "eval")
    monkeypatch.setattr(boards, "evaluate_real", None)
    assert boards._kept(home, images) is not None
    assert boards._kept(home, open_images(BUILTIN, "eval")) is None
    found = json.loads((home / boards.RD).read_text())
    (students / "bare" / boards.RD).write_text(json.dumps(found | {"sha256": "another"}))
    assert boards._kept(students / "bare", images) is None
    (students / "bare" / boards.RD).unlink()
    assert boards._kept(students / "bare", images) is None


def test_the_table_has_every_student_and_the_reason_for_every_dash(board):
    table = boards.board_table(board)
    assert table.row_count == 2
    said = " ".join(str(table.caption).split())
    assert f"mJ: {boards.NO_ENERGY['reason']}" in said
    cells = [list(column.cells) for column in table.columns]
    assert [c[1] for c in cells[-2:]] == ["21.5", "NVIDIA H100 80GB"]
    assert [c[0] for c in cells[-2:]] == ["-", "-"]
    shown = boards.board_json(board)["students"]
    assert json.loads(json.dumps(shown))[0]["bd_rate"] == board.rows[0][1].value


def curve(low: float, high: float, points: int = 5) -> RDCurve:
    return RDCurve(tuple(np.linspace(0.1, 1, points)), tuple(np.linspace(low, high, points)))


def test_all_are_compared_over_what_all_cover():
    given = {Path("a"): curve(27, 35), Path("b"): curve(28, 38), Path("one"): curve(30, 31, 2)}
    assert boards.interval_of_all(curve(25, 40), given) == (28, 35)
    with pytest.raises(StudyError, match=r"less than 1 dB is covered by all \(a 27.00 to 35.00"):
        boards.interval_of_all(curve(25, 40), given | {Path("c"): curve(34.5, 40)})


def test_what_cannot_stand_in_a_table_is_refused(pictures, tmp_path):
    with pytest.raises(UsageError, match="no student in it or directly below it"):
        boards.leaderboard([tmp_path], pictures, "jpeg")
    with pytest.raises(UsageError, match="name one codec"):
        boards.leaderboard([MINI], pictures, "jpeg,webp")
    with pytest.raises(
        UsageError, match="vtm: published on Kodak's pictures, and .* has 1 picture, not 24"
    ):
        boards.leaderboard([MINI], pictures, "vtm")


def test_a_student_of_one_level_has_a_reason_and_the_last_place(pictures, tmp_path, monkeypatch):
    from nas_kd.codec.arch import prim

    save_student(ready(Student(prim(8, 16), LMBDAS[:1])), tmp_path / "one")
    monkeypatch.setattr(boards, "coding_cost", lambda codec, images: {})
    board = boards.leaderboard([tmp_path / "one", MINI], pictures, "jpeg")
    assert [entry.folder.name for entry, _ in board.rows] == ["mini", "one"]
    assert board.rows[-1][1].reason == "too_few_points"


@pytest.mark.thorough
def test_the_command_prints_json(students, pictures):
    words = ["leaderboard", str(students / "exported"), "--data", pictures, "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["versus"] == "jpeg"
