import pytest

from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.errors import StudyError
from nas_kd.study.record import Outcome
from nas_kd.study.sampler import ExactCost, History, features_of
from nas_kd.study.study import Settings, Study
from nas_kd.study.transfer import take_over

TWO = ("bd_rate", "flops")


def values(arch) -> list[float]:
    cost = arch_cost(arch)
    return [90 * (cost.decoder.macs / 1e9) ** -0.4, float(cost.total.macs)]


@pytest.fixture
def source(tmp_path, monkeypatch) -> Study:
    monkeypatch.chdir(tmp_path)
    study = Study(Settings("old", "demo", objectives=TWO, sampler="random"))
    for i in range(12):
        number, arch = study.ask(12)
        study.tell(number, Outcome(values(arch)) if i else Outcome(None, "no_overlap", 2.0))
    return study


def test_the_other_studys_front_is_tried_first_and_later_changes_there_change_nothing(source):
    study = Study(Settings("new", "demo", objectives=TWO, from_study="old"))
    take_over(study)
    wanted = [t.user_attrs["arch_key"] for t in source.front()]
    asked = []
    for _ in wanted:
        number, arch = study.ask(99)
        study.tell(number, Outcome(values(arch)))
        asked.append(arch.key)
    assert asked == wanted
    kept = study.prior
    source.optuna.set_user_attr("settings", {})  # a second look would fail
    take_over(study)
    assert study.prior == kept
    assert [row["lacks"] for row in kept].count(2.0) == 1


def test_the_prior_teaches_the_sampler_and_own_values_move_it(source):
    space = load_space("demo")
    study = Study(Settings("new", "demo", objectives=TWO, from_study="old"))
    take_over(study)
    before, own = History.from_rows(study.prior), History()
    from nas_kd.study.sampler import _Model

    unseen = [space.draw(seed) for seed in range(300, 310)]
    for arch in (space.draw(seed) for seed in range(5)):
        own.quality[arch] = values(arch)[0] + 40, 0.0  # the same archs, judged on harder pictures
        own.taken.add(arch)
    sampler = ExactCost(space, TWO, 0, features_of(space), before=before)
    guessed, _ = _Model(sampler, own).quality(_Model(sampler, own)._x(unseen))
    wanted = [values(arch)[0] + 40 for arch in unseen]
    assert guessed == pytest.approx(wanted, rel=0.12)
    assert space.arch(sampler.propose(History())) not in own.quality  # from the first trial on


@pytest.mark.thorough
def test_another_quality_objective_still_gives_archs_and_another_space_values(source):
    study = Study(Settings("new", "demo", objectives=("rd_cost", "flops"), from_study="old"))
    take_over(study)
    assert all(row["quality"] is None for row in study.prior)
    _, arch = study.ask(5)
    assert arch.key == source.front()[0].user_attrs["arch_key"]
    study = Study(Settings("newer", "prim", objectives=TWO, from_study="old"))
    take_over(study)
    assert not any(row["front"] for row in study.prior)  # prim holds none of these archs
    assert study.ask(5) is not None


@pytest.mark.parametrize(
    ("name", "message"), [("new", "is this study itself"), ("no", "there is none")]
)
def test_a_prior_that_is_not_there_is_named(source, name, message):
    study = Study(Settings("new", "demo", objectives=TWO, from_study=name))
    with pytest.raises(StudyError, match=message):
        take_over(study)


def test_a_prior_without_a_finished_trial_is_refused(source):
    Study(Settings("empty", "demo", objectives=TWO))
    study = Study(Settings("new", "demo", objectives=TWO, from_study="empty"))
    with pytest.raises(StudyError, match="has no finished trial"):
        take_over(study)
