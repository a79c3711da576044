"""``--set KEY=VALUE``, its list in the help and on the page, and what replaced older options."""

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nas_kd.cli.main import app, main
from nas_kd.cli.settings import given, replaced
from nas_kd.errors import UsageError
from nas_kd.recipe import Recipe, Weights
from nas_kd.schema import keys
from nas_kd.study.settings import Settings
from scripts.list_settings import table

ROOT = Path(__file__).parents[2]
OLD = [
    ("search --kd-y 0.1", "--kd-y 0.1: now --set kd_y=0.1"),
    ("search --kd-x=0.5", "--kd-x 0.5: now --set kd_x=0.5"),
    ("search --lambda 0.02", "--lambda 0.02: now --set lmbda=0.02"),
    ("search --crop-size 128", "--crop-size 128: now --set crop_size=128"),
    ("search --from old", "--from old: now --set from_study=old"),
    ("search --weights 'my zoo'", "--weights my zoo: now --set 'weights=my zoo'"),
    ("search --early-stop --quiet", "--early-stop: now --set early_stopping=true"),
    ("search --polish", "--polish: now --set polish="),
    ("search --gpus-per-trial 0.5", "--gpus-per-trial 0.5: now --trials-per-gpu 2"),
    ("search --gpus-per-trial 0", "--gpus-per-trial 0: now --trials-per-gpu 0"),
    ("search --gpus-per-trial x", "--gpus-per-trial x: now --trials-per-gpu N, the number"),
    ("search --pool 20", "--pool 20: now nas-kd cache --limit 20, which holds"),
    ("search --rank 9 --lr 1", "--rank 9: now --set rank=9; --lr 1: now --set lr=1"),
    ("warmup --steps 9", "--steps 9: now --set warmup=9"),
    ("warmup --study s", "--study s: now nas-kd warmup s"),
    ("distill --teacher t", "--teacher t: now --set teacher=t"),
    ("distill --study s.toml", "--study s.toml: now nas-kd distill s.toml"),
    ("table s --paper --untrained", "table s --paper --untrained: now nas-kd paper s --untrained"),
]


@pytest.mark.parametrize(("line", "says"), OLD)
def test_an_option_of_an_earlier_version_says_what_to_write_now(line, says, monkeypatch, capsys):
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)]
    monkeypatch.setattr(sys, "argv", ["nas-kd", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert says in said


def test_every_option_that_is_gone_sets_a_key_that_is_there():
    names = {one.name for one in keys(Settings)}
    gone = ["weights", "lambda", "teacher-z", "init", "warmup", "rank", "batch", "lr", "crops"]
    gone += ["crop-size", "anchor", "kd-x", "kd-y", "kd-z", "form", "sampler", "from", "polish"]
    for option in gone:
        (said,) = replaced("search", [f"--{option}", "1"])
        assert re.search(r"now --set (\w+)=1$", said)[1] in names
    assert not replaced("search", ["--space", "demo", "--steps", "3", "--set", "kd_y=0.1"])


def test_an_option_that_a_command_still_has_is_left_alone():
    assert not replaced("search", ["--teacher", "mini", "--max-gmac", "decoder=2", "--seed", "1"])
    assert not replaced("distill", ["--arch", "a.toml", "--out", "o", "--storage", "sqlite://"])


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("kd_y=.5", 0.5),
        ("lr=1e-4", 1e-4),
        ("warmup=0", 0),
        ("early_stopping=true", True),
        ("data=2024", "2024"),
        ("weights=a=b", "a=b"),
        ("max_gmac=decoder=2", "decoder=2"),
        ("max_gmac=2.5", 2.5),
        ("objectives=bd_rate,flops", ["bd_rate", "flops"]),
        ("grid={N = [16, 32]}", {"N": [16, 32]}),
        ("archs=a.toml,b.json", ["a.toml", "b.json"]),
        ("steps = 7 ", 7),
    ],
)
def test_a_value_is_read_as_its_key_wants_it(pair, value):
    assert given([pair]) == {pair.partition("=")[0].strip(): value}


def test_what_is_set_is_what_the_study_has():
    asked = given(["grid={N = [16, 32]}", "max_mj=decoder=3", "kd_x=1"], space="prim", seed=None)
    study = Settings(name="s", **asked)
    assert (study.grid, study.max_mj, study.kd_x) == ((("N", (16, 32)),), "decoder=3", 1)
    assert study.seed == Settings("s", "prim").seed


@pytest.mark.parametrize("asked", ["lpips", "bd_rate:lpips,flops"])
def test_whoever_asks_for_lpips_hears_why_there_is_none(asked, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nas-kd", "search", "--objectives", asked])
    with pytest.raises(SystemExit) as ended:
        main()
    (said,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "LPIPS is absent, for no package carries its weights; take bd_rate:ms-ssim" in said
    assert not list(tmp_path.iterdir())


def test_a_value_of_two_lines_is_no_second_key():
    with pytest.raises(UsageError, match="steps = '1.*must be a whole number"):
        Settings("s", "prim", **given(["steps=1\nlr=2"]))


@pytest.mark.parametrize("command", ["search", "warmup", "distill"])
def test_the_help_lists_every_key_with_default_values_and_meaning(command):
    def unbroken(text: str) -> str:
        return "".join(text.split())  # lines break at hyphens, too

    said = unbroken(CliRunner().invoke(app, [command, "--help"]).output)
    for one in keys(Settings):
        if one.name != "name":
            assert unbroken(f"{one.name} {one.meaning}") in said
            assert unbroken(one.values) in said


def test_the_page_has_the_table_of_the_schema():
    assert table() in (ROOT / "docs" / "commands.md").read_text()


def test_the_defaults_of_loss_and_training_stand_once():
    study = Settings("s", "prim")
    assert study.loss == Weights()
    assert study.recipe(5) == Recipe(5)
