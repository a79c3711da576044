"""Who only looks at a study writes nothing: it may be a colleague's, or lie on a disk that cannot be written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small import NAME
from typer.testing import CliRunner

from nas_kd.cli.main import app, main
from nas_kd.study.study import Study, open_study

UNWRITABLE = "-dac_override,-dac_read_search,-fowner"
"""Without these root is held to the rights of files."""


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder below, by its time and contents."""
    found = sorted(folder.rglob("*"))
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in found}


@pytest.mark.parametrize(
    "words", [["front", NAME], ["front", NAME, "--json"], ["report", NAME, "--out"]]
)
def test_looking_at_a_study_leaves_it_as_it_was(small_folder, tmp_path, monkeypatch, words):
    monkeypatch.chdir(small_folder)
    shutil.rmtree(small_folder / "studies" / NAME / ".drivers", ignore_errors=True)
    before = tree(small_folder)
    given = [*words, str(tmp_path / "r.html")] if words[-1] == "--out" else words
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert tree(small_folder) == before


def test_a_study_that_is_opened_can_still_be_driven(small_folder, tmp_path, monkeypatch):
    shutil.copytree(small_folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    opened = open_study(NAME)
    with opened.driving():
        assert opened.ask(99) is not None
    assert opened.counted() == Study(opened.settings).counted()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["front", NAME, "--plot", "{}/a.png"], "/file/a.png: cannot be written"),
        (["report", NAME, "--out", "{}/a.html"], "/file: is a file"),
        (["export", NAME, "--out", "{}/out"], "file/out: cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    small, tmp_path, monkeypatch, capsys, words, says
):
    (tmp_path / "file").touch()
    given = [word.format(tmp_path / "file") for word in words]
    monkeypatch.setattr(sys, "argv", ["nas-kd", *given])
    monkeypatch.setattr("nas_kd.study.study.Study.front", _too_late)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (ended.value.code, len(said.splitlines())) == (2, 1), said
    assert says in said


def _too_late(self):
    raise AssertionError("the work was begun")


def test_a_search_where_no_study_can_be_made_is_told_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").touch()
    words = ["search", "--objectives", "bd_rate,flops", "--name", "a"]
    monkeypatch.setattr(sys, "argv", ["nas-kd", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (ended.value.code, len(said.splitlines())) == (2, 1), said
    assert "studies/a: cannot be written" in said


@pytest.mark.thorough
@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)
def test_a_colleagues_study_can_be_looked_at(small_folder, tmp_path):
    shutil.copytree(small_folder, tmp_path / "colleague")
    for path in (tmp_path / "colleague", *(tmp_path / "colleague").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.chown(path, 1000, 1000)
    held = ["setpriv", f"--bounding-set={UNWRITABLE}", "--inh-caps=-all"]
    code = "from nas_kd.cli.main import main; main()"
    done = subprocess.run(
        [*held, sys.executable, "-c", code, "front", NAME],
        cwd=tmp_path / "colleague",
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert "front of 4 trials" in done.stdout
