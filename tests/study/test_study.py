import fcntl
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.errors import StudyError, UsageError
from nas_kd.study.record import Outcome
from nas_kd.study.sampler import distributions
from nas_kd.study.study import Settings, Study, open_study
from nas_kd.study.trial_artifacts import attach


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Study(Settings(name="s", space="prim", objectives=("bd_rate", "flops")))


def tell(study, asked, values):
    study.tell(asked[0], Outcome(values, None if values else "no_overlap", 2.5))


def test_a_study_reopens_with_the_settings_it_was_begun_with(study):
    assert open_study("s").settings == study.settings


def test_other_settings_under_the_same_name_are_refused(study):
    study.ask(1)
    with pytest.raises(StudyError, match="steps = 7"):
        Study(Settings(name="s", space="prim", objectives=("bd_rate", "flops"), steps=7))


def test_other_objectives_under_the_same_name_are_refused_with_both(study):
    study.ask(1)
    for other in (("bd_rate", "flops", "energy"), ("flops",), ("rd_cost", "flops")):
        with pytest.raises(StudyError, match="but it was begun with .'bd_rate', 'flops'"):
            Study(replace(study.settings, objectives=other))


def test_a_study_without_trials_is_begun_anew_with_other_settings(study):
    study.optuna.set_user_attr("anchor", {"name": "of the old settings"})
    anew = Study(replace(study.settings, steps=7, objectives=("flops",)))
    assert open_study("s").settings == anew.settings
    assert "anchor" not in anew.optuna.user_attrs
    assert len(anew.optuna.directions) == 1


def test_a_study_that_another_driver_prepares_is_not_begun_anew(study):
    with study.driving(), pytest.raises(StudyError, match="steps = 7, but it was begun with 2000"):
        Study(replace(study.settings, steps=7))
    assert Study(replace(study.settings, steps=7)).begun_here


def test_a_withdrawn_study_leaves_nothing_and_one_with_trials_or_another_driver_stays(study):
    other = open_study("s")
    other.withdraw()  # it was not begun there
    with other.driving():
        study.withdraw()
    assert open_study("s").settings == study.settings
    study.withdraw()
    assert not Path("studies").exists()
    used = Study(study.settings)
    used.ask(1)
    used.withdraw()
    assert len(open_study("s").trials) == 1


def test_reading_a_study_takes_no_lock_and_writes_nothing(study):
    study.ask(1)
    shutil.rmtree(study.folder / ".drivers")
    assert len(open_study("s").trials) == 1
    assert [path.name for path in study.folder.iterdir()] == ["study.db"]


