import os
import signal
import subprocess
import sys
import threading

import pytest

from nas_kd.errors import UsageError
from nas_kd.measurement.device_lock import Device, lock_folder, training_on

HOLD = """
import sys
from pathlib import Path
from nas_kd.measurement.device_lock import Device
with getattr(Device("GPU-1", Path(sys.argv[1])), sys.argv[2])():
    print("held", flush=True)
    sys.stdin.read()
"""


class Waiting:
    """Something that takes a lock in a thread, so that a test can see whether it has to wait."""

    def __init__(self, take):
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(take,), daemon=True)
        self.thread.start()

    def _run(self, take):
        with take():
            self.done.set()

    def waits(self):
        return not self.done.wait(0.1)

    def ends(self):
        self.thread.join(10)
        return self.done.is_set()


def hold(folder, kind):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_a_killed_process_frees_the_device(tmp_path, kind):
    holder = hold(tmp_path, kind)
    waiting = Waiting(Device("GPU-1", tmp_path).exclusive)
    assert waiting.waits()
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert waiting.ends()


def test_trainings_share_and_another_device_is_free(tmp_path):
    device = Device("GPU-1", tmp_path)
    with device.shared(), device.shared():
        with Device("GPU-2", tmp_path).exclusive():
            pass
        assert Waiting(device.exclusive).waits()


def test_a_measurement_comes_in_between_two_steps_and_pauses_the_training(tmp_path):
    device, said = Device("GPU-1", tmp_path), []
    with device.shared(lambda: said.append("synchronised")) as between_steps:
        between_steps()
        assert said == []  # nobody waits: a step costs no synchronisation
        entered, leave = threading.Event(), threading.Event()

        def measure():
            with device.exclusive():
                entered.set()
                leave.wait(10)
                said.append("measured")

        thread = threading.Thread(target=measure, daemon=True)
        thread.start()
        assert not entered.wait(0.1)
        threading.Timer(0.1, leave.set).start()
        between_steps()
        thread.join(10)
        assert said == ["synchronised", "measured"]
        assert Waiting(device.exclusive).waits()  # the training has it again


def test_a_training_that_comes_later_waits_behind_a_measurement_that_waits(tmp_path):
    device = Device("GPU-1", tmp_path)
    with device.shared():
        measurement = Waiting(device.exclusive)
        assert measurement.waits()
        latecomer = Waiting(device.shared)
        assert latecomer.waits()
    assert measurement.ends()
    assert latecomer.ends()


def test_locks_lie_in_the_users_runtime_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert lock_folder() == tmp_path / "nas-kd"
    assert (tmp_path / "nas-kd").stat().st_mode & 0o077 == 0


def test_without_a_runtime_folder_they_lie_in_the_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert lock_folder() == tmp_path / f"nas-kd-{os.getuid()}"


def test_a_planted_link_is_refused(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "nas-kd").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(UsageError, match="not a folder of this user"):
        lock_folder()


def test_a_measurement_waits_for_training_on_the_same_device(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    entered = threading.Event()

    def measure():
        with Device("CPU").exclusive():
            entered.set()

    thread = threading.Thread(target=measure, daemon=True)
    with training_on("cpu") as between_steps:
        thread.start()
        assert not entered.wait(0.1)
        between_steps()
        assert entered.wait(10)
    thread.join(10)
