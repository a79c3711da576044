"""The notebook: it runs, and what is kept of it came from a run of its own cells."""

import ast
import json
import subprocess
import sys

import pytest
from docs_pages import ROOT

import nas_kd

TOUR = ROOT / "docs" / "tour.ipynb"


def outputs(book):
    return [one for cell in book["cells"] for one in cell.get("outputs", [])]


def pictures(book):
    return [one for one in outputs(book) if "image/png" in one.get("data", {})]


def cells():
    book = json.loads(TOUR.read_text())
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def test_the_cells_use_public_names_alone():
    trees = [ast.parse("".join(cell["source"])) for cell in cells()]
    named = {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "nas_kd"
    }
    assert {"search", "front", "load_student", "evaluate"} <= named <= set(nas_kd.__all__)


def test_what_is_kept_of_a_run_has_no_error_and_is_small():
    assert all(one["output_type"] != "error" for one in outputs({"cells": cells()}))
    assert TOUR.stat().st_size < 1e6


@pytest.mark.skipif(
    all(cell["execution_count"] is None for cell in cells()),
    reason="kept without outputs: python scripts/run_tour.py",
)
def test_the_notebook_is_kept_with_its_plots():
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    assert len(pictures({"cells": cells()})) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    script = "import sys, nbformat, run_tour; nbformat.write(run_tour.run(), sys.argv[1])"
    run = [sys.executable, "-c", script, str(tmp_path / "ran.ipynb")]
    subprocess.run(run, cwd=ROOT / "scripts", check=True)
    assert len(pictures(json.loads((tmp_path / "ran.ipynb").read_text()))) == 3
