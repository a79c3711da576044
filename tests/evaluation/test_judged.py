"""A student judged: several sets, per-picture tables, MS-SSIM, cost, and others beside it."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.codec.checkpoint import load_student
from nas_kd.data.images import BUILTIN, open_images
from nas_kd.errors import UsageError
from nas_kd.evaluation import judged as judging
from nas_kd.evaluation.classical import compare
from nas_kd.evaluation.published import published
from nas_kd.evaluation.rate_distortion import Measured, evaluate_real
from nas_kd.places import TEACHERS

MINI = TEACHERS / "mini"


@pytest.fixture(scope="module")
def sets(tmp_path_factory, timed_briefly) -> Path:
    """Two folders: one picture that is large enough for MS-SSIM, two of which one is not."""
    folder = tmp_path_factory.mktemp("sets")
    whole = open_images(BUILTIN, "eval").images[0]
    for name, boxes in {"one": [(176, 192)], "two": [(176, 176), (64, 96)]}.items():
        (folder / name).mkdir()
        for i, (H, W) in enumerate(boxes):
            cut = np.ascontiguousarray(whole[40 : 40 + H, 60 : 60 + W])
            Image.fromarray(cut).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def found(sets) -> judging.Judged:
    both = judging.open_sets(f"{sets / 'one'},{sets / 'two'}")
    return judging.judge(load_student(MINI), both, "jpeg")


def test_each_set_is_judged_as_it_is_alone(sets, found):
    for name, one in found.sets.items():
        images = open_images(name, "eval")
        alone = evaluate_real(load_student(MINI), images)
        assert one.measured == alone
        assert one.versus["jpeg"] == compare("jpeg", images, alone.curve())


def test_ms_ssim_rises_with_the_level_and_is_absent_where_a_picture_is_small(sets, found):
    first, second = (one.measured for one in found.sets.values())
    similar = first.mean_ms_ssim()
    assert similar == sorted(similar)
    assert 0.5 < similar[0] < similar[-1] < 1
    assert second.mean_ms_ssim() == [None] * 6
    assert [level[0] is None for level in second.ms_ssim] == [False] * 6
    raised = first.to_json()["ms_ssim_db"]
    assert raised == [pytest.approx(-10 * math.log10(1 - value)) for value in similar]


def test_points_come_back_from_json_with_and_without_ms_ssim(found):
    measured = next(iter(found.sets.values())).measured
    assert Measured.from_json(json.loads(json.dumps(measured.to_json()))) == measured
    older = {k: v for k, v in measured.to_json().items() if "ms_ssim" not in k}
    assert Measured.from_json(older).mean_ms_ssim() == [None] * 6


def test_the_table_for_other_programs_has_each_picture_and_level(sets, found):
    rows = list(csv.DictReader(judging.as_csv(found).splitlines()))
    assert tuple(rows[0]) == judging.COLUMNS
    assert len(rows) == (1 + 2) * 6
    second = found.sets[str(sets / "two")].measured
    last = rows[-1]
    assert (last["set"], last["picture"], last["level"]) == (str(sets / "two"), "1.png", "6")
    assert float(last["bpp"]) == second.rate[5][1]
    assert float(last["psnr_db"]) == second.psnr_db[5][1]
    assert last["ms_ssim"] == last["ms_ssim_db"] == ""
    assert float(rows[0]["ms_ssim"]) == next(iter(found.sets.values())).measured.ms_ssim[0][0]


def test_sets_stand_side_by_side_for_people(found):
    table = judging.in_table(found)
    assert len(table.columns) == 1 + 2 * 3
    assert table.row_count == 6 + 1
    assert [name for name in found.coding] == ["student", "jpeg"]
    assert all("encode_peak_mb" in cost for cost in found.coding.values())


def test_a_set_is_named_once_and_a_folder_may_have_a_comma(tmp_path):
    with pytest.raises(UsageError, match="builtin is named twice"):
        judging.open_sets("builtin, builtin")
    with pytest.raises(UsageError, match="'' is no folder"):
        judging.open_sets("builtin,")
    odd = tmp_path / "a,b"
    odd.mkdir()
    Image.new("RGB", (32, 32)).save(odd / "a.png")
    assert list(judging.open_sets(str(odd))) == [str(odd)]


@pytest.mark.thorough
def test_published_curves_stand_beside_the_set_that_is_kodak_and_no_other(monkeypatch, sets):
    both = judging.open_sets(f"{sets / 'one'},{sets / 'two'}")
    monkeypatch.setattr(judging, "is_kodak", lambda images: images.name.endswith("one"))
    monkeypatch.setattr(judging, "coding_cost", lambda codec, images: {})
    first, second = judging.judge(load_student(MINI), both, "vtm, elic").sets.values()
    assert first.versus["vtm"]["curve"] == published()["vtm"].curve.to_json()
    assert first.versus["vtm"]["source"].startswith("CompressAI results/image/kodak")
    assert first.versus["vtm"]["bd_rate"] or first.versus["vtm"]["reason"]
    assert second.versus["vtm"]["reason"] == "published on Kodak's pictures, and these are others"


@pytest.mark.thorough
def test_the_command_writes_prints_and_refuses(sets, tmp_path):
    table = tmp_path / "points.csv"
    words = ["eval", str(MINI), "--data", str(sets / "one")]
    said = CliRunner().invoke(app, [*words, "--csv", str(table)])
    lines = said.stdout.splitlines()
    assert lines[0] == f"{sets / 'one'}: 1 picture"
    assert [line[:7] for line in lines[1:7]] == [f"level {i}" for i in range(1, 7)]
    assert "MS-SSIM 0." in lines[1]
    assert lines[7].startswith("coding, student: 192x176, level 3: encode ")
    assert len(table.read_text().splitlines()) == 1 + 6
    lost = CliRunner().invoke(app, [*words, "--csv", "/nowhere/points.csv"])
    assert isinstance(lost.exception, UsageError)
    unknown = CliRunner().invoke(app, ["eval", "absent", "--versus", "bmp"])
    assert "'bmp' is unknown" in str(unknown.exception)
