"""The script for a GPU machine, with a Python that only says what it was given."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough
ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
STUB = """#!/bin/bash
echo "$@" >> "$CALLS"
case "$*" in *distill.py*) exit 3;; *train_family.py*) sleep 30;; *front.json) exit "${FRONT:-0}";; esac
"""
PARTS = (
    *("machine", "search", "front", "graphs-tests"),
    *("graphs", "figures", "laws", "train"),
)


def _ran(tmp_path: Path, **env: str):
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    given = {"PYTHON": str(python), "CALLS": str(tmp_path / "calls"), "OUT": str(tmp_path / "out")}
    return subprocess.run(
        ["bash", str(SCRIPT)],
        cwd=ROOT,
        env=os.environ | given | env,
        capture_output=True,
        text=True,
        timeout=25,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    return _ran(folder, TOTAL_S="5"), (folder / "calls").read_text(), folder / "out"


def test_every_part_runs_in_its_order_whatever_became_of_those_before(ran):
    done, calls, out = ran
    told = [line.split()[1].rstrip(":") for line in done.stdout.splitlines() if "at most" in line]
    assert tuple(told) == PARTS
    assert "== graphs: exit code 3" in done.stdout
    assert done.returncode == 1
    assert {f"{name}.log" for name in PARTS} <= {file.name for file in out.iterdir()}
    words = (
        "search --name gpu",
        "front gpu",
        "test_graphs",
        "--parts graphs,packed",
        "test_energy_gpu",
    )
    places = [calls.index(word) for word in (*words, "train_family.py --further")]
    assert places == sorted(places)


def test_a_search_without_a_front_is_tried_once_more_with_one_trial_at_a_time(tmp_path):
    done = _ran(tmp_path, TOTAL_S="3", FRONT="1")
    told = [line.split()[1].rstrip(":") for line in done.stdout.splitlines() if "at most" in line]
    assert tuple(told) == (*PARTS[:3], "search-alone", *PARTS[3:])
    calls = (tmp_path / "calls").read_text()
    assert calls.count("search --name alone --workers 1") == 1
    assert calls.count("objectives") == 2


def test_the_whole_ends_in_its_time_with_the_last_part_cut_short(ran):
    done, _, _ = ran
    assert "== train: exit code 124" in done.stdout


def test_the_scripts_that_it_calls_are_there(ran):
    _, calls, _ = ran
    named = [word for word in calls.split() if word.endswith(".py")]
    assert len(named) >= 4
    assert all((ROOT / name).exists() for name in named)