def test_a_setting_of_a_later_version_is_named(study):
    study.optuna.set_user_attr("settings", study.settings.to_json() | {"momentum": 1})
    with pytest.raises(StudyError, match="setting momentum is unknown here: .* a later version"):
        open_study("s")


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", ".hidden", "", " ", "a\nb", "n" * 101])
def test_a_name_that_is_no_folders_name_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match="name = .*must be a folder's name"):
        Settings(name=name, space="demo")
    with pytest.raises(StudyError, match="there is none in studies/"):
        open_study(name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", ["s", "studies/s", "studies/s/", "./studies/s"])
def test_a_study_is_opened_by_its_name_or_by_what_the_shell_completes(study, spec):
    assert open_study(spec).settings.name == "s"
    assert Settings(name="t", space="demo", from_study=spec).from_study == "s"


@pytest.mark.thorough
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
    assert (trial.state, trial.user_attrs["constraints"]) == (TrialState.PRUNED, [2.5, 0.0])
    study.tell(study.ask(5)[0], Outcome(None, "crash"))
    assert study.counted() == 1


def test_the_front_is_optunas_best_trials(study):
    for i in range(6):
        asked = study.ask(6)
        if asked is not None:
            tell(study, asked, [float((i * 5) % 6), float((i * 7) % 4)])
    best = {t.number for t in study.optuna.best_trials if "same_as" not in t.user_attrs}
    assert {t.number for t in study.front()} == best


def test_what_a_driver_leaves_running_is_lined_up_again(study):
    with study.driving():
        number, _ = study.ask(5)
        assert study.reap() == 0
    assert study.trials[number].state == TrialState.FAIL
    assert study.trials[number + 1].state == TrialState.WAITING


def test_a_driver_that_dies_between_lining_up_and_failing_doubles_nothing(study):
    number, arch = study.ask(5)
    trial = study.trials[number]
    study.optuna.enqueue_trial(trial.params, user_attrs={"retry_of": number})
    study.reap()
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert study.ask(5)[1] == arch


def test_a_retry_that_dies_before_its_arch_is_known_is_still_that_arch(study):
    _, arch = study.ask(5)
    study.reap()
    study.optuna.ask()
    study.reap()
    assert study.ask(5)[1] == arch


def test_an_arch_in_training_is_not_handed_out_and_its_twins_get_its_outcome(study):
    asked = []
    while (trial := study.ask(12)) is not None:
        asked.append(trial)
    assert len({arch.key for _, arch in asked}) == len(asked) <= 8
    for number, _ in asked:
        study.tell(number, Outcome([float(number), 1.0]))
    assert study.counted() == 12
    for trial in study.trials:
        assert trial.values[0] == float(trial.user_attrs.get("same_as", trial.number))


def test_the_twins_of_a_trial_that_failed_are_outside_the_budget_too(study):
    asked = []
    while (trial := study.ask(10)) is not None:
        asked.append(trial)
    for number, _ in asked:
        study.tell(number, Outcome(None, "crash"))
    assert {t.state for t in study.trials} == {TrialState.FAIL}


@pytest.mark.parametrize("reason", ["worker_died", "out_of_memory"])
def test_an_arch_that_kills_its_worker_three_times_is_given_up(study, reason):
    keys = []
    for _ in range(3):
        number, arch = study.ask(5)
        keys.append(arch.key)
        study.tell(number, Outcome(None, reason))
    assert len(set(keys)) == 1
    assert [t.state.name for t in study.trials] == ["FAIL", "FAIL", "PRUNED"]
    assert study.ask(5)[1].key != keys[0]


def test_an_interrupted_trial_is_tried_again_however_often(study):
    for _ in range(5):
        number, arch = study.ask(5)
        assert study.tell(number, Outcome(None, "interrupted")) == TrialState.FAIL
    assert study.ask(5)[1] == arch
    assert study.counted() == 0


def test_a_trial_that_was_taken_for_dead_does_not_count_when_it_comes_back(study):
    number, _ = study.ask(5)
    study.reap()
    assert study.tell(number, Outcome([1.0, 1.0])) == TrialState.FAIL
    assert study.counted() == 0


def test_the_checkpoint_stays_until_the_values_are_stored(study):
    number, _ = study.ask(5)
    checkpoint = study.student_folder(study.trials[number]) / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    study.tell(number, Outcome([1.0, 2.0]))
    assert not checkpoint.exists()


def test_at_a_rung_the_worst_of_three_stops_and_its_own_past_does_not_count(study):
    asked = sorted((study.ask(9) for _ in range(3)), key=lambda one: arch_cost(one[1]).total.macs)
    (cheapest, _), (middle, _), (dearest, arch) = asked
    assert study.goes_on(cheapest, 10, 1.0)
    assert study.goes_on(middle, 10, 2.0)
    assert not study.goes_on(dearest, 10, 3.0)
    assert study.goes_on(dearest, 20, 3.0)
    assert study.goes_on(cheapest, 10, 5.0)
    values = [3.0, float(arch_cost(arch).total.macs)]
    assert study.trials[dearest].user_attrs["rungs"] == {"10": values, "20": values}


def test_a_study_of_an_earlier_version_lacks_newer_settings_and_still_opens(study):
    stored = dict(study.optuna.user_attrs["settings"])
    del stored["early_stopping"]
    study.optuna.set_user_attr("settings", stored)
    assert open_study("s").settings == study.settings
    study.ask(1)
    with pytest.raises(StudyError, match="early_stopping = True"):
        Study(replace(study.settings, early_stopping=True))


@pytest.mark.parametrize("key", ["steps", "warmup", "rank"])
def test_a_negative_number_is_refused_before_anything_is_written(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"{key} = -1"):
        Settings(name="s", space="demo", **{key: -1})
    assert not list(tmp_path.iterdir())


def test_an_arch_over_a_free_limit_is_never_handed_out_and_told_by_how_much(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    limit = {"max_gmac": "decoder=2", "sampler": "random"}
    study = Study(Settings(name="s", space="prim", objectives=("bd_rate", "flops"), **limit))
    while (asked := study.ask(8)) is not None:
        assert arch_cost(asked[1]).decoder.macs <= 2e9
        tell(study, asked, [1.0, 1.0])
    refused = [t for t in study.trials if t.user_attrs.get("reason") == "over_max_gmac"]
    assert refused
    assert study.counted() == len(study.trials) - len(refused)
    for trial in refused:
        over = arch_cost(study.space.arch(trial.params)).decoder.macs / 2e9 - 1
        assert trial.state == TrialState.PRUNED
        assert trial.constraints["1"] == pytest.approx(over)
        assert over > 0


@pytest.mark.thorough
def test_a_limit_that_no_arch_is_under_ends_the_search_with_the_limit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(Settings(name="s", space="prim", objectives=("bd_rate", "flops"), max_params=9))
    with pytest.raises(StudyError, match=r"max_params = 9.0: none of .* archs of space prim"):
        study.ask(3)


def test_another_sampler_or_limit_under_the_same_name_is_refused_and_more_polish_is_not(study):
    study.ask(1)
    for other in ({"sampler": "tpe"}, {"max_mj": 3}):
        with pytest.raises(StudyError, match="but it was begun with"):
            Study(replace(study.settings, **other))
    assert Study(replace(study.settings, polish=10)).settings.polish == 10


def is_free(study):
    """Whether another driver could take the study's lock now."""
    with open(study.folder / ".drivers" / "all") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class Proposes(RandomSampler):
    """A model that takes its time: ``meanwhile`` happens while it thinks."""

    def __init__(self, proposals, meanwhile):
        super().__init__(0)
        self.proposals, self.meanwhile = proposals, meanwhile

    def infer_relative_search_space(self, study, trial):
        return distributions(load_space("prim"))

    def sample_relative(self, study, trial, search_space):
        self.meanwhile()
        return self.proposals.pop(0)


def test_a_model_is_asked_outside_of_the_lock_and_again_where_another_driver_was_first(
    study, monkeypatch
):
    other, (first, second) = open_study("s"), list(study.space.grid())[:2]
    taken, free = [], []

    def meanwhile():
        free.append(is_free(study))
        if not taken:
            other.optuna.enqueue_trial(first)
            taken.append(other.ask(5))

    sampler = Proposes([first, second], meanwhile)
    monkeypatch.setattr("nas_kd.study.asking.make_sampler", lambda *given: sampler)
    number, arch = study.ask(5)
    assert taken[0][1] == study.space.arch(first)
    assert arch == study.space.arch(second)
    assert study.trials[number].params == second
    assert free == [True, True]


def test_files_are_copied_outside_of_the_lock_and_a_trial_taken_for_dead_meanwhile_stays_so(
    study, monkeypatch
):
    free = []

    def slow(trial, *given):
        free.append(is_free(study))
        if trial.number:
            study.reap()
        attach(trial, *given)

    monkeypatch.setattr("nas_kd.study.telling.attach", slow)
    first, second = (study.ask(5)[0] for _ in range(2))
    assert study.tell(first, Outcome([1.0, 1.0])) == TrialState.COMPLETE
    assert study.tell(second, Outcome([1.0, 1.0])) == TrialState.FAIL
    assert free == [True, True]


def test_the_budget_holds_while_several_drivers_propose(study):
    others = [open_study("s") for _ in range(4)]
    with ThreadPoolExecutor(4) as drivers:
        asked = list(drivers.map(lambda one: one.ask(3), others))
    assert sum(one is not None for one in asked) <= 3
    assert len(study.trials) == 3
