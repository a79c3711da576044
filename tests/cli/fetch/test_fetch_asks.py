"""What is fetched is told first and asked for once."""

import sys

import pytest
from fetching import PICTURES, Terminal, order

from nas_kd.data.download import Wanted
from nas_kd.data.fetch import POLICY, Order, supply
from nas_kd.errors import NasKdError, UsageError


def test_without_a_terminal_or_a_word_nothing_is_asked_of_the_network(site, tmp_path):
    with pytest.raises(UsageError, match="not fetched \\(nobody to ask here; --yes") as caught:
        supply([order(tmp_path / "to", site)])
    assert "\n" not in str(caught.value)
    assert not site.asked
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("said", ["always", "yes"])
def test_whoever_said_so_beforehand_is_not_asked(site, tmp_path, said, monkeypatch, capsys):
    if said == "always":
        monkeypatch.setenv(POLICY, said)
    supply([order(tmp_path, site, size=12)], yes=said == "yes")
    assert (tmp_path / "one.png").read_bytes() == PICTURES["one.png"]
    told = capsys.readouterr().err
    for part in ("one.png", "about 1.2e-05 MB", site.at("one.png"), str(tmp_path), "licence: none"):
        assert part in told


def test_never_is_one_line_with_address_size_folder_and_command(site, tmp_path, monkeypatch):
    monkeypatch.setenv(POLICY, "never")
    with pytest.raises(UsageError) as caught:
        supply([order(tmp_path, site, size=2_000_000, exact=True)])
    line = str(caught.value)
    parts = (
        site.at("one.png"),
        "2 MB",
        str(tmp_path),
        "nas-kd fetch one.png --yes --to DIR",
        POLICY,
    )
    assert [part for part in parts if part not in line] == []
    assert "\n" not in line
    assert not site.asked


def test_a_policy_that_there_is_not_is_refused(site, tmp_path, monkeypatch):
    monkeypatch.setenv(POLICY, "maybe")
    with pytest.raises(UsageError, match="NAS_KD_FETCH=maybe: must be always or never"):
        supply([order(tmp_path, site)])


@pytest.mark.parametrize(("answer", "fetched"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_terminal_is_asked_once_for_all(site, tmp_path, monkeypatch, answer, fetched):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", screen)
    orders = [order(tmp_path / "a", site), order(tmp_path / "b", site, "two.png")]
    if fetched:
        supply(orders)
    else:
        with pytest.raises(UsageError, match="you did not agree"):
            supply(orders)
    said = screen.getvalue()
    assert said.count("[y/N]") == 1
    assert said.index(site.at("two.png")) < said.index("[y/N]")
    assert (tmp_path / "b" / "two.png").is_file() == fetched


def test_no_network_is_one_line_with_address_size_folder_and_command(tmp_path):
    file = Wanted(tmp_path / "to" / "w", ("http://nowhere.invalid/w",), size=5 * 10**6)
    with pytest.raises(NasKdError) as caught:
        supply([Order("teacher x", "x", (file,), tmp_path / "to")], yes=True)
    line = str(caught.value)
    parts = (
        "http://nowhere.invalid/w",
        "about 5 MB",
        str(tmp_path),
        "nas-kd fetch x --yes --to DIR",
    )
    assert [part for part in parts if part not in line] == []
    assert (caught.value.exit_code, "\n" in line) == (1, False)
    assert not (tmp_path / "to").exists()


def test_a_disk_too_small_is_told_before_anything_comes(site, tmp_path):
    with pytest.raises(UsageError, match=r"needs 1\.00e\+09 GB|needs 1000000000\.00 GB"):
        supply([order(tmp_path / "to", site, size=10**18, exact=True)], yes=True)
    assert not site.asked
    assert not (tmp_path / "to").exists()
