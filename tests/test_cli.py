import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from nas_kd.cli import app, main

ROOT = Path(__file__).parents[1]


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "from nas_kd.cli import main; main()"
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def names() -> list[str]:
    commands = get_command(app).commands
    return [n for n in commands if n != "teacher"] + ["teacher train"]


@pytest.mark.parametrize("name", names())
def test_every_command_is_in_the_readme(name: str):
    assert f"nas-kd {name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["search", "--space", "nowhere", "--objectives", "flops"], "search space 'nowhere'"),
        (["search", "--space", "nowhere"], "search space 'nowhere'"),
        (["search", "--trials-per-gpu", "0"], "--trials-per-gpu 0: must be auto, or a number"),
        (["search", "--trials-per-gpu", "2", "--gpus-per-trial", "1"], "give one of them"),
        (["search", "--budget", "0"], "budget = 0"),
        (["search", "--pool", "0"], "--pool 0: must be above 0 GB"),
        (["search", "--pool", "nan"], "--pool nan: must be above 0 GB"),
        (["front", "absent"], "study 'absent'"),
        (["eval", "absent"], "absent: no codec there"),
        (["search", "--teacher", "cheng2020", "--data", "builtin"], "--teacher mini"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nas-kd", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (ended.value.code, len(said.splitlines())) == (2, 1), said
    assert says in said
    assert not list(tmp_path.iterdir())


def test_a_process_of_its_own_ends_with_that_line_and_code(tmp_path):
    done = run("search", "--pool", "0", cwd=tmp_path)  # told before torch is imported
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "--pool 0: must be above 0 GB" in done.stderr
