"""Classical codecs in the teacher's place, and beside the front."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.data.images import BUILTIN, open_images
from nas_kd.errors import StudyError
from nas_kd.evaluation.bd_rate import bd_rate
from nas_kd.evaluation.classical import CODECS, classical_curve
from nas_kd.report.tables import curve_of, front_against
from nas_kd.study.prepare import teacher_curve
from nas_kd.study.study import Settings, Study
from nas_kd.teachers.teacher import load_teacher


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = open_images(BUILTIN, "eval").images[0][40:168, 60:252]
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.ascontiguousarray(image)).save("pictures/one.png")
    return "pictures"


def test_a_study_can_be_judged_against_a_classical_codec(pictures):
    study = Study(Settings("versus", "demo", eval_data=pictures, anchor="jpeg"))
    teacher = load_teacher("mini")
    anchor = teacher_curve(study, teacher, lambda kind, detail: None)
    jpeg = classical_curve("jpeg", open_images(pictures, "eval"))
    assert (anchor["name"], anchor["curve"]) == ("jpeg", jpeg.to_json())
    own = Study(Settings("own", "demo", eval_data=pictures))
    usual = teacher_curve(own, teacher, lambda kind, detail: None)
    assert anchor["teacher_curve"] == usual["curve"] == usual["teacher_curve"]
    low, high = usual["interval_db"]
    assert anchor["interval_db"] == (
        pytest.approx(max(low, jpeg.psnr_db[0])),
        pytest.approx(min(high, jpeg.psnr_db[-1])),
    )
    assert study.optuna.user_attrs["anchor"]["name"] == "jpeg"


def test_an_unknown_anchor_is_named():
    with pytest.raises(StudyError, match="anchor = 'bmp': must be one of teacher, jpeg"):
        Settings("x", "demo", anchor="bmp")


def test_the_front_beside_classical_codecs(small, monkeypatch):
    found = front_against(small)
    assert set(found) == set(CODECS)
    members = {t.number: t for t in small.front()}
    images = open_images(small.settings.eval_data, "eval")
    jpeg, curve = classical_curve("jpeg", images), curve_of(members[0])
    assert set(found["jpeg"]) == set(members)
    try:
        expected = bd_rate(jpeg, curve, (curve.psnr_db[0], curve.psnr_db[-1])).value
    except StudyError:
        expected = None
    assert found["jpeg"][0]["bd_rate"] == expected
    said = CliRunner().invoke(app, ["front", "small", "--baselines", "--json"])
    assert said.exit_code == 0
    assert set(json.loads(said.stdout)["baselines"]["webp"]) == {str(n) for n in members}
    table = CliRunner().invoke(app, ["front", "small", "--baselines"], env={"COLUMNS": "250"})
    assert "jpegxl" in table.stdout
