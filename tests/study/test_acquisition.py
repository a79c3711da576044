import numpy as np
import pytest

from nas_kd.study.acquisition import log_expected_improvement
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
    found = np.exp(log_expected_improvement(mean, sd, cost, front, reference))
    for i in range(4):
        wanted = _sampled(mean[i], sd[i], cost[i], front.tolist(), reference.tolist())
        assert found[i] == pytest.approx(wanted, rel=2e-3, abs=2e-5)


def test_without_a_front_the_whole_box_is_won():
    one = np.ones(1)
    found = log_expected_improvement(
        0 * one, 1e-9 * one, 0.5 * one[:, None], np.empty((0, 2)), np.ones(2)
    )
    assert np.exp(found[0]) == pytest.approx(0.5)


def test_a_candidate_beyond_the_reference_wins_nothing():
    one = np.ones(1)
    found = log_expected_improvement(0 * one, one, 2 * one[:, None], np.empty((0, 2)), np.ones(2))
    assert found[0] == -np.inf


def test_candidates_whose_improvement_is_below_every_number_still_have_an_order():
    front, reference = np.array([[0.0, 0.5]]), np.array([1.0, 1.0])
    mean = np.array([1e6, 50.0, 3.0, 50.0])
    cost = np.array([0.1, 0.1, 0.1, 0.4])[:, None]
    found = log_expected_improvement(mean, np.full(4, 0.05), cost, front, reference)
    assert (np.exp(found) == 0).all()  # as products they were equal, and the first was proposed
    assert np.isfinite(found).all()
    assert np.argsort(-found).tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("u", [-0.9, -1.1, -5.0, -30.0])
def test_far_terms_are_those_of_many_digits(u):
    """Without a front: log of sd (u Phi(u) + phi(u)), as the sum of an asymptotic series where there is one."""
    sd = 0.3
    found = log_expected_improvement(
        np.array([-u * sd]), np.array([sd]), np.zeros((1, 0)), np.empty((0, 1)), np.zeros(1)
    )
    from scipy.integrate import quad

    scaled, _ = quad(lambda s: s * np.exp(-0.5 * s**2 + u * s), 0, np.inf)
    wanted = np.log(sd) - 0.5 * u**2 - 0.5 * np.log(2 * np.pi) + np.log(scaled)
    assert found[0] == pytest.approx(wanted, rel=1e-7)
