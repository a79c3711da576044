"""Classical codecs in the teacher's place, and beside the front."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.data.images import BUILTIN, open_images
from nas_kd.errors import StudyError
from nas_kd.evaluation.bd_rate import RDCurve, bd_rate
from nas_kd.evaluation.classical import CODECS, classical_curve
from nas_kd.report import tables as report
from nas_kd.report.tables import curve_of, front_against
from nas_kd.study.anchor import Anchor
from nas_kd.study.prepare import study_anchor
from nas_kd.study.study import Settings, Study
from nas_kd.teachers.teacher import load_teacher

CURVE = RDCurve((0.1, 0.2, 0.4, 0.8), (26.0, 29.0, 32.0, 35.0))


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
    anchor = study_anchor(study, teacher, lambda kind, detail: None)
    jpeg = classical_curve("jpeg", open_images(pictures, "eval"))
    assert (anchor.name, anchor.curve, anchor.per_image) == ("jpeg", jpeg, ())
    own = Study(Settings("own", "demo", eval_data=pictures))
    usual = study_anchor(own, teacher, lambda kind, detail: None)
    assert anchor.teacher_curve == usual.curve == usual.teacher_curve
    low, high = usual.interval_db
    assert anchor.interval_db == (
        pytest.approx(max(low, jpeg.psnr_db[0])),
        pytest.approx(min(high, jpeg.psnr_db[-1])),
    )
    assert (study.anchor, own.anchor) == (anchor, usual)


def test_an_anchor_that_an_earlier_version_kept_still_opens():
    old = {"teacher": "mini", "curve": CURVE.to_json(), "interval_db": [20.0, 30.0]}
    anchor = Anchor.from_json(old)
    assert (anchor.name, anchor.teacher.name, anchor.teacher_curve) == ("teacher", "mini", CURVE)
    assert (anchor.interval_db, anchor.baselines, anchor.per_image) == ((20.0, 30.0), {}, ())
    assert old.items() <= anchor.to_json().items()
    assert anchor.similar is None
    assert Anchor.from_json(anchor.to_json()) == anchor


def test_an_anchor_keeps_what_ms_ssim_is_against():
    similar = Anchor(RDCurve(CURVE.bpp, (8.0, 10.0, 12.0, 14.0)), (9.5, 12.5), per_image=(CURVE,))
    anchor = Anchor(CURVE, (28.0, 33.0), similar=similar)
    stored = anchor.to_json()
    assert stored["ms_ssim"].keys() == {"curve", "interval_db", "per_image"}
    assert Anchor.from_json(stored) == anchor
    assert (anchor.by("bd_rate"), anchor.by("bd_rate:ms-ssim")) == (anchor, similar)


def test_an_unknown_anchor_is_named():
    with pytest.raises(StudyError, match="anchor = 'bmp': must be one of teacher, jpeg"):
        Settings("x", "demo", anchor="bmp")


@pytest.mark.thorough
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


def test_the_front_beside_published_codecs_is_refused_on_other_pictures(small):
    command = ["front", "small", "--versus", "vtm,webp"]
    said = str(CliRunner().invoke(app, command).exception)
    assert re.match(r"vtm: published on Kodak's pictures, and .* has \d picture.*, not 24", said)


def test_the_front_beside_published_codecs_on_kodak(small, monkeypatch):
    monkeypatch.setattr(report, "require_kodak", lambda images, names: None)
    found = front_against(small, "vtm,webp")
    assert set(found) == {"vtm", "webp"}
    assert all(one["source"].startswith("CompressAI") for one in found["vtm"].values())
    assert set(found["vtm"]) == {t.number for t in small.front()}
