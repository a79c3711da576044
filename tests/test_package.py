"""The wheel: what lies in it, and that it needs no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BESIDE = ("search_spaces", "studies")
MOST_MB = 20
ALONE = """
from pathlib import Path
import nas_kd
from nas_kd.codec.search_space import load_space
from nas_kd.places import ASSETS, TEACHERS
from nas_kd.study.settings import load_studies
assert "wheel" in nas_kd.__file__, nas_kd.__file__
assert load_space("demo").size > 1000 and load_space("search_spaces/prim.toml").size == 8
assert [s.name for s in load_studies(Path("studies/control.toml"))] == ["control"]
assert (TEACHERS / "mini" / "student.safetensors").is_file() and (ASSETS / "picture_sets.toml").is_file()
"""


def wanted() -> set[str]:
    """What the package shall hold: its own files, and two folders of the top level."""
    own = [p for p in (ROOT / "nas_kd").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    beside = {f"nas_kd/{p.relative_to(ROOT)}" for n in BESIDE for p in (ROOT / n).glob("*.toml")}
    return {str(p.relative_to(ROOT)) for p in own} | beside


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source")
    # Built elsewhere: setuptools leaves its files where it works.
    for name in (*BESIDE, "nas_kd", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.thorough
def test_the_wheel_holds_the_package_its_spaces_and_its_studies_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
    assert inside == wanted()
    assert wheel.stat().st_size < MOST_MB * 1e6
    check = [str(Path(sys.executable).parent / "check-wheel-contents"), str(wheel)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.thorough
def test_the_wheel_finds_its_spaces_studies_and_weights_far_from_any_checkout(wheel, tmp_path):
    """Unpacking is all that an installation of a pure wheel does with these files."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "wheel")
    (tmp_path / "empty").mkdir()
    env = os.environ | {"PYTHONPATH": str(tmp_path / "wheel")}
    run = [sys.executable, "-c", ALONE]
    done = subprocess.run(run, cwd=tmp_path / "empty", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_there_goes_before_one_that_comes_with_nas_kd(tmp_path, monkeypatch):
    from nas_kd.places import shipped

    monkeypatch.chdir(tmp_path)
    assert shipped(Path("studies/control.toml")) == ROOT / "studies" / "control.toml"
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "control.toml").touch()
    assert shipped(Path("studies/control.toml")) == Path("studies/control.toml")
    assert shipped(Path("studies/none.toml")) == Path("studies/none.toml")
