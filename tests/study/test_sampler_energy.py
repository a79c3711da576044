"""The energy model in the sampler: it chooses, and the front has measured energies alone."""

import numpy as np
import pytest

from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.measurement.reading import Reading
from nas_kd.study.energy_guess import EnergyGuess, work
from nas_kd.study.sampler import START, ExactCost, History, _Model, features_of
from nas_kd.study.study import Settings, Study
from nas_kd.study.trial import Outcome

DEMO = load_space("demo")
OBJECTIVES = ("bd_rate", "flops", "energy")


def rate(arch) -> float:
    return 60 * (arch_cost(arch).total.macs / 1e9) ** -0.3


def energy_mj(arch) -> float:
    """A law in which a kernel costs what ten million multiply-accumulates do, as where launches take long."""
    done = work(arch, "both")
    return 2e-9 * done.macs + 1e-8 * done.bytes + 2e-2 * done.kernels


def history(n: int) -> History:
    found = History(costs={"energy": {}})
    for arch in [DEMO.draw(seed) for seed in range(n)]:
        found.quality[arch], found.costs["energy"][arch] = (rate(arch), 0.0), energy_mj(arch)
        found.taken.add(arch)
    return found


def model(there: History) -> _Model:
    return _Model(ExactCost(DEMO, OBJECTIVES, 0, features_of(DEMO)), there)


def test_energies_that_are_a_sum_over_work_are_guessed_better_with_the_model():
    there, unseen = history(12), [DEMO.draw(seed) for seed in range(50, 58)]
    known = model(there)
    wanted = np.array([energy_mj(arch) for arch in unseen])
    without = np.abs(np.array(known._guessed("energy", unseen, 0.0)) / wanted - 1)
    known.chosen(unseen)
    joined = np.abs(np.array(known._guessed("energy", unseen, 0.0)) / wanted - 1)
    assert joined.max() < 0.02
    assert joined.mean() < 0.5 * without.mean()


def test_of_equal_archs_the_one_with_less_energy_is_chosen_and_more_readings_than_seven_are_needed():
    there = history(12)
    known = model(there)
    pair = [DEMO.draw(seed) for seed in (60, 61)]
    known.score = lambda archs: -known._costs(archs)[:, 1]
    cheaper = min(pair, key=energy_mj)
    assert known.chosen(pair) == known.chosen(pair[::-1]) == cheaper
    few = dict(list(there.costs["energy"].items())[:7])
    assert EnergyGuess.of(few, "both") is None


@pytest.mark.thorough
def test_with_energies_cheaper_archs_are_proposed_than_without():
    with_them, without = history(12), history(12)
    without.costs.clear()

    def proposed(there):
        archs = [
            DEMO.arch(ExactCost(DEMO, OBJECTIVES, s, features_of(DEMO)).propose(there))
            for s in (0, 1)
        ]
        return np.mean([energy_mj(arch) for arch in archs])

    assert proposed(with_them) < proposed(without)


@pytest.mark.thorough
def test_a_front_never_holds_a_predicted_energy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study, told = Study(Settings(name="s", space="demo", objectives=OBJECTIVES)), set()
    for i in range(START + 3):
        number, arch = study.ask(99)
        reading = Reading.measured(energy_mj(arch), 0.1, "mJ", "nvml")
        values = [rate(arch), float(arch_cost(arch).total.macs), reading.value]
        if i % 4 == 3:  # a better one than all, but for its reading
            study.tell(number, Outcome(None, "energy: shared: another process"))
            continue
        told.add(reading.value)
        study.tell(number, Outcome(values, attrs={"energy": reading.to_json()}))
    assert len(told) > 7  # the sampler has predicted by then
    assert {trial.values[2] for trial in study.front()} <= told
    for trial in study.trials:
        assert trial.values is None or trial.values[2] == trial.user_attrs["energy"]["value"]


@pytest.mark.thorough
def test_work_is_the_same_whether_computed_or_only_counted():
    import torch

    from nas_kd.codec.networks import FRAME
    from nas_kd.codec.student import Student
    from nas_kd.measurement.energy_model import work_of

    arch = DEMO.draw(0)
    assert work(arch, "both") == work_of(Student(arch).eval(), "both", torch.rand(FRAME))
