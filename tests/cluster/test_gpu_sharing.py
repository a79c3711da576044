"""Trials that share a GPU: how many is decided by what was measured, and what is measured is real training."""

import pytest
import torch

from nas_kd.cluster.gpu_sharing import Packed, best, together, trials_per_gpu
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_train_at_once_and_a_failure_is_no_rate(monkeypatch):
    arch = load_space("demo").extreme(largest=False)
    found = together(2, arch, LMBDAS, 1, 64, "cpu")
    assert found.trials == 2
    assert found.steps_per_s > 0
    assert found.taken_bytes > 0
    # 63 px: the student's down-sampling by 64 does not fit, and every process fails
    assert together(2, arch, LMBDAS, 1, 63, "cpu").steps_per_s == 0


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_a_real_gpu_is_packed():
    found = trials_per_gpu(load_space("demo"), LMBDAS, Recipe(10), 128, 8)
    assert found["trials"] in (1, 2, 4, 8)
    assert found["measured"][0]["taken_bytes"] > 0
