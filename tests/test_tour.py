"""The notebook: it runs, and what is kept of it came from a run of its own cells."""

import json
import subprocess
import sys

import pytest
from docs_pages import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


def outputs(book):
    return [one for cell in book["cells"] for one in cell.get("outputs", [])]


def pictures(book):
    return [one for one in outputs(book) if "image/png" in one.get("data", {})]


def test_the_notebook_is_kept_with_its_plots_and_without_an_error():
    book = json.loads(TOUR.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert len(pictures(book)) == 3
    assert all(one["output_type"] != "error" for one in outputs(book))
    assert TOUR.stat().st_size < 1e6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    script = "import sys, nbformat, run_tour; nbformat.write(run_tour.run(), sys.argv[1])"
    run = [sys.executable, "-c", script, str(tmp_path / "ran.ipynb")]
    subprocess.run(run, cwd=ROOT / "scripts", check=True)
    assert len(pictures(json.loads((tmp_path / "ran.ipynb").read_text()))) == 3
