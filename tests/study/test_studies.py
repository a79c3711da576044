"""Study files: every one in studies/ loads, and a grid is enumerated."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from pydantic import TypeAdapter

from nas_kd.codec.arch import load_arch, prim
from nas_kd.codec.search_space import _find, load_space
from nas_kd.errors import SpaceError, StudyError, UsageError
from nas_kd.recipe import FORMS
from nas_kd.schema import in_words
from nas_kd.study.grid import grid_points
from nas_kd.study.record import Outcome
from nas_kd.study.settings import Settings, load_studies
from nas_kd.study.study import Study, open_study

FILES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))
EACH = """
space = "prim"
steps = 5
[grid]
N = [16, 64]
[[each]]
name = "a"
kd_y = 0.5
[[each]]
name = "b"
steps = 6
"""


def _file(folder: Path, text: str) -> Path:
    (folder / "f.toml").write_text(text)
    return folder / "f.toml"


def _widths(settings: Settings) -> list[int]:
    space = load_space(settings.space)
    return [point["N"] for point in grid_points(space, dict(settings.grid))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_study_file_loads_and_its_grid_lies_in_its_space(path: Path):
    for settings in load_studies(path):
        assert settings.name.startswith(path.stem)
        assert settings.objectives == ("rd_cost", "flops")
        space = load_space(settings.space)
        archs = [space.arch(p) for p in grid_points(space, dict(settings.grid))]
        assert archs == [prim(N) for N in _widths(settings)]


def test_the_papers_experiments_are_all_there():
    """Section 3 of arXiv 2509.10366: widths, lambdas and teachers, weights, and what the loss compares."""
    found = {path.stem: load_studies(path) for path in FILES}
    assert set(found) == {"control"} | {
        f"prim-{what}"
        for what in ("channels", "lambda", "weights", "kld", "hyper", "hybrid", "corrected")
    }
    channels = found["prim-channels"][0]
    assert (_widths(channels), channels.loss.rest) == ([16, 32, 64, 96, 112], pytest.approx(0.6))
    lambdas = [(s.teacher[-1], s.lmbda) for s in found["prim-lambda"]]
    values = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250)
    assert lambdas == [(q, lmbda) for q in "51" for lmbda in values]
    triples = [
        (s.kd_y, s.kd_x, round(s.loss.rest, 6)) for s in found["prim-weights"] if s.form == "paper"
    ]
    assert triples == [(0.1, 0.1, 0.8), (0.2, 0.2, 0.6), (0.3, 0.3, 0.4), (0.4, 0.4, 0.2)]
    assert {s.form for s in found["prim-kld"]} == {"paper-kld"}
    hyper, hybrid = found["prim-hyper"][0], found["prim-hybrid"][0]
    assert hyper.loss == hybrid.loss
    assert (hyper.kd_z, round(hyper.loss.rest, 6)) == (0.2, 0.4)
    assert (hybrid.teacher, hybrid.teacher_z[-2:]) == ("bmshj2018-hyperprior:5", ":1")
    assert not any(s.loss.needs_teacher for s in found["control"])
    assert _widths(found["control"][0]) == _widths(channels)
    corrected = {s.name.removeprefix("prim-corrected-"): s for s in found["prim-corrected"]}
    assert not corrected.pop("control").loss.needs_teacher
    assert corrected.pop("ours").loss == found["prim-channels"][1].loss
    assert {s.form for s in corrected.values()} == set(FORMS) - {"kd", "paper-kld"}
    assert {(s.kd_y, s.kd_x, s.kd_z, s.lr, s.steps) for s in corrected.values()} == {
        (0.2, 0.2, 0.0, channels.lr, channels.steps)
    }
    without_z = ("prim-channels", "prim-lambda", "prim-kld", "prim-weights")
    assert {s.kd_z for name in without_z for s in found[name] if s.form != "kd"} == {0.0}


def test_one_file_may_hold_several_studies(tmp_path: Path):
    a, b = load_studies(_file(tmp_path, EACH), given={"seed": 3})
    assert (a.name, a.steps, a.kd_y, a.seed) == ("f-a", 5, 0.5, 3)
    assert (b.name, b.steps, b.kd_y, b.seed) == ("f-b", 6, 0.05, 3)
    assert [s.name for s in load_studies(tmp_path / "f.toml", "mine")] == ["mine-a", "mine-b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "space is missing"),
        ('space = "prim"\nstep = 3', "step: no such key; the keys are"),
        ('space = "prim"\nform = "mse"', "form = 'mse': must be"),
        ('space = "prim"\nkd_x = 2.0', "kd_x = 2.0: must be a number from 0 to 1"),
        ('space = "prim"\ngrid = 3', "grid = 3: must be a table of lists"),
        ('space = "prim"\ngrid = { N = 3 }', "must be a table of lists"),
        ('space = "prim"\neach = 3', r"written \[\[each\]\]"),
        ('space = "prim"\n[[each]]\n[[each]]', "needs a name of its own"),
        ('space = "prim"\n[[each]]\nname="a"\n[[each]]\nname="a"', "needs a name of its own"),
    ],
)
def test_a_study_file_that_breaks_a_rule_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        load_studies(_file(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("objectives", "5", "a list of one or more of bd_rate, flops, energy, rd_cost"),
        ("objectives", '"flops"', "a list of one or more of bd_rate"),
        ("objectives", "[]", "a list of one or more of bd_rate"),
        ("data", "3", "a text"),
        ("steps", '"0"', "a whole number of at least 0"),
        ("steps", "1.5", "a whole number of at least 0"),
        ("steps", "true", "a whole number of at least 0"),
        ("seed", '"a"', "a whole number from 0"),
        ("seed", "-1", "a whole number from 0"),
        ("early_stopping", '"false"', "true or false"),
        ("early_stopping", "1", "true or false"),
        ("crop_size", "100", "a multiple of 64"),
        ("crops", "15", "a whole number of at least 16"),
        ("lr", "nan", "a number above 0"),
        ("lr", "inf", "a number above 0"),
        ("kd_y", '"x"', "a number of at least 0"),
        ("max_gmac", "[1]", "a number above 0, or sides"),
        ("max_mj", "true", "a number above 0, or sides"),
        ("warmup", "-1", "a whole number of at least 0"),
        ("lmbda", "0", "a number above 0"),
        ("anchor", '"bmp"', "one of teacher, jpeg"),
        ("from_study", '"../a"', "a folder's name"),
        ("checkpoint_s", "2026-01-01", "a number of at least 0"),
        ("grid", '{ N = "abc" }', "a table of lists"),
        ("grid", "{ N = [] }", "a table of lists"),
    ],
)
def test_a_value_of_another_type_or_range_is_one_line_with_file_key_value_and_rule(
    tmp_path: Path, key: str, value: str, rule: str
):
    path = _file(tmp_path, f'space = "prim"\n{key} = {value}')
    with pytest.raises(StudyError) as caught:
        load_studies(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: {key} = ")
    assert rule in said
    assert "\n" not in said


def test_every_key_that_breaks_a_rule_is_told_at_once(tmp_path: Path):
    text = 'space = "demo"\nearly_stopping = "false"\nseed = "a"\nsteps = 1.5'
    with pytest.raises(StudyError) as caught:
        load_studies(_file(tmp_path, text))
    for said in ("early_stopping = 'false'", "seed = 'a'", "steps = 1.5"):
        assert said in str(caught.value)


def test_only_what_stands_in_the_file_is_told_of_the_file(tmp_path: Path):
    path = _file(tmp_path, "steps = 5")
    assert load_studies(path, given={"space": "prim"})[0].space == "prim"
    with pytest.raises(StudyError, match="^steps = -3: must be"):
        load_studies(path, given={"space": "prim", "steps": -3})


def test_every_key_of_the_settings_has_a_rule_in_words_and_goes_to_json_and_back():
    changed = {
        **{"objectives": ("flops",), "steps": 1, "batch": 3, "lr": 0.5, "kd_x": 1, "kd_y": 0.0},
        **{"kd_z": 0.5, "form": "kd", "init": "scratch", "warmup": 3, "crops": 16, "seed": 4},
        **{"crop_size": 64, "max_gmac": "decoder=2", "max_mj": 3, "archs": [{"N": 16}]},
        **{"grid": {"N": [16, 32], "on": [False, True]}, "lmbda": 0.01, "early_stopping": True},
    }
    settings = Settings("s", "prim", **changed)
    assert Settings(**json.loads(json.dumps(settings.to_json()))) == settings
    assert dict(settings.grid)["on"] == (False, True)
    for key, schema in TypeAdapter(Settings).json_schema()["properties"].items():
        assert in_words(schema), key
        assert schema["title"][0].islower(), key  # what it means, not pydantic's own title


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such file"),
        ("folder", "is a folder"),
        (b"space = \xff", "is no UTF-8 text"),
        (b"space = ", "cannot be read as TOML"),
    ],
)
@pytest.mark.parametrize("load", [load_studies, load_space, load_arch])
def test_a_file_that_cannot_be_read_is_one_line(load, content, says, tmp_path: Path):
    path = tmp_path / "f.toml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "Errno" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path):
    path = _file(tmp_path, '\ufeffspace = "prim"')
    assert load_studies(path)[0].space == "prim"
    path.write_text("\ufeff" + _find("prim").read_text())
    assert load_space(path).vary == load_space("prim").vary


def test_a_grid_outside_its_space_is_refused():
    space = load_space("prim")
    with pytest.raises(StudyError, match="grid.width: search space prim has no such name"):
        grid_points(space, {"width": (16,)})
    with pytest.raises(SpaceError, match="N = 17 is not in"):
        grid_points(space, {"N": (17,)})


def test_a_grid_leaves_out_nothing_and_repeats_nothing():
    demo = load_space("demo")
    demo = replace(demo, vary={name: choices[:2] for name, choices in demo.vary.items()})
    whole = grid_points(demo, {})
    assert len(whole) == demo.size
    some = grid_points(demo, {"hyper": (32,), "encoder_width_1": (32, 32)})
    assert len(some) == demo.size // 2 // 2
    assert all(p["hyper"] == 32 and p["encoder_width_1"] == 32 for p in some)


@pytest.mark.thorough
def test_a_grid_is_tried_point_by_point_and_a_crash_is_tried_again(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings("s", "prim", objectives=("flops",), grid={"N": [16, 32, 64]})
    study = Study(settings)
    first, crashing = study.ask(3), study.ask(3)
    study.tell(first[0], Outcome([1.0]))
    study.tell(crashing[0], Outcome(None, "crash"))
    assert study.ask(3)[1] == crashing[1]  # and is interrupted
    study = Study(settings)
    assert study.reap() == 1
    third, last = study.ask(3), study.ask(3)
    assert [third[1], last[1]] == [prim(32), prim(64)]
    for number, _ in (third, last):
        study.tell(number, Outcome([2.0]))
    assert (study.counted(), study.ask(99)) == (3, None)
    done = [t.params["N"] for t in study.trials if t.state == TrialState.COMPLETE]
    assert done == [16, 32, 64]


def test_the_budget_of_a_grid_is_its_size(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sampled = Study(Settings("a", "prim", objectives=("flops",)))
    assert (sampled.affordable(None), sampled.affordable(99)) == (20, 99)
    grid = Study(Settings("b", "prim", objectives=("flops",), grid={"N": [16, 32]}))
    assert [grid.affordable(n) for n in (None, 1, 99)] == [2, 1, 2]


def test_a_list_of_archs_is_tried_in_its_order_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = json.dumps({"arch": prim(96).to_json()})
    (tmp_path / "arch.json").write_text(student)
    text = 'space = "prim"\nobjectives = ["rd_cost", "flops"]\narchs = [{N = 32}, "arch.json", {N = 16}]'
    (settings,) = load_studies(_file(tmp_path, text))
    study = Study(settings)
    assert study.affordable(None) == 3
    asked = []
    while (trial := study.ask(study.affordable(None))) is not None:
        study.tell(trial[0], Outcome([1.0, 1.0]))
        asked.append(trial[1])
    assert asked == [prim(32), prim(96), prim(16)]
    (tmp_path / "arch.json").unlink()
    assert open_study("f").settings == settings  # the study holds the archs themselves


@pytest.mark.parametrize(
    ("archs", "message"),
    [
        ("3", "must be a list of tables"),
        ("[]", "must be a list of tables"),
        ("[3]", "must be a table of choices or the name"),
        ("[{N = 17}]", "N = 17 is not in"),
        ("[{N = 16, K = 3}]", "has no K"),
        ('["none.toml"]', "none.toml: there is no such file"),
    ],
)
def test_a_bad_list_of_archs_names_the_entry(archs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        Study(load_studies(_file(tmp_path, f'space = "prim"\narchs = {archs}'))[0])
