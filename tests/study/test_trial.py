import pytest

from nas_kd.codec.arch import prim
from nas_kd.codec.student import Student
from nas_kd.recipe import Recipe, Weights
from nas_kd.study.limits import Limits
from nas_kd.study.trial import Task, run_trial


def test_an_arch_over_a_limit_that_is_known_in_advance_is_not_even_built(tmp_path, monkeypatch):
    monkeypatch.setattr(Student, "__init__", lambda *given: pytest.fail("was built"))
    limits, nothing = Limits(max_gmac=1e-3), (None, None, None)
    task = Task((0.01,), Recipe(1), Weights(), ("rd_cost",), *nothing, limits)
    outcome = run_trial(task, prim(8, 16), tmp_path)
    assert (outcome.values, outcome.reason) == (None, "over_max_gmac")
    assert outcome.record.over == pytest.approx(outcome.record.limit_ratios["max_gmac.both"] - 1)
    assert outcome.record.arch_key == prim(8, 16).key
    assert not list(tmp_path.iterdir())
