"""``nas-kd search --plan``, and the plan in short at the start of a search."""

import json
import sys
from pathlib import Path

import pytest

from nas_kd.cli.main import main
from nas_kd.study import forecast as forecasting

SMALL = ("--set", "batch=1", "--set", "crop_size=64", "--set", "crops=16")
FREE = ("--objectives", "bd_rate,flops")


@pytest.fixture
def nas_kd(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder: its exit code, what it printed, what it complained of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(forecasting, "measured_step_s", lambda *given: 0.1)

    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["nas-kd", "search", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def test_a_plan_says_everything_and_writes_nothing(nas_kd):
    code, out, err = nas_kd(*FREE, *SMALL, "--budget", "3", "--workers", "1", "--plan")
    assert (code, err) == (0, "")
    begins = ["study demo-mini:", "to fetch: nothing", "space demo: 36864 archs", "trials: 3 of"]
    begins += ["stages: ", "teacher mini: kMAC/px", "measured: 100 ms a step", "time: about "]
    lines = [line.strip() for line in out.splitlines()]
    assert [line.startswith(part) for line, part in zip(lines, begins, strict=False)] == [True] * 8
    assert lines[-1].startswith("disk: about ")
    assert not list(Path().iterdir())


def test_a_plan_of_a_zoo_teacher_names_what_is_lacking_and_what_is_in_the_way(nas_kd):
    zoo = ("--teacher", "bmshj2018-hyperprior", "--effort", "quick", "--space", "prim")
    code, out, err = nas_kd(*zoo, *FREE, "--plan")
    assert code == 2
    assert "too few to learn from it; give --data clic-train" in err
    assert "to fetch: teacher bmshj2018-hyperprior (bmshj2018-hyperprior-1-" in out
    assert "20 archs ranked by their slices" in out
    assert "150 steps" in out
    assert "time: about " in out
    assert not list(Path().iterdir())


def test_a_plan_in_json_is_one_object_for_each_study(nas_kd, tmp_path):
    file = 'space = "demo"\nobjectives = ["flops"]\n[[each]]\nname = "a"\n[[each]]\nname = "b"\n'
    (tmp_path / "f.toml").write_text(file)
    code, out, _ = nas_kd("f.toml", *SMALL, "--plan", "--json")
    plans = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(one["event"], one["study"]) for one in plans] == [("plan", "f-a"), ("plan", "f-b")]
    assert plans[0]["plan"][0] == "to fetch: nothing"


@pytest.mark.parametrize(
    ("words", "begins"), [((), "study demo-mini:\n  space demo: "), (("--quiet",), "")]
)
def test_a_search_begins_with_the_plan_in_short_unless_it_is_quiet(
    words, begins, nas_kd, monkeypatch
):
    monkeypatch.setattr("nas_kd.cli.search._search", lambda *given: None)
    code, out, _ = nas_kd(*FREE, *words)
    assert code == 0
    assert out.startswith(begins)
    assert bool(out) == bool(begins)


def test_an_effort_that_is_none_is_refused(nas_kd):
    code, _, err = nas_kd("--effort", "weekend")
    assert (code, err) == (2, "nas-kd: --effort weekend: must be one of quick, hour, night\n")
