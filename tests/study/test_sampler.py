import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.errors import StudyError
from nas_kd.study.front import hypervolume
from nas_kd.study.record import Outcome
from nas_kd.study.sampler import (
    START,
    ExactCost,
    History,
    distributions,
    features_of,
    history_of,
    make_sampler,
)
from nas_kd.study.settings import SAMPLERS, checked
from nas_kd.study.study import Settings, Study
from nas_kd.study.surrogate import Features, Surrogate

ASYMMETRIC, DEMO, PRIM = (load_space(name) for name in ("asymmetric", "demo", "prim"))
TWO = ("bd_rate", "flops")


def rate(arch) -> float:
    """A BD-rate that falls with what both sides compute, the decoder's counting more."""
    cost = arch_cost(arch)
    return 60 * (cost.encoder.macs / 1e9) ** -0.3 + 90 * (cost.decoder.macs / 1e9) ** -0.4


def history(space, n: int, value=rate) -> History:
    found = History()
    for arch in [space.draw(seed) for seed in range(n)]:
        found.quality[arch], found.lacks[arch] = (value(arch), 0.0), 0.0
        found.taken.add(arch)
    return found


def ours(space, seed=0, objectives=TWO, **more) -> ExactCost:
    return ExactCost(space, objectives, seed, features_of(space), **more)


def test_the_distributions_are_what_the_space_asks_a_trial_for():
    for space in (ASYMMETRIC, DEMO, PRIM):
        trial = optuna.create_study().ask()
        space.suggest(trial)
        assert trial.distributions == distributions(space)


def test_equal_seeds_and_trials_give_equal_proposals():
    there = history(ASYMMETRIC, 20)
    first, again = (ours(ASYMMETRIC).propose(there) for _ in range(2))
    assert first == again
    ends = History(taken={ASYMMETRIC.extreme(True), ASYMMETRIC.extreme(False)})
    assert ours(ASYMMETRIC, 1).propose(ends) != ours(ASYMMETRIC, 2).propose(ends)


def test_the_ends_of_the_space_come_first_where_no_limit_is_below_them():
    there, proposed = History(), []
    for seed in range(3):
        proposed.append(DEMO.arch(ours(DEMO, seed).propose(there)))
        there.taken.add(proposed[-1])
    assert proposed[:2] == [DEMO.extreme(True), DEMO.extreme(False)]
    macs = [arch_cost(arch).total.macs for arch in proposed]
    assert macs[1] < macs[2] < macs[0]

    def over(arch):
        return arch_cost(arch).total.macs / macs[2] - 1

    assert DEMO.arch(ours(DEMO, over=over).propose(History())) == DEMO.extreme(False)


def test_no_arch_is_proposed_twice_and_none_over_a_limit():
    there = history(PRIM, 0)
    limit = arch_cost(PRIM.arch({"N": 96})).total.macs

    def over(arch):
        return arch_cost(arch).total.macs / limit - 1

    for step in range(6):
        arch = PRIM.arch(ours(PRIM, step, over=over).propose(there))
        assert arch not in there.taken
        assert over(arch) <= 0
        there.taken.add(arch)
        there.quality[arch] = rate(arch), 0.0
    assert len(there.taken) == 6  # all that are under the limit
    PRIM.arch(ours(PRIM, over=over).propose(there))  # nothing is left: any of them, and no error


def test_what_is_under_way_counts_as_if_it_had_ended():
    there = history(DEMO, START + 4)
    first = DEMO.arch(ours(DEMO).propose(there))
    there.pending.append(first)
    there.taken.add(first)
    second = DEMO.arch(ours(DEMO).propose(there))
    assert second != first
    sampler = ours(DEMO)
    from nas_kd.study.sampler import _Model

    with_it = _Model(sampler, there).score([first])
    there.pending.clear()
    assert with_it < np.log(0.9) + _Model(sampler, there).score([first])


@pytest.mark.thorough
def test_infeasible_trials_teach_where_not_to_go():
    there = History()
    for arch in [ASYMMETRIC.draw(seed) for seed in range(40)]:
        there.taken.add(arch)
        there.lacks[arch] = 0.0 if arch.M > 192 else 3.0
        if arch.M > 192:
            there.quality[arch] = rate(arch), 0.0
    proposed = [ours(ASYMMETRIC, seed).propose(there) for seed in range(3)]
    assert all(p["M"] > 192 for p in proposed)


