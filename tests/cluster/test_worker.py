import threading

import pytest

from nas_kd.cluster.worker import Desk, Lanes, Paced, Rung, outcome_of
from nas_kd.errors import DataError, TeacherError, TrialFailed
from nas_kd.reasons import Reason
from nas_kd.study.record import Outcome


def trial(steps, seen):
    """A trial that reports its step and twice its step, one by one."""

    def run(report):
        for step in range(1, steps + 1):
            seen.append(step)
            report(step, {"a": float(step), "b": 2.0 * step})
        return Outcome([float(steps)])

    return run


def alone(run, rungs=()):
    """Lanes with one trial, begun."""
    lanes = Lanes(lambda ordered: Paced(ordered, rungs))
    lanes.start(0, run)
    return lanes


def test_a_trial_waits_at_its_rungs_with_the_means_since_the_last():
    seen = []
    lanes = alone(trial(10, seen), (3, 6))
    assert lanes.next() == (0, Rung(3, {"a": 2.0, "b": 4.0}))
    assert seen == [1, 2, 3]
    lanes.go_on(0, True)
    assert lanes.next() == (0, Rung(6, {"a": 5.0, "b": 10.0}))
    lanes.go_on(0, True)
    assert lanes.next() == (0, Outcome([10.0]))
    assert len(lanes) == 0


def test_a_stopped_trial_takes_no_further_step():
    seen = []
    lanes = alone(trial(10, seen), (4,))
    lanes.next()
    lanes.stop()
    assert seen == [1, 2, 3, 4]


def test_a_trial_that_may_not_go_on_says_so_as_its_outcome():
    seen = []
    lanes = alone(trial(10, seen), (4,))
    lanes.next()
    lanes.go_on(0, False)
    lane, outcome = lanes.next()
    assert (lane, outcome.values, outcome.reason) == (0, None, Reason.STOPPED.because(4))
    assert seen == [1, 2, 3, 4]


def test_a_trial_without_rungs_runs_through_and_stopping_it_then_is_nothing():
    lanes = alone(trial(5, []))
    assert lanes.next() == (0, Outcome([5.0]))
    lanes.stop()


def test_a_trial_resumed_past_rungs_is_compared_at_the_last_of_them():
    def run(report):
        report(50, {"a": 1.0})
        return Outcome(None, "end")

    lanes = alone(run, (10, 30, 90))
    assert lanes.next() == (0, Rung(30, {"a": 1.0}))
    lanes.go_on(0, True)
    assert lanes.next() == (0, Outcome(None, "end"))


def test_a_lane_takes_another_trial_while_the_others_go_on():
    until = threading.Event()

    def long(report):
        until.wait(5)
        return Outcome([2.0])

    lanes = Lanes(Paced)
    lanes.start(0, long)
    lanes.start(1, trial(3, []))
    assert lanes.next() == (1, Outcome([3.0]))
    lanes.start(1, trial(4, []))
    assert lanes.next() == (1, Outcome([4.0]))
    until.set()
    assert lanes.next() == (0, Outcome([2.0]))


def test_what_ends_a_trial_ends_its_lane_alone():
    def dies(report):
        raise RuntimeError("CUDA out of memory")

    def begin(ordered):
        if ordered is None:
            raise DataError("its files are gone")
        return Paced(ordered)

    lanes = Lanes(begin)
    for lane, ordered in enumerate((dies, None, trial(2, []))):
        lanes.start(lane, ordered)
    heard = dict(lanes.next() for _ in range(3))
    assert (heard[0].reason, heard[1].reason) == ("out_of_memory", "interrupted")
    assert heard[2] == Outcome([2.0])


def test_words_at_a_desk_are_said_once_and_to_whom_they_are_for():
    desk = Desk()
    desk.put("a", [(0, True)])
    desk.put("a", [(1, False)])
    assert (desk.take("b"), desk.take("a"), desk.take("a")) == ([], [(0, True), (1, False)], [])


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

    _, outcome = alone(run).next()
    assert (outcome.reason, outcome.attrs["message"]) == (
        "crash",
        "SystemExit: a library says goodbye",
    )
