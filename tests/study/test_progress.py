import errno
import json
import os
import platform
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from nas_kd.study.progress import EVENTS, NOW, Follow, Now, read_now
from nas_kd.study.record import Outcome


def scalars(folder):
    """(step, name, value) of an event file, read by the format alone: length, its checksum, data, checksum."""
    (file,) = folder.glob("events.out.tfevents.*")
    data, found = file.read_bytes(), []
    while data:
        length = struct.unpack("<Q", data[:8])[0]
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        data = data[16 + length :]
    return found


@pytest.fixture
def follow(tmp_path):
    follow = Follow(7, tmp_path / "students" / "key", tmp_path, 40)
    yield follow
    follow.close()


def test_scalars_come_back_from_the_event_file(follow, tmp_path):
    follow.step(20, {"loss": 2.5, "bpp": 0.5})
    follow.step(40, {"loss": 2.0, "bpp": float("inf")})
    follow.end(Outcome([12.5, 3e9], attrs={"seconds": {"distil": 8.0}}), ("bd_rate", "flops"))
    assert scalars(tmp_path / EVENTS / "trial-0007") == [
        (20, "train/loss", 2.5),
        (20, "train/bpp", 0.5),
        (40, "train/loss", 2.0),
        (40, "seconds/distil", 8.0),
        (40, "result/bd_rate", 12.5),
        (40, "result/flops", 3e9),
    ]


def test_a_trial_without_values_has_no_results(follow, tmp_path):
    follow.end(Outcome(None, "partial_overlap"), ("bd_rate", "flops"))
    assert scalars(tmp_path / EVENTS / "trial-0007") == []


def test_what_a_worker_is_doing_is_there_while_it_does_it(follow, tmp_path):
    home = tmp_path / "students" / "key"
    assert str(read_now(home, 7)) == "start"
    follow.step(20, {"loss": 2.5})
    now = read_now(home, 7)
    assert now == Now(7, platform.node(), os.getpid(), "distil", 20, 40, 2.5)
    assert str(now) == "distil, step 20 of 40, loss 2.500"
    assert now.worker == str(os.getpid())
    follow.doing("evaluate")
    assert str(read_now(home, 7)) == "evaluate"
    follow.close()
    assert read_now(home, 7) is None


def test_what_another_trial_of_the_same_arch_left_behind_is_not_shown(follow, tmp_path):
    assert read_now(tmp_path / "students" / "key", 8) is None


def test_a_worker_elsewhere_is_named_with_its_machine(tmp_path):
    (tmp_path / NOW).write_text(json.dumps({"trial": 1, "host": "far", "pid": 3, "doing": "draw"}))
    assert read_now(tmp_path, 1).worker == "far:3"


@pytest.mark.parametrize("text", ["", "[1]", '{"trial": 1}'])
def test_a_file_that_says_nothing_is_nothing(tmp_path, text):
    (tmp_path / NOW).write_text(text)
    assert read_now(tmp_path, 1) is None


def test_what_cannot_be_written_does_not_cost_the_trial(tmp_path):
    (tmp_path / "students").write_text("a file where a folder should be")
    (tmp_path / EVENTS).write_text("and here")
    follow = Follow(7, tmp_path / "students" / "key", tmp_path, 40)
    follow.step(20, {"loss": 2.5})
    follow.end(Outcome([1.0]), ("bd_rate",))


class Full:
    """A file on a disk that is full."""

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = close = lambda self: self.write(b"")


def test_a_full_disk_does_not_cost_the_trial(tmp_path, follow):
    follow.step(20, {"loss": 2.5})
    records = follow._events._py_recordio_writer
    records._writer.close()
    records._writer = Full()
    follow._flushed_s = -1e9
    follow.step(40, {"loss": 2.5})
    follow.end(Outcome([1.0]), ("bd_rate",))
    assert [step for step, *_ in scalars(tmp_path / EVENTS / "trial-0007")] == [20]
