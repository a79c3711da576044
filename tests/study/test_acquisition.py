import numpy as np
import pytest

from nas_kd.study.acquisition import expected_improvement
from nas_kd.study.front import hypervolume


def _sampled(mean, sd, cost, front, reference, n=4000):
    """The definition: the mean growth of the hypervolume over draws of the uncertain objective."""
    before = hypervolume(front, reference)
    quantiles = (np.arange(n) + 0.5) / n
    from scipy.special import ndtri

    grown = [
        hypervolume([*front, (q, *cost)], reference) - before for q in mean + sd * ndtri(quantiles)
    ]
    return np.mean(grown)


@pytest.mark.parametrize("costs", [0, 1, 2])
@pytest.mark.thorough
def test_the_closed_form_is_the_mean_growth_of_the_hypervolume(costs: int):
    generator = np.random.default_rng(costs)
    front = generator.random((6, 1 + costs))  # some of them dominated
    reference = np.full(1 + costs, 0.9)
    mean, sd = generator.random(4), np.array([0.01, 0.1, 0.3, 0.3])
    cost = generator.random((4, costs))
    found = expected_improvement(mean, sd, cost, front, reference)
    for i in range(4):
        wanted = _sampled(mean[i], sd[i], cost[i], front.tolist(), reference.tolist())
        assert found[i] == pytest.approx(wanted, rel=2e-3, abs=2e-5)


def test_without_a_front_the_whole_box_is_won():
    one = np.ones(1)
    found = expected_improvement(
        0 * one, 1e-9 * one, 0.5 * one[:, None], np.empty((0, 2)), np.ones(2)
    )
    assert found[0] == pytest.approx(0.5)


def test_a_candidate_beyond_the_reference_wins_nothing():
    one = np.ones(1)
    found = expected_improvement(0 * one, one, 2 * one[:, None], np.empty((0, 2)), np.ones(2))
    assert found[0] == 0
