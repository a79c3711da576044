import os
import threading
import time
from pathlib import Path

import pytest

import nas_kd
from nas_kd.files import (
    build_once,
    is_unfinished,
    replacing,
    replacing_folder,
    write_bytes,
    write_text,
)


def test_two_that_need_a_folder_at_once_make_it_once(tmp_path):
    built = []

    def build(folder):
        built.append(folder)
        time.sleep(0.05)
        (folder / "a").write_text("whole")

    both = [threading.Thread(target=build_once, args=(tmp_path / "f", build)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert (len(built), (tmp_path / "f" / "a").read_text()) == (1, "whole")


def test_what_a_killed_attempt_left_is_no_folder_and_the_next_attempt_finds_it(tmp_path):
    def killed(folder):
        (folder / "part").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "f", killed)
    assert not (tmp_path / "f").exists()
    seen = []
    build_once(tmp_path / "f", lambda folder: seen.extend(folder.iterdir()))
    assert [file.name for file in seen] == ["part"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "f.lock"]


def test_a_folder_that_is_not_whole_is_built_anew(tmp_path):
    (tmp_path / "f").mkdir()
    build_once(tmp_path / "f", lambda f: (f / "a").touch(), lambda f: (f / "a").is_file())
    assert (tmp_path / "f" / "a").is_file()


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    write_text(tmp_path / "a.txt", "nöu")
    assert (tmp_path / "a.txt").read_bytes() == "nöu".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("ends", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, ends):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ends):
        _fail(replacing(tmp_path / "a"), lambda temporary: temporary.write_text("half"), ends)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old"}


def _fail(place, write, error):
    with place as temporary:
        write(temporary)
        raise error


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(os.fstat(fd).st_size))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("renamed"), rename(*paths)))
    write_bytes(tmp_path / "a", b"four")
    write_bytes(tmp_path / "b", b"four", lasting=False)
    build_once(tmp_path / "f", lambda folder: (folder / "c").write_text("three"))
    assert calls == [4, "renamed", "renamed", 5, "renamed"]


def test_a_temporary_name_is_hidden_no_other_writers_and_ends_as_the_file_does(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")  # as long as a name may be
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        assert is_unfinished(one)
        assert (one.parent, one.suffix) == (path.parent, ".png")
        one.touch()
        other.touch()
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole_or_stays_as_it_was(tmp_path):
    with replacing_folder(tmp_path / "f") as temporary:
        (temporary / "old").touch()
    with pytest.raises(KeyboardInterrupt):
        _fail(replacing_folder(tmp_path / "f"), lambda f: (f / "half").touch(), KeyboardInterrupt)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["f", "f/old"]
    with replacing_folder(tmp_path / "f") as temporary:
        (temporary / "new").touch()
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["f", "f/new"]


def test_no_module_but_this_one_makes_up_temporary_names_or_renames():
    package = Path(nas_kd.__file__).parent
    others = {p for p in package.rglob("*.py") if "os.replace(" in p.read_text()}
    assert others == {package / "files.py"}
