import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from nas_kd.cli.main import app, main

ROOT = Path(__file__).parents[2]


TRAIN = ("--arch", "mbt2018", "--out", "out")
FREE = ("--objectives", "bd_rate,flops")
OLD = ("--set", "from_study=old")


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "from nas_kd.cli.main import main; main()"
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
        (["search", "--trials-per-gpu", "-1"], "--trials-per-gpu -1: must be auto, a number"),
        (["search", "--budget", "0"], "--budget 0: must be at least 1"),
        (["search", "--budget", "-3"], "--budget -3: must be at least 1"),
        (["search", "--workers", "0"], "--workers 0: must be at least 1"),
        (["search", *FREE, "--steps", "-1"], "steps = -1: must be a whole number of at least 0"),
        (["search", *FREE, "--data", "/nowhere"], "data '/nowhere' is no folder"),
        (["search", *FREE, "--eval-data", "/nowhere"], "eval_data '/nowhere' is no folder"),
        (["search", *FREE, "--set", "from_study=old"], "study 'old': there is none in studies/"),
        (["search", *FREE, "--name", "../up"], "name = '../up': must be a folder's name"),
        (["search", *FREE, "--teacher", "no"], "teacher 'no': neither a folder, nor a file"),
        (["search", *FREE, "--teacher", "mbt2018:9"], "quality must be 1 to 6"),
        (["search", "nosuch.toml"], "nosuch.toml: there is no such file"),
        (["search", "--set", "lr"], "--set lr: must be KEY=VALUE, such as"),
        (["search", "--set", "kd-y=1"], "there is no key 'kd-y'; did you mean kd_y?"),
        (["search", "--set", "name=a"], "there is no key 'name'; the keys are space, teacher"),
        (["search", "--steps", "1", "--set", "steps=2"], "--set steps=2: steps is given twice"),
        (["search", *FREE, "--set", "optimiser=sgd"], "optimiser = 'sgd': must be one of adam"),
        (["search", *FREE, "--set", "kd_y=x"], "kd_y = 'x': must be a number of at least 0"),
        (
            ["search", *FREE, "--set", "early_stopping=2"],
            "early_stopping = 2: must be true or false",
        ),
        (["cache", "--limit", "0"], "--limit 0: must be above 0 GB"),
        (["cache", "--limit", "nan"], "--limit nan: must be above 0 GB"),
        (["front", "absent"], "study 'absent'"),
        (["warmup", "--set", "data=/nowhere"], "data '/nowhere' is no folder"),
        (["warmup", "--set", "warmup=-1"], "warmup = -1: must be a whole number of at least 0"),
        (["teacher", "train", *TRAIN, "--lr", "0"], "lr = 0.0: must be a number above 0"),
        (["measure", "absent"], "absent: there is no such file or folder"),
        (["eval", "absent"], "absent: no codec there (no such folder); give a folder that"),
        (["search", *FREE, "--teacher", "cheng2020", "--data", "builtin"], "--teacher mini"),
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
    done = run("search", "--workers", "0", cwd=tmp_path)  # told before torch is imported
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "--workers 0: must be at least 1" in done.stderr


LOOK = """
import runpy, sys
sys.argv = ["nas-kd", *sys.argv[1:]]
try:
    runpy.run_module("nas_kd", run_name="__main__")
finally:
    print(*sorted({"torch", "ray", "optuna", "scipy", "compressai"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["search", "--budget", "-3"], ["--budget -3: must be at least 1"]),
        (["front", "absent", "--json"], ["study 'absent': there is none in studies/"]),
        (
            ["search", "--teacher", "cheng2020", "--space", "no", "--data", "no", *OLD],
            [
                "things stand in the way",
                "study 'old': there is none",
                "data 'no' is no folder",
                "search space 'no': no such file",
                "lacking here: teacher cheng2020 (cheng2020-anchor-1-dad2ebff.pth.tar and 5 more",
            ],
        ),
    ],
)
def test_a_refusal_tells_all_at_once_and_imports_nothing_heavy(words, says, tmp_path):
    env = os.environ | {"TORCH_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-c", LOOK, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert [done.stderr.find(one) for one in says] == sorted(done.stderr.find(one) for one in says)
    assert all(one in done.stderr for one in says), done.stderr
    assert done.stdout.strip() == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_ends_with_130_and_says_how_to_go_on(stop, tmp_path):
    code = (
        # A shell that runs the tests in the background has its children ignore SIGINT.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import sys, time, nas_kd.study.obstacles; sys.argv = ['nas-kd', 'search'];"
        "nas_kd.study.obstacles.require_clear = lambda *_: (print('here', flush=True), time.sleep(60));"
        "from nas_kd.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout.readline() == "here\n"
        time.sleep(0.1)
        process.send_signal(stop)
        _, said = process.communicate(timeout=60)
    assert said == "nas-kd: stopped; run the same command again to go on\n"
    assert process.returncode == 130


def test_completion_can_be_installed(tmp_path):
    env = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "nas_kd", "--install-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "completion installed" in done.stdout
    assert (tmp_path / ".bashrc").is_file()


def test_the_list_of_commands_cuts_no_help_off():
    said = CliRunner().invoke(app, ["--help"]).output
    commands = said.partition("Commands:")[2]
    assert "..." not in commands
    assert "always as PNG." in " ".join(commands.split())
