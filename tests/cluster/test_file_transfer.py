import json
from pathlib import Path

import pytest

from nas_kd.cluster import file_transfer as courier
from nas_kd.cluster.file_transfer import Away, Home, mark, shares_disk
from nas_kd.errors import NasKdError
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.files import replacing
from nas_kd.study.anchor import Anchor
from nas_kd.study.prepared import Prepared
from nas_kd.study.settings import Settings


@pytest.fixture
def prepared(tmp_path):
    """What a driver prepares, with files of known content."""
    for name, content in {
        "pool/x.npy": b"x" * 70,
        "pool/.hidden": b"no",
        "shared/card.json": b"{}",
        "large/y.npy": b"y",
        "pictures/deep/a.png": b"a",
        "mine.toml": b"[vary]",
        "secret": b"s",
    }.items():
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    home = tmp_path / "home"
    (home / "students").mkdir()
    paths = {"eval_data": str(home / "pictures"), "space": str(home / "mine.toml")}
    settings = Settings("s", **paths, data="elsewhere")
    curve = RDCurve((0.1, 0.2), (30.0, 33.0))
    places = (home / "pool", home / "shared", Anchor(curve, None), home / "students")
    return Prepared(settings, (0.01,), *places, large=home / "large")


@pytest.fixture
def calls():
    return []


@pytest.fixture
def away(prepared, tmp_path, calls, monkeypatch):
    monkeypatch.setattr(courier, "CHUNK_BYTES", 32)  # so that these files have several parts
    home = Home(prepared.students, prepared.lent)

    def call(method, *given):
        calls.append(method)
        return getattr(home, method)(*given)

    return Away(call, tmp_path / "away")


def test_a_machine_away_gets_copies_of_all_that_a_trial_opens(prepared, away, tmp_path):
    found = away.settle(prepared)
    for name, inside in (("pool", "x.npy"), ("shared", "card.json"), ("large", "y.npy")):
        copy = getattr(found, name) / inside
        assert tmp_path / "away" in copy.parents
        assert copy.read_bytes() == (getattr(prepared, name) / inside).read_bytes()
    settings = found.settings
    assert Path(settings.space).name == "mine.toml"  # its stem is the space's name
    assert Path(settings.eval_data, "deep/a.png").read_bytes() == b"a"
    assert settings.data == "elsewhere"  # no trial opens it
    assert Prepared.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_copies_that_are_there_are_not_fetched_again(prepared, away, calls):
    first = away.settle(prepared)
    calls.clear()
    assert away.settle(prepared) == first
    assert calls == []


def test_a_students_files_come_home_whole_and_each_state_once(prepared, away, calls, tmp_path):
    folder = tmp_path / "away" / "students" / "abc"
    away.settle(prepared)
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"1" * 65)
    with replacing(folder / "checkpoint.pt") as temporary:
        temporary.write_bytes(b"half")
        away.bring(folder)
        temporary.write_bytes(b"1" * 65)
    kept = tmp_path / "home" / "students" / "abc"
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == {"checkpoint.pt": b"1" * 65}
    away.bring(folder)
    calls.clear()
    away.bring(folder)
    assert calls == []
    (folder / "checkpoint.pt").write_bytes(b"")
    away.bring(folder)
    assert (kept / "checkpoint.pt").read_bytes() == b""


def test_another_machine_goes_on_from_a_checkpoint_brought_home(prepared, away, calls, tmp_path):
    away.settle(prepared)
    away.resume("abc", prepared.students, "checkpoint.pt")  # there is none: nothing happens
    kept = tmp_path / "home" / "students" / "abc"
    kept.mkdir()
    (kept / "checkpoint.pt").write_bytes(b"9" * 50)
    away.resume("abc", prepared.students, "checkpoint.pt")
    here = tmp_path / "away" / "students" / "abc"
    assert (here / "checkpoint.pt").read_bytes() == b"9" * 50
    calls.clear()
    away.bring(here)  # it came from there
    assert calls == []


@pytest.mark.parametrize("place", ["secret", "..", "pool/../secret"])
def test_nothing_else_of_the_drivers_disk_is_lent(prepared, place):
    home = Home(prepared.students, prepared.lent)
    with pytest.raises(NasKdError, match="is not a file of this study"):
        home.read(str(prepared.pool.parent / place), "", 0)
    with pytest.raises(NasKdError, match="is not a file of this study"):
        home.read(str(prepared.pool), "../secret", 0)


@pytest.mark.parametrize(("arch", "name"), [("..", "a"), ("a/b", "a"), ("a", "../b"), ("", "a")])
def test_nothing_is_written_but_a_students_files(prepared, arch, name):
    home = Home(prepared.students, prepared.lent)
    with pytest.raises(NasKdError, match="is not a file of a student"):
        home.keep(arch, name, b"", True, True)


def test_a_disk_is_shared_where_the_drivers_word_is_read(tmp_path):
    word = mark(tmp_path / "students")
    assert mark(tmp_path / "students") == word
    assert shares_disk(tmp_path / "students", word)
    assert not shares_disk(tmp_path / "students", "another")
    assert not shares_disk(tmp_path / "nowhere", word)
