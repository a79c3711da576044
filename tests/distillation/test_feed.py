"""Batches in order, whoever makes them."""

import threading

import pytest

from nas_kd.distillation.feed import Feed


@pytest.mark.parametrize("ahead", [False, True])
def test_a_feed_gives_what_making_each_batch_would(ahead):
    made = []

    def make(step):
        made.append(step)
        return step * 10

    with Feed(make, ahead) as feed:
        assert [feed.at(step) for step in (3, 4, 5, 9, 10)] == [30, 40, 50, 90, 100]
    assert set(made) >= {3, 4, 5, 9, 10}
    assert ahead == (6 in made)


def test_the_next_batch_is_made_while_a_step_runs():
    asked, may_end = threading.Event(), threading.Event()

    def make(step):
        if step == 1:
            asked.set()
            assert may_end.wait(10)
        return step

    with Feed(make, ahead=True) as feed:
        assert feed.at(0) == 0  # returns although the next one is not there
        assert asked.wait(10)
        may_end.set()
        assert feed.at(1) == 1


def test_what_goes_wrong_in_the_thread_is_raised_at_the_step():
    def make(step):
        if step == 2:
            raise OSError("gone")
        return step

    with Feed(make, ahead=True) as feed:
        feed.at(1)
        with pytest.raises(OSError, match="gone"):
            feed.at(2)
