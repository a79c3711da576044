"""Downloads from a server that breaks off, dawdles, lies or lacks the file."""

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest
from fakes import full_disk
from webserver import Site, serving

from nas_kd.data.download import Patience, Wanted, download
from nas_kd.errors import NasKdError

DATA = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
HASTY = Patience(timeout_s=0.3, pause_s=0.0)


@pytest.fixture
def site():
    with serving(Site({"w.bin": DATA, "other.bin": DATA[::-1]})) as one:
        yield one


def wanted(folder: Path, *addresses: str, sha256: str = SHA256, **more) -> Wanted:
    return Wanted(folder / "w.bin", addresses, sha256, **more)


def test_a_file_arrives_whole_and_is_not_fetched_twice(site, tmp_path):
    heard = []
    one = wanted(tmp_path, site.at("w.bin"))
    download(one, lambda there, whole: heard.append((there, whole)))
    assert one.path.read_bytes() == DATA
    assert heard[0] == (0, len(DATA))
    assert heard[-1] == (len(DATA), len(DATA))
    download(one)
    assert len(site.asked) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["w.bin"]


def test_a_broken_connection_is_gone_on_with_from_where_it_broke(site, tmp_path):
    site.break_after = [100_000, 50_000]
    download(one := wanted(tmp_path, site.at("w.bin")), patience=HASTY)
    assert one.path.read_bytes() == DATA
    assert [asked for _, asked in site.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert site.sent == len(DATA)


def test_a_later_process_goes_on_from_what_an_earlier_one_left(site, tmp_path):
    one = wanted(tmp_path, site.at("w.bin"))
    one.part.write_bytes(DATA[:123_456])
    download(one)
    assert one.path.read_bytes() == DATA
    assert site.sent == len(DATA) - 123_456


@pytest.mark.parametrize("there", [b"x" * 1000, b"x" * 400_000, DATA[::-1]])
def test_what_an_earlier_process_left_may_be_wrong(site, tmp_path, there):
    one = wanted(tmp_path, site.at("w.bin"))
    one.part.write_bytes(there)
    download(one, patience=HASTY)
    assert one.path.read_bytes() == DATA


def test_a_server_that_cannot_begin_in_the_middle_begins_anew(site, tmp_path):
    site.ranges, site.break_after = False, [100_000]
    download(one := wanted(tmp_path, site.at("w.bin")), patience=HASTY)
    assert one.path.read_bytes() == DATA


def test_without_a_checksum_what_is_there_is_not_trusted(site, tmp_path):
    one = wanted(tmp_path, site.at("w.bin"), sha256="")
    one.part.write_bytes(b"x" * 1000)
    download(one)
    assert one.path.read_bytes() == DATA


def test_the_next_address_is_tried(site, tmp_path):
    addresses = [site.at("absent"), site.at("other.bin"), site.at("w.bin")]
    download(one := wanted(tmp_path, *addresses), patience=HASTY)
    assert one.path.read_bytes() == DATA


def test_every_address_says_why_it_failed(site, tmp_path):
    nobody = "http://127.0.0.1:9/w.bin"
    one = wanted(tmp_path, site.at("absent"), site.at("other.bin"), nobody)
    with pytest.raises(NasKdError) as caught:
        download(one, patience=HASTY)
    said = str(caught.value)
    assert "\n" not in said
    assert f"{site.at('absent')}: answers 404 (Not Found)" in said
    assert f"sha256 begins with {hashlib.sha256(DATA[::-1]).hexdigest()[:8]}" in said
    assert f"it must be {SHA256[:8]}" in said
    assert f"{nobody}: Connection refused" in said
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_a_silent_server_is_given_up_and_what_came_is_kept(site, tmp_path):
    site.break_after = [100_000]
    one = wanted(tmp_path, site.at("w.bin"))
    one.part.write_bytes(DATA[:1000])
    site.silent_s = 1.0
    with pytest.raises(NasKdError, match=r"silent for too long\); 0.001 MB are kept"):
        download(one, patience=Patience(0.05, 0.0))
    assert one.part.read_bytes() == DATA[:1000]


def test_a_slow_server_is_waited_for(site, tmp_path):
    site.piece, site.pause_s = 30_000, 0.02
    download(one := wanted(tmp_path, site.at("w.bin")), patience=Patience(0.15, 0.0))
    assert one.path.read_bytes() == DATA


@pytest.mark.parametrize("answer", [503, 429])
def test_a_busy_server_is_asked_again(site, tmp_path, answer):
    site.answers = [answer, answer]
    download(one := wanted(tmp_path, site.at("w.bin")), patience=HASTY)
    assert one.path.read_bytes() == DATA
    assert len(site.asked) == 3


def test_a_file_of_another_size_is_not_even_begun(site, tmp_path):
    one = wanted(tmp_path, site.at("w.bin"), size=12, exact=True)
    with pytest.raises(NasKdError, match="has 300000 bytes there, it must have 12"):
        download(one, patience=HASTY)


def test_a_full_disk_keeps_what_came_and_the_next_run_goes_on(site, tmp_path):
    one = wanted(tmp_path, site.at("w.bin"))
    with full_disk(100_000), pytest.raises(NasKdError, match="0.1 MB are kept: free some room"):
        download(one, patience=HASTY)
    assert one.part.read_bytes() == DATA[:100_000]
    download(one)
    assert one.path.read_bytes() == DATA
    assert site.asked[-1] == ("w.bin", "bytes=100000-")


def test_two_at_once_fetch_it_once(site, tmp_path):
    site.piece, site.pause_s = 30_000, 0.01
    one = wanted(tmp_path, site.at("w.bin"))
    both = [threading.Thread(target=download, args=(one,)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert one.path.read_bytes() == DATA
    assert site.sent == len(DATA)
