import threading
import time

import pytest

from nas_kd.once import build_once


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
