import pytest
from optuna.trial import TrialState

from nas_kd.errors import StudyError
from nas_kd.study import Settings, Study, open_study
from nas_kd.trial import Outcome


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Study(Settings(name="s", space="prim", objectives=("bd_rate", "flops")))


def tell(study, asked, values):
    study.tell(asked[0], Outcome(values, None if values else "no_overlap", 2.5))


def test_a_study_reopens_with_the_settings_it_was_begun_with(study):
    assert open_study("s").settings == study.settings


def test_other_settings_under_the_same_name_are_refused(study):
    with pytest.raises(StudyError, match="steps = 7"):
        Study(Settings(name="s", space="prim", objectives=("bd_rate", "flops"), steps=7))


def test_the_budget_counts_finished_trials_and_no_arch_is_handed_out_twice(study):
    keys = []
    while (asked := study.ask(20)) is not None:
        keys.append(asked[1].key)
        tell(study, asked, [float(len(keys)), -float(len(keys))])
    assert len(keys) == len(set(keys)) <= 8
    assert study.counted() == 20


def test_an_interrupted_trial_is_failed_and_lined_up_again(study):
    number, arch = study.ask(5)
    assert study.reap() == 1
    assert study.trials[number].state == TrialState.FAIL
    again, same = study.ask(5)
    assert same == arch
    assert study.trials[again].user_attrs["retry_of"] == number


def test_infeasible_is_pruned_with_what_it_lacks_and_a_crash_is_outside_the_budget(study):
    tell(study, asked := study.ask(5), None)
    trial = study.trials[asked[0]]
    assert (trial.state, trial.user_attrs["constraints"]) == (TrialState.PRUNED, [2.5])
    study.tell(study.ask(5)[0], Outcome(None, "crash"))
    assert study.counted() == 1


def test_the_front_is_optunas_best_trials(study):
    for i in range(6):
        asked = study.ask(6)
        if asked is not None:
            tell(study, asked, [float((i * 5) % 6), float((i * 7) % 4)])
    best = {t.number for t in study.optuna.best_trials if "same_as" not in t.user_attrs}
    assert {t.number for t in study.front()} == best


def test_a_second_driver_is_refused(study):
    with study.driving(), pytest.raises(StudyError, match="another process"), study.driving():
        pass
