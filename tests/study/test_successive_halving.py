import math

import numpy as np
import pytest

from nas_kd.study.front import dominates, pareto_front
from nas_kd.study.successive_halving import (
    KEEP,
    crowding_distance,
    goes_on,
    layers,
    ranks,
    rungs_of,
)

RNG = np.random.default_rng(7)
SETS = [RNG.random((n, k)) * 10.0 ** RNG.integers(-3, 9, k) for n in (3, 10, 60) for k in (1, 2, 3)]


@pytest.mark.parametrize("points", SETS, ids=lambda p: "x".join(map(str, p.shape)))
def test_ranks_are_a_permutation_and_nobody_ranks_before_one_that_dominates_it(points):
    places = ranks(points)
    assert sorted(places) == list(range(len(points)))
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            assert not dominates(a, b) or places[i] < places[j]


@pytest.mark.parametrize("points", SETS, ids=lambda p: "x".join(map(str, p.shape)))
def test_the_best_third_goes_on_and_whoever_stops_is_dominated(points):
    places, front = ranks(points), pareto_front(points)
    for i, own in enumerate(points):
        on = goes_on(own, np.delete(points, i, axis=0))
        assert on == (places[i] < math.ceil(len(points) / KEEP) or i in front)


def test_of_one_objective_the_best_third_goes_on_and_no_other():
    points = RNG.permutation(30)[:, None].astype(float)
    on = [p[0] for i, p in enumerate(points) if goes_on(p, np.delete(points, i, axis=0))]
    assert sorted(on) == list(range(10))


def test_the_unit_of_an_objective_does_not_change_who_goes_on():
    points = SETS[5]
    assert ranks(points) == ranks(points * [1e-6, 1e9, 3.0])


def test_the_first_layer_is_the_front_and_the_layers_are_everybody():
    points = SETS[-1]
    found = layers(points)
    assert found[0] == pareto_front(points)
    assert sorted(i for layer in found for i in layer) == list(range(len(points)))


def test_crowding_by_hand():
    points = [(0.0, 4.0), (1.0, 2.0), (4.0, 0.0)]
    assert list(crowding_distance(points)) == [math.inf, 2.0, math.inf]
    assert list(crowding_distance([(1.0,), (1.0,)])) == [math.inf, math.inf]


def test_nobody_is_stopped_by_fewer_than_keep():
    assert goes_on((9.0, 9.0), [(1.0, 1.0)])
    assert not goes_on((9.0, 9.0), [(1.0, 1.0), (2.0, 2.0)])


def test_rungs_stand_a_ninth_and_a_third_of_the_way():
    assert rungs_of(900) == (100, 300)
    assert rungs_of(0) == rungs_of(1) == ()
    assert rungs_of(3) == (1,)
