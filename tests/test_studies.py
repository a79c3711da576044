"""Study files: every one in studies/ loads, and a grid is enumerated."""

import json
from pathlib import Path

import pytest
from optuna.trial import TrialState

from nas_kd.distill import FORMS
from nas_kd.errors import SpaceError, StudyError, UsageError
from nas_kd.points import grid_points
from nas_kd.space import load_space, prim
from nas_kd.study import Settings, Study, load_studies, open_study
from nas_kd.trial import Outcome

FILES = sorted((Path(__file__).parents[1] / "studies").glob("*.toml"))
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
        ('space = "prim"\nkd_x = 2.0', "kd_x = 2.0: must lie between"),
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


def test_a_grid_outside_its_space_is_refused():
    space = load_space("prim")
    with pytest.raises(StudyError, match="grid.width: search space prim has no such name"):
        grid_points(space, {"width": (16,)})
    with pytest.raises(SpaceError, match="N = 17 is not in"):
        grid_points(space, {"N": (17,)})


def test_a_grid_leaves_out_nothing_and_repeats_nothing():
    demo = load_space("demo")
    whole = grid_points(demo, {})
    assert len(whole) == demo.size
    some = grid_points(demo, {"hyper": (16,), "encoder_width": (8, 8)})
    assert len(some) == demo.size // 4 // 4
    assert all(p["hyper"] == 16 and p["encoder_width"] == 8 for p in some)


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
        ('["none.toml"]', "cannot be read as an arch"),
    ],
)
def test_a_bad_list_of_archs_names_the_entry(archs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        Study(load_studies(_file(tmp_path, f'space = "prim"\narchs = {archs}'))[0])
