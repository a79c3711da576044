"""Sets of pictures arrive from a server on this machine."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fetching import PICTURES, run, sha256

from nas_kd.data import picture_sets
from nas_kd.data.fetch import POLICY, supply
from nas_kd.data.images import open_images
from nas_kd.errors import DataError, NasKdError


@pytest.mark.parametrize(
    ("name", "files"),
    [("pair", ["one.png", "two.png"]), ("zipped", ["train/a.png", "train/b.png"])],
)
def test_a_set_is_fetched_unpacked_and_opened_by_its_name(site, name, files, monkeypatch, capsys):
    monkeypatch.setenv(POLICY, "always")
    images = open_images(name, "eval")
    assert (images.name, list(images.names)) == (name, files)
    assert images.images[1].shape == (32, 48, 3)
    asked = len(site.asked)
    assert open_images(name, "train").fingerprint == images.fingerprint
    assert len(site.asked) == asked
    there = picture_sets.home() / name
    assert sorted(p.name for p in there.parent.iterdir()) == [f".{name}.lock", name]
    assert name in capsys.readouterr().err


def test_a_folder_of_a_sets_name_comes_first(site, monkeypatch):
    Path("pair").mkdir()
    Path("pair", "own.png").write_bytes(PICTURES["one.png"])
    assert open_images("pair", "train").names == ("own.png",)


def test_a_set_that_lost_a_file_is_fetched_again(site, monkeypatch):
    monkeypatch.setenv(POLICY, "always")
    fingerprint = open_images("pair", "eval").fingerprint
    (picture_sets.home() / "pair" / "two.png").write_bytes(b"")
    assert open_images("pair", "eval").fingerprint == fingerprint


def test_a_set_that_is_not_here_is_refused_by_name(site):
    with pytest.raises(DataError, match="lacking here: pictures pair"):
        open_images("pair", "eval")


def test_what_is_no_archive_is_thrown_away(site):
    one = picture_sets.order_of(picture_sets.known()["broken"])
    with pytest.raises(NasKdError, match=r"no\.zip cannot be unpacked .* thrown away"):
        supply([one], yes=True)
    assert not picture_sets.is_there(picture_sets.known()["broken"])
    assert not list((picture_sets.home() / ".broken").iterdir())


def test_a_broken_fetch_of_a_set_goes_on_and_fetches_nothing_twice(site, monkeypatch, capsys):
    one, two = PICTURES["one.png"], PICTURES["two.png"]
    site.files.pop("two.png")
    assert run(monkeypatch, "fetch", "pair", "--yes") == 1
    assert "answers 404" in capsys.readouterr().err
    site.files["two.png"], site.sent = two, 0
    assert run(monkeypatch, "fetch", "pair", "--yes") == 0
    assert site.sent == len(two)
    assert run(monkeypatch, "fetch", "pair", "--yes") == 0
    assert "there already" in capsys.readouterr().out
    assert (picture_sets.home() / "pair" / "one.png").read_bytes() == one


def test_a_fetch_that_is_killed_goes_on_where_it_was(site):
    whole = site.files["one.png"] = np.random.default_rng(5).bytes(1_000_000)
    was, text = PICTURES["one.png"], picture_sets.own_file().read_text()
    text = text.replace(f"bytes = {len(was)}", f"bytes = {len(whole)}", 1)
    picture_sets.own_file().write_text(text.replace(sha256(was), sha256(whole)))
    site.piece, site.pause_s = 20_000, 0.02
    words = [
        sys.executable,
        "-c",
        "from nas_kd.cli.main import main; main()",
        "fetch",
        "pair",
        "--yes",
    ]
    part = picture_sets.home() / ".pair" / ".one.png.part"
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as killed:
        while killed.poll() is None and (not part.exists() or part.stat().st_size < 100_000):
            time.sleep(0.01)
        killed.kill()
    had = part.stat().st_size
    assert 100_000 <= had < len(whole)
    site.asked.clear()
    site.pause_s = 0
    assert subprocess.run(words, capture_output=True).returncode == 0
    assert ("one.png", f"bytes={had}-") in site.asked
    assert (picture_sets.home() / "pair" / "one.png").read_bytes() == whole


def test_a_set_may_be_fetched_to_another_place(site, home, monkeypatch, capsys):
    assert run(monkeypatch, "fetch", "zipped", "--yes", "--to", str(home / "stick")) == 0
    assert open_images(str(home / "stick" / "zipped"), "eval").names == (
        "train/a.png",
        "train/b.png",
    )
    assert not picture_sets.is_there(picture_sets.known()["zipped"])


def test_the_cache_lists_sets(site, monkeypatch, capsys):
    run(monkeypatch, "fetch", "pair", "--yes")
    capsys.readouterr()
    assert run(monkeypatch, "cache", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(picture_sets.home() / "pair")
    assert found["bytes"] > len(PICTURES["one.png"])
    assert found["holds"] == "2 pictures, for --data pair"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kodak = 3", "'kodak' is no set"),
        ("[Big]\n", "'Big' is no set"),
        ("[x]\nurl = 'http://a'\n", "x has the key 'url'; there are"),
        ("[x]\nfiles = [{file = 'a.zip'}]\n", "x needs mirrors"),
        ("[x]\nmirrors = ['file:///a']\nfiles = [{file = 'a.zip'}]\n", "x needs mirrors"),
        ("[x]\nmirrors = ['http://a']\n", "x needs files"),
        ("[x]\nmirrors = ['http://a']\nfiles = [{file = '../a.zip'}]\n", "x needs files"),
        ("[x]\nmirrors = ['http://a']\nfiles = [{file = 'a.exe'}]\n", "x needs files"),
        ("[x]\nmirrors = ['http://a']\nfiles = [{file = 'a.zip', md5 = '1'}]\n", "x needs files"),
        ("[x", "cannot be read"),
    ],
)
def test_a_users_file_that_breaks_a_rule_is_named(home, text, says):
    picture_sets.own_file().parent.mkdir(parents=True)
    picture_sets.own_file().write_text(text)
    with pytest.raises(DataError) as caught:
        picture_sets.known()
    assert says in str(caught.value)
    assert str(picture_sets.own_file()) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_mirror_of_our_set_comes_first(home):
    picture_sets.own_file().parent.mkdir(parents=True)
    picture_sets.own_file().write_text('[kodak]\nmirrors = ["http://near/{file}"]\n')
    one = picture_sets.known()["kodak"]
    (first, *_) = picture_sets.order_of(one).files
    assert first.addresses[:2] == (
        "http://near/kodim01.png",
        "https://r0k.us/graphics/kodak/kodak/kodim01.png",
    )
    assert (first.size, len(first.sha256), one.pictures) == (736501, 64, 24)


def test_our_sets_say_where_their_figures_come_from():
    tables = picture_sets._tables(picture_sets.OURS)
    assert set(tables) == {"kodak", "clic-train", "div2k-train"}
    for name, table in tables.items():
        one = picture_sets.known()[name]
        assert table["about"].strip()
        assert one.licence
        assert one.size == sum(file["bytes"] for file in one.files)
        assert all(len(file["sha256"]) == 64 for file in one.files)
        assert all(mirror.startswith("http") for mirror in one.mirrors)
    assert len(tables["kodak"]["files"]) == 24
