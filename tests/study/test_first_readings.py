import pytest
from optuna.trial import TrialState

from nas_kd.errors import NasKdError
from nas_kd.measurement.reading import Reading
from nas_kd.study.first_readings import FirstReadings, was_read
from nas_kd.study.record import Outcome
from nas_kd.study.settings import Settings
from nas_kd.study.study import Study

NOISY = Outcome(None, "energy: shared: 40 % busy")
GOOD = Outcome([1.0, 2.0], attrs={"energy": Reading.measured(2, 0.1, "mJ", "nvml").to_json()})
OBJECTIVES = ("rd_cost", "energy")


def heard(*outcomes, known=False):
    first = FirstReadings(known)
    for outcome in outcomes:
        first.hear(outcome)
    return first


def test_three_failures_before_any_reading_end_the_search_with_the_way_out():
    first = heard(NOISY, Outcome(None, "no_overlap"), NOISY, NOISY)
    assert first.failed
    with pytest.raises(NasKdError, match="40 % busy.*nas-kd doctor.*--objectives rd_cost$"):
        first.require(OBJECTIVES)


@pytest.mark.parametrize(
    "outcomes", [(NOISY, NOISY), (GOOD, *[NOISY] * 9), (NOISY, GOOD, *[NOISY] * 9)]
)
def test_other_failures_do_not(outcomes):
    first = heard(*outcomes)
    assert not first.failed
    first.require(OBJECTIVES)


def test_a_study_that_has_a_reading_goes_on():
    assert not heard(*[NOISY] * 9, known=True).failed


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = {"N": [16, 32, 64]}
    return Study(Settings("s", "prim", objectives=OBJECTIVES, grid=grid))


def test_a_trial_that_could_not_be_measured_is_in_the_budget_and_its_arch_comes_last(study):
    archs = []
    for outcome in (NOISY, GOOD, GOOD):
        number, arch = study.ask(3)
        archs.append(arch.key)
        study.tell(number, outcome)
    assert len(set(archs)) == 3
    assert [t.state for t in study.trials][0] == TrialState.FAIL
    assert [was_read(t) for t in study.trials] == [False, True, True]
    assert study.counted() == 3
    assert study.ask(3) is None


def test_the_same_command_again_measures_what_was_trained(study):
    for outcome in (NOISY, GOOD, GOOD):
        number, _ = study.ask(3)
        study.tell(number, outcome)
    assert study.line_up_unread() == 1
    assert study.counted() == 2
    assert study.line_up_unread() == 0
    number, arch = study.ask(3)
    assert arch.key == study.trials[0].user_attrs["arch_key"]
    study.tell(number, GOOD)
    assert (study.counted(), study.line_up_unread()) == (3, 0)


def test_a_retry_that_fails_too_is_in_the_budget_once(study):
    number, _ = study.ask(3)
    study.tell(number, NOISY)
    study.line_up_unread()
    number, _ = study.ask(3)
    study.tell(number, NOISY)
    assert study.counted() == 1
    assert study.line_up_unread() == 1
