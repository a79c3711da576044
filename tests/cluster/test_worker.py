import pytest

from nas_kd.cluster.worker import Paced, Rung, outcome_of
from nas_kd.errors import DataError, TeacherError, TrialFailed
from nas_kd.study.record import Outcome


def trial(steps, seen):
    """A trial that reports its step and twice its step, one by one."""

    def run(report):
        for step in range(1, steps + 1):
            seen.append(step)
            report(step, {"a": float(step), "b": 2.0 * step})
        return Outcome([float(steps)])

    return run


def test_a_trial_waits_at_its_rungs_with_the_means_since_the_last():
    seen = []
    paced = Paced(trial(10, seen), (3, 6))
    assert paced.advance() == Rung(3, {"a": 2.0, "b": 4.0})
    assert seen == [1, 2, 3]
    assert paced.advance() == Rung(6, {"a": 5.0, "b": 10.0})
    assert paced.advance() == Outcome([10.0])


def test_a_stopped_trial_takes_no_further_step():
    seen = []
    paced = Paced(trial(10, seen), (4,))
    paced.advance()
    paced.stop()
    assert seen == [1, 2, 3, 4]


def test_a_trial_without_rungs_runs_through_and_stopping_it_then_is_nothing():
    paced = Paced(trial(5, []))
    assert paced.advance() == Outcome([5.0])
    paced.stop()


def test_a_trial_resumed_past_rungs_is_compared_at_the_last_of_them():
    def run(report):
        report(50, {"a": 1.0})
        return Outcome(None, "end")

    paced = Paced(run, (10, 30, 90))
    assert paced.advance() == Rung(30, {"a": 1.0})
    assert paced.advance() == Outcome(None, "end")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "interrupted"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (RuntimeError("shapes do not match"), "crash"),
        (DataError("no image"), "interrupted"),
        (TeacherError("no weights"), "crash"),
        (TrialFailed("nan", "loss is nan"), "nan"),
        (SystemExit(3), "crash"),
    ],
)
def test_whatever_goes_wrong_becomes_a_reason(error, reason):
    def run():
        raise error

    assert outcome_of(run).reason == reason


def test_a_trial_whose_thread_is_ended_from_within_leaves_nobody_waiting():
    def run(report):
        raise SystemExit("a library says goodbye")

    outcome = Paced(run).advance()
    assert (outcome.reason, outcome.attrs["message"]) == (
        "crash",
        "SystemExit: a library says goodbye",
    )
