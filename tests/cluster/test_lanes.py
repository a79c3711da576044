"""Several trials at once in a worker, as the driver sees them: asked, told and answered lane by lane."""

import json
from dataclasses import asdict

import pytest
from driver import SETTINGS

from nas_kd.cluster.tune import MAX_FAILURES, OverStudy, Rungs, Searcher
from nas_kd.study.record import Outcome
from nas_kd.study.study import Study


class Prepared:
    """What travels with an order; nobody opens it here."""

    def to_json(self):
        return {}


class FakeDesk:
    """Keeps the words that were put on it."""

    name = "desk"

    def __init__(self):
        self.words = []

    def put(self, worker, words):
        self.words += [(worker, lane, word) for lane, word in words]

    def taken(self):
        words, self.words = self.words, []
        return words


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Study(SETTINGS)
    with made.driving():
        yield made


def searcher(study, budget, lanes=2):
    return OverStudy(study, budget, Prepared(), lambda kind, detail: None, lanes, FakeDesk())


def ended(lane, outcome):
    return {"lane": lane, "outcome": json.dumps(asdict(outcome)), "done_at": 0}


def test_a_worker_begins_with_a_trial_in_every_lane_and_the_budget_is_kept(study):
    two, rest = searcher(study, budget=3).suggest("a"), searcher(study, budget=3)
    assert [(lane, order["number"]) for lane, order in two["orders"]] == [(0, 0), (1, 1)]
    assert (two["worker"], two["desk"]) == ("a", "desk")
    assert [lane for lane, _ in rest.suggest("b")["orders"]] == [0]
    assert rest.suggest("c") is None


def test_a_lane_whose_trial_ended_gets_the_next_while_the_other_goes_on(study):
    over = searcher(study, budget=3)
    over.suggest("a")
    over.on_trial_result("a", ended(1, Outcome([1.0, 2.0])))
    assert study.trials[1].values == [1.0, 2.0]
    ((worker, lane, order),) = over.desk.taken()
    assert (worker, lane, order["number"]) == ("a", 1, 2)
    over.on_trial_result("a", ended(0, Outcome([2.0, 1.0])))
    assert over.desk.taken() == []  # the budget is spent
    over.on_trial_complete("a", ended(1, Outcome([3.0, 3.0])) | {"done": True})
    assert [t.values for t in study.trials] == [[2.0, 1.0], [1.0, 2.0], [3.0, 3.0]]
    assert over.suggest("b") == Searcher.FINISHED


def test_a_trial_that_fails_takes_only_itself_along(study):
    over = searcher(study, budget=3)
    over.suggest("a")
    over.on_trial_result("a", ended(0, Outcome(None, "nan")))
    over.on_trial_complete("a", ended(1, Outcome([1.0, 1.0])))
    assert study.trials[0].user_attrs["reason"] == "nan"
    assert study.trials[1].values == [1.0, 1.0]


def test_trials_that_died_with_their_worker_are_tried_again(study):
    over = searcher(study, budget=2)
    over.suggest("a")
    over.on_trial_complete("a", error=True)
    assert [t.user_attrs.get("reason") for t in study.trials[:2]] == ["worker_died"] * 2
    again = [order["number"] for _, order in over.suggest("b")["orders"]]
    assert [study.trials[number].user_attrs["retry_of"] for number in again] == [0, 1]


def test_verdicts_at_a_rung_go_to_their_lane(study, monkeypatch):
    over = searcher(study, budget=2)
    over.suggest("a")
    monkeypatch.setattr(study, "goes_on", lambda number, rung, rd: number == 0)
    for lane in (1, 0):
        result = {"lane": lane, "rung": 20, "rd": 1.0, "done_at": 0}
        trial = type("Trial", (), {"trial_id": "a"})
        assert Rungs(over).on_trial_result(None, trial, result) == Rungs.CONTINUE
        over.on_trial_result("a", result)
    assert over.desk.taken() == [("a", 1, False), ("a", 0, True)]


def test_no_lane_is_filled_once_the_search_gives_up(study):
    over = searcher(study, budget=9)
    over.suggest("a")
    for _ in range(MAX_FAILURES):
        over.on_trial_result("a", ended(0, Outcome(None, "crash")))
    assert [order["number"] for _, _, order in over.desk.taken()] == [2, 3]
    assert over.suggest("b") == Searcher.FINISHED
