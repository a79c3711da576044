"""Rules of the house: what may import what, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for p in (ROOT / "nas_kd").glob("*.py") if p.name != "__init__.py")
ORDER = (
    *(
        "errors",
        "cores",
        "reading",
        "objectives",
        "toml_file",
        "space",
        "macs",
        "limits",
        "points",
        "front",
        "halving",
    ),
    *("schema", "recipe", "settings"),
    *("improvement", "surrogate"),
    *("imagefile", "files"),
    *("bd", "lic", "layers"),
    *("rans", "exact", "coding", "student", "ordering", "shared", "weights", "once"),
    *(
        "distill",
        "cost",
        "meter",
        "boards",
        "meters",
        "sensor",
        "readings",
        "calibration",
        "windows",
        "energy",
        "exclusive",
        "wishes",
        "served",
        "obstacles",
        "latency",
        "passes",
        "energy_model",
        "scenes",
        "data",
        "overlap",
        "codec_energy",
        "coding_cost",
        "front_energy",
        "feed",
        "train",
        "evaluate",
        "baselines",
        "classical",
        "tiles",
        "bitstream",
        "rate",
        "onnx_export",
    ),
    *(
        "zoo",
        "teacher",
        "curves",
        "targets",
        "inherit",
        "families",
        "warmup",
        "measure",
        "gate",
        "trial",
        "pictures",
        "artifacts",
        "storage",
        "sampler",
        "study",
        "prior",
        "ranking",
        "prepare",
        "courier",
        "polish",
        "follow",
        "pace",
        "first_readings",
        "packing",
        "engine",
        "launch",
        "export",
        "uncertainty",
        "report",
        "paper",
        "figures",
        "page",
        "dashboard",
        "live",
        "doctor",
        "alone",
        "teaching",
        "api",
        "cli_common",
        "cli_study",
        "cli_codec",
        "cli_train",
        "cli_machine",
        "cli",
        "__main__",
    ),
)
ONLY_IN = {"ray": "engine", "pynvml": "meters", "fvcore": "cost", "tensorboardX": "follow"}
ONLY_IN |= {"amdsmi": "boards", "zeus_apple_silicon": "boards"}


def _imported(path: Path) -> set[str]:
    """Dotted names of what a file imports, wherever in it; ``from a import b`` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "nas_kd." + (node.module or "") if node.level else node.module or ""
            module = module.rstrip(".")
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def test_the_reader_of_imports_sees_every_kind(tmp_path: Path):
    path = tmp_path / "a.py"
    path.write_text("import ray.tune\ndef f():\n    from nas_kd import cli\n    from . import bd\n")
    assert {"ray.tune", "nas_kd.cli", "nas_kd.bd"} <= _imported(path)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_only_go_downwards(path: Path):
    assert path.stem in ORDER, f"{path.name} has no place in the order"
    own = {n.split(".")[1] for n in _imported(path) if n.startswith("nas_kd.")} & set(
        p.stem for p in MODULES
    )
    above = own - set(ORDER[: ORDER.index(path.stem)])
    assert not above, f"{path.name} imports {sorted(above)}, which stand above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_a_heavy_package_has_one_door(path: Path):
    for package in {name.split(".")[0] for name in _imported(path)} & set(ONLY_IN):
        assert path.stem == ONLY_IN[package], f"{path.name} imports {package}"


def test_the_lowest_layer_never_imports_torch():
    for stem in (
        "errors",
        "reading",
        "space",
        "macs",
        "limits",
        "front",
        "halving",
        "improvement",
        "imagefile",
        "files",
        "bd",
    ):
        tops = {name.split(".")[0] for name in _imported(ROOT / "nas_kd" / f"{stem}.py")}
        assert not tops & {"torch", "compressai", "optuna"}


def test_importing_the_package_is_light():
    code = "import sys, nas_kd; print(*{'torch', 'ray', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def _texts() -> list[Path]:
    folders = ("nas_kd", "tests", "search_spaces", "studies", "benchmarks", "docs", ".github")
    inside = [p for folder in folders for p in (ROOT / folder).rglob("*")]
    kinds = {".py", ".toml", ".md", ".yml", ".yaml", ".json", ".c", ".txt", ".cfg"}
    return [p for p in [*inside, *ROOT.glob("*")] if p.is_file() and p.suffix in kinds]


def test_no_file_is_long():
    lengths = {p.name: len(p.read_text().splitlines()) for p in MODULES}
    assert {name: n for name, n in lengths.items() if n > 500} == {}


def test_no_text_names_a_registry_host():
    # Put together here, so that this file does not name them either.
    hosts = ["py" + "pi.org", "python" + "hosted.org", "index" + "-url", "ana" + "conda.org"]
    texts = _texts()
    assert len(texts) > 20
    assert [p.name for p in texts if any(h in p.read_text().lower() for h in hosts)] == []
