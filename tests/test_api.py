import ast
import inspect
import os
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import pytest
import torch
from compressai.models import CompressionModel
from compressai.utils.plot.__main__ import main as plot
from tiny_codec import tiny

import nas_kd
from nas_kd.codec.checkpoint import save_student
from nas_kd.errors import MeterError
from nas_kd.files import write_text
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.reading import Reading
from nas_kd.report.export import rd_file

ROOT = Path(__file__).parents[1]


FUNCTIONS = {
    "load_student": ["folder"],
    "search": ["settings", "budget", "workers", "storage", "listen", "root"],
    "front": ["study", "storage"],
    "distill": ["arch", "out", "settings", "root"],
    "evaluate": ["student", "data"],
    "measure": ["path", "quick"],
}
CLASSES = {"Arch", "Member", "Settings", "Study"}


def test_the_public_face_is_this():
    assert set(nas_kd.__all__) == {"__version__", *FUNCTIONS, *CLASSES}
    for name, parameters in FUNCTIONS.items():
        function = getattr(nas_kd, name)
        assert list(inspect.signature(function).parameters) == parameters
        assert function.__doc__
        assert "return" in typing.get_type_hints(function), name
        assert set(parameters) < set(typing.get_type_hints(function)), name


@pytest.mark.thorough
def test_a_name_is_the_function_before_and_after_its_module_is_imported():
    code = (
        "import nas_kd, sys; a = nas_kd.front; from nas_kd.study.front import dominates;"
        "import nas_kd.measurement.codec_report, nas_kd.distillation;"
        "from nas_kd import front, measure, distill, evaluate;"
        "print(a is front, *(f.__module__ for f in (front, measure, distill, evaluate)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["True", *["nas_kd.api"] * 4], done.stderr


def test_the_front_is_the_studys(small):
    members = nas_kd.front(small)
    assert members == nas_kd.front(small.settings.name)
    assert [m.trial for m in members] == [t.number for t in small.front()]
    assert members[0].values == {"bd_rate": 30.0, "flops": 5e9}
    assert nas_kd.load_student(members[0].student).arch == members[0].arch


def test_evaluate_takes_a_student_or_its_folder(small, tmp_path: Path):
    save_student(tiny("mean-scale"), tmp_path)
    found = nas_kd.evaluate(tmp_path, small.settings.eval_data)
    assert found == nas_kd.evaluate(nas_kd.load_student(tmp_path), small.settings.eval_data)
    assert found.kind == "bpp"


def test_energy_without_a_meter_stops_a_search_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not isinstance(find_meter("cpu"), Reading) or torch.cuda.is_available():
        pytest.skip("there is a meter")
    with pytest.raises(MeterError, match="energy cannot be measured here"):
        nas_kd.search(nas_kd.Settings("none", "demo"))
    assert not list(tmp_path.iterdir())


def readme_example() -> str:
    """The indented code block of the README's section "In Python"."""
    section = (ROOT / "README.md").read_text().partition("## In Python")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("    ") or not line]
    return textwrap.dedent("\n".join(lines)).strip()


def test_the_readmes_example_compiles_and_uses_public_names_alone():
    tree = ast.parse(readme_example())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "nas_kd"
    }
    assert {"search", "front", "load_student", "evaluate"} <= used <= set(nas_kd.__all__)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_readmes_example_runs(tmp_path: Path):
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["RAY_ADDRESS"] = "local"  # whatever cluster runs here
    command = [sys.executable, "-c", readme_example()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    rates = done.stdout.splitlines()[-1].partition(")")[0].strip("(").split(",")
    assert [float(r) for r in rates] == sorted(float(r) for r in rates)
    assert len(rates) == 6


def test_load_student_gives_a_compression_model_of_compressai(tmp_path: Path):
    save_student(tiny("mean-scale"), tmp_path)
    model = nas_kd.load_student(tmp_path)
    assert isinstance(model, CompressionModel)
    assert model.coder is not None


def test_the_package_alone_imports_no_torch():
    code = "import sys, nas_kd; nas_kd.__version__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_compressais_plot_reads_a_result_file(tmp_path: Path):
    points = {"bpp": [0.1, 0.2, 0.4], "psnr_db": [28.0, 30.0, 32.0]}
    write_text(tmp_path / "rd.json", rd_file("a student", points, {}))
    plot(["-f", str(tmp_path / "rd.json"), "-o", str(tmp_path / "plot.png")])
    assert (tmp_path / "plot.png").stat().st_size > 5000
