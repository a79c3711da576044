"""Trials that share a GPU: how many is decided by what was measured, and what is measured is real training."""

import time

import pytest
import torch

from nas_kd.cluster import gpu_sharing
from nas_kd.cluster.gpu_sharing import LIMIT_S, SECONDS, Packed, Together, best, trials_per_gpu
from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import LMBDAS
from nas_kd.distillation.training import Recipe
from nas_kd.errors import UsageError

GB = 10**9


def device(peak: float, each_gb: float = 1.0, lost=()):
    """A device on which trials speed up by their number until ``peak`` steps per second; 10 from one trial."""
    asked = []

    def measure(n: int) -> Packed:
        asked.append(n)
        rate = 0.0 if n in lost else min(10.0 * n, peak)
        return Packed(n, rate, int(n * each_gb * GB))

    return measure, asked


def test_trials_are_doubled_as_long_as_they_are_faster_together():
    measure, asked = device(peak=38.0)
    chosen, seen = best(measure, 80 * GB, 16)
    assert asked == [1, 2, 4, 8]
    assert (chosen.trials, chosen.steps_per_s) == (4, 38.0)
    assert [packed.trials for packed in seen] == asked


def test_a_small_gain_is_taken_once_and_not_followed():
    measure, asked = device(peak=10.5)
    chosen, _ = best(measure, 80 * GB, 16)
    assert (asked, chosen.trials) == ([1, 2], 2)


@pytest.mark.parametrize(
    ("free_gb", "most", "asked"), [(10, 64, [1, 2]), (80, 3, [1, 2]), (3, 64, [1]), (80, 1, [1])]
)
def test_no_more_than_memory_and_cores_allow(free_gb, most, asked):
    measure, tried = device(peak=1e9, each_gb=3.0)
    chosen, _ = best(measure, free_gb * GB, most)
    assert (tried, chosen.trials) == (asked, asked[-1])


def test_trials_that_failed_together_are_not_chosen():
    measure, asked = device(peak=1e9, lost=(4,))
    chosen, _ = best(measure, 80 * GB, 64)
    assert (asked, chosen.trials) == ([1, 2, 4], 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_line_says_what_to_do():
    with pytest.raises(UsageError, match="PyTorch sees no GPU.*say a number"):
        trials_per_gpu(load_space("demo"), LMBDAS, Recipe(10), 64, 4)


class Clock:
    """Seconds that pass as they are told."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize(
    ("first_steps_s", "asked"),
    [(0.2, [1, 2, 4, 8, 16, 32]), (1.5, [1, 2, 4, 8]), (6.0, [1, 2]), (60.0, [1])],
)
def test_it_is_decided_in_twenty_seconds_unless_one_trial_alone_takes_longer(first_steps_s, asked):
    measure, tried = device(peak=1e9)
    clock, begun = Clock(), 0

    def timed(n):
        nonlocal begun
        clock.now_s += (n - begun) * first_steps_s + SECONDS
        begun = n
        return measure(n)

    best(timed, 10**6 * GB, 64, clock)
    assert tried[: len(asked)] == asked
    assert len(tried) <= len(asked) + (first_steps_s < 1)
    assert clock.now_s <= LIMIT_S or len(tried) == 1


@pytest.fixture
def h200(tmp_path, monkeypatch):
    """A GPU by name, on which trainings are only counted; 100 GB are free."""
    said = {"name": "NVIDIA H200", "free": 100 * GB, "measured": []}

    class Counted:
        def __init__(self, *given):
            pass

        def measure(self, n):
            said["measured"].append(n)
            return Packed(n, min(10.0 * n, 38.0), n * GB)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gpu_sharing, "best_device", lambda: "cuda")
    monkeypatch.setattr(gpu_sharing, "Together", Counted)
    monkeypatch.setattr(gpu_sharing, "free_bytes", lambda device: said["free"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: said["name"])
    return said


def asked(said, space="demo", batch=16, most=16):
    """What is found, and which trials at once were measured for it."""
    said["measured"].clear()
    found = trials_per_gpu(load_space(space), LMBDAS, Recipe(10, batch), 256, most)
    return found["trials"], list(said["measured"])


def test_a_finding_serves_the_next_search_on_such_a_gpu(h200):
    assert asked(h200) == (4, [1, 2, 4, 8])
    assert asked(h200) == (4, [])
    assert asked(h200, batch=8) == (4, [1, 2, 4, 8])
    assert asked(h200, space="phone") == (4, [1, 2, 4, 8])
    assert asked(h200, most=2) == (2, [1, 2])
    h200["name"] = "NVIDIA L4"
    assert asked(h200) == (4, [1, 2, 4, 8])


def test_a_finding_for_which_others_left_no_memory_is_measured_again(h200):
    asked(h200)
    h200["free"] = 3 * GB
    assert asked(h200) == (2, [1, 2])


def test_a_finding_that_was_damaged_is_measured_again(h200, tmp_path):
    asked(h200)
    (file,) = (tmp_path / "nas-kd" / "gpu_sharing").iterdir()
    file.write_text(file.read_text().replace('"found"', '"lost"'))
    assert asked(h200) == (4, [1, 2, 4, 8])


def test_two_trainings_are_measured_together_and_a_failure_is_no_rate(monkeypatch):
    monkeypatch.setattr(gpu_sharing, "SECONDS", 0.05)
    side = Transform("trunk4", (0, 8, 8), kernel=3)
    arch = Arch(side, side, M=16, hyper=8)
    found = Together(arch, LMBDAS, Recipe(1, 1), 64, "cpu", 10**15).measure(2)
    assert found.trials == 2
    assert found.steps_per_s > 0
    assert found.taken_bytes > 0
    # 63 px: the student's down-sampling by 64 does not fit
    assert Together(arch, LMBDAS, Recipe(1, 1), 63, "cpu", 10**15).measure(2).steps_per_s == 0


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_a_real_gpu_is_packed_in_twenty_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    began = time.monotonic()
    found = trials_per_gpu(load_space("demo"), LMBDAS, Recipe(10), 128, 8)
    assert found["trials"] in (1, 2, 4, 8)
    assert found["measured"][0]["taken_bytes"] > 0
    assert time.monotonic() - began < 1.5 * LIMIT_S