@pytest.mark.thorough
def test_it_finds_more_than_random_draws():
    there, reference = history(ASYMMETRIC, START), (400.0, 7e10)
    for seed in range(12):
        arch = ASYMMETRIC.arch(ours(ASYMMETRIC, seed).propose(there))
        there.quality[arch] = rate(arch), 0.0
        there.taken.add(arch)

    def volume(archs):
        return hypervolume([(rate(a), float(arch_cost(a).total.macs)) for a in archs], reference)

    drawn = [ASYMMETRIC.draw(seed) for seed in range(100)]
    assert volume(list(there.taken)) > volume(drawn)


def test_an_energy_that_is_measured_is_learned_where_it_is_not():
    there = history(DEMO, 16)
    there.costs["energy"] = {a: 1e-6 * arch_cost(a).total.macs ** 0.8 for a in there.quality}
    from nas_kd.study.sampler import _Model

    model = _Model(ours(DEMO, objectives=("bd_rate", "flops", "energy")), there)
    unseen = [DEMO.draw(seed) for seed in range(100, 110)]
    guessed = model._costs(unseen)[:, 1]
    wanted = [1e-6 * arch_cost(a).total.macs ** 0.8 for a in unseen]
    assert guessed == pytest.approx(wanted, rel=0.1)
    known = there.costs["energy"]
    assert model._costs(list(known))[:, 1].tolist() == list(known.values())
    assert DEMO.arch(ours(DEMO, objectives=("flops", "energy", "rd_cost")).propose(there))


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Study(Settings(name="s", space="demo", objectives=TWO, early_stopping=True))


def test_a_stopped_trial_teaches_by_its_loss_at_the_rung(study):
    for i in range(6):
        number, _ = study.ask(9)
        study.goes_on(number, 10, float(i))
        outcome = Outcome([10.0 * i, 1.0]) if i < 5 else Outcome(None, "stopped at step 10")
        study.tell(number, outcome)
    found = history_of(study.trials, study.space, 0)
    value, doubt = found.quality[study.space.arch(study.trials[5].params)]
    assert value == pytest.approx(50.0)
    assert doubt == pytest.approx(0.0, abs=1e-6)
    assert len(found.taken) == 6


@pytest.mark.thorough
def test_a_study_is_repeatable_by_its_seed_with_one_worker_also_after_a_resume(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    asked = []
    for name in ("a", "b"):
        settings = Settings(name=name, space="demo", objectives=TWO)
        study, keys = Study(settings), []
        for i in range(START + 2):
            study = Study(settings) if i == START else study
            number, arch = study.ask(99)
            study.tell(number, Outcome([rate(arch), float(arch_cost(arch).total.macs)]))
            keys.append(arch.key)
        asked.append(keys)
    assert asked[0] == asked[1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_proposes_archs_of_the_space(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(Settings(name="s", space="demo", objectives=TWO, sampler=name))
    for i in range(3):
        number, arch = study.ask(9)
        values = [rate(arch), float(arch_cost(arch).total.macs)]
        study.tell(number, Outcome(values) if i else Outcome(None, "no_overlap", 2.0))
    assert [t.state for t in study.trials[:2]] == [TrialState.PRUNED, TrialState.COMPLETE]


def test_what_has_no_closed_form_is_searched_with_tpe_or_refused():
    assert checked("auto", TWO) == "exact-cost"
    assert checked("auto", ("bd_rate", "rd_cost")) == "tpe"
    with pytest.raises(StudyError, match="exactly one of bd_rate, rd_cost"):
        checked("exact-cost", ("flops",))
    with pytest.raises(StudyError, match="must be one of auto, exact-cost, gp"):
        make_sampler("cma", DEMO, TWO, 0)


def test_equal_networks_look_equal_and_features_have_unit_variance():
    features = Features(ASYMMETRIC)
    drawn = np.array([features.of(ASYMMETRIC.draw(seed)) for seed in range(256)])
    assert drawn.mean(axis=0) == pytest.approx(0, abs=1e-9)
    assert drawn.std(axis=0) == pytest.approx(1)
    frontier = load_space("frontier")
    params = {name: choices[0] for name, choices in frontier.vary.items()}
    other = params | {"decoder_block": "gated", "encoder_width_2": 128}  # without effect
    assert (
        features_of(frontier).of(frontier.arch(params))
        == features_of(frontier).of(frontier.arch(other))
    ).all()


def test_the_surrogate_knows_what_it_saw_and_doubts_what_it_did_not():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((40, 3))
    y = x[:, 0] + np.sin(2 * x[:, 1])
    model = Surrogate(x, y, np.zeros(40), 0)
    mean, sd = model.predict(x)
    assert mean == pytest.approx(y, abs=0.15)
    assert model.predict(np.full((1, 3), 9.0))[1][0] > 2 * sd.max()
