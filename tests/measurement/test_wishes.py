import os
import signal
import subprocess
import sys
from itertools import count

import pytest

from nas_kd.measurement.codec_energy import MAX_SERVED, serve
from nas_kd.measurement.device_lock import Device
from nas_kd.measurement.wishes import Wishes

WAIT = """
import sys
from pathlib import Path
from nas_kd.measurement.wishes import Wishes
with Wishes("GPU-1", Path(sys.argv[1])).filed("theirs", {"arch": 7}):
    print("filed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process with a wish."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "filed\n"
    yield process
    process.communicate()


def test_a_wish_is_seen_by_others_while_its_process_waits(tmp_path, other):
    wishes = Wishes("GPU-1", tmp_path)
    assert wishes.open() == [{"arch": 7, "name": "theirs"}]
    assert Wishes("GPU-2", tmp_path).open() == []
    other.communicate()
    assert wishes.open() == []
    assert list(wishes.folder.iterdir()) == []


def test_the_wish_of_a_killed_process_is_void(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    wishes = Wishes("GPU-1", tmp_path)
    assert len(list(wishes.folder.iterdir())) == 1
    assert wishes.open() == []
    assert list(wishes.folder.iterdir()) == []


def test_a_spoilt_wish_is_passed_over(tmp_path):
    wishes = Wishes("GPU-1", tmp_path)
    with wishes.filed("mine", {"arch": 1}):
        (path,) = wishes.folder.iterdir()
        path.write_text("{")
        assert wishes.open() == []


def test_wishes_are_granted_until_one_fails_and_no_more_than_so_many():
    asked = count(1)
    assert serve([{}] * 5, lambda wish: next(asked) != 3) == 2
    assert serve([{}] * 40, lambda wish: True) == MAX_SERVED


def test_who_was_served_while_waiting_disturbs_nobody(tmp_path):
    device = Device("GPU-1", tmp_path)
    with device.shared(), device.exclusive(lambda: True) as alone:  # a training goes on
        assert not alone
    with device.exclusive(lambda: False) as alone:
        assert alone
