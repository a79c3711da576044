"""Laws of the Pareto front, held against Optuna and against brute force."""

import itertools
import math

import numpy as np
import optuna
import pytest
from optuna._hypervolume import compute_hypervolume

from nas_kd.errors import StudyError
from nas_kd.study.front import dominates, hypervolume, pareto_front, reference_point

SEEDS = range(5)
WIDTHS = (1, 2, 3, 4)


def lattice(seed, n, width, side=4):
    """Integer points, so that ties and exact duplicates do occur."""
    return np.random.default_rng(seed).integers(side, size=(n, width)).astype(float)


def cells_dominated(points, reference):
    """Hypervolume of integer points by counting unit cells."""
    cells = itertools.product(*(range(int(end)) for end in reference))
    return sum(
        any(all(p <= c for p, c in zip(q, cell, strict=True)) for q in points) for cell in cells
    )


def union_by_inclusion_exclusion(points, reference):
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, size):
            sides = np.clip(np.asarray(reference) - np.max(chosen, axis=0), 0, None)
            total += (-1) ** (size + 1) * np.prod(sides)
    return total


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_front_is_optunas_best_trials(seed, width):
    points = np.vstack(
        [lattice(seed, 30, width), np.random.default_rng(seed).random((30, width)) * 4]
    )
    study = optuna.create_study(directions=["minimize"] * width)
    study.add_trials([optuna.trial.create_trial(values=list(point)) for point in points])
    assert pareto_front(points) == sorted(trial.number for trial in study.best_trials)


@pytest.mark.parametrize("width", WIDTHS)
def test_front_is_what_no_point_dominates(width):
    points = [tuple(point) for point in lattice(0, 25, width)]
    brute = [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    assert pareto_front(points) == brute


@pytest.mark.parametrize("width", WIDTHS)
def test_front_of_a_front_is_itself(width):
    points = lattice(1, 40, width)
    front = points[pareto_front(points)]
    assert pareto_front(front) == list(range(len(front)))


def test_duplicates_of_a_front_point_are_all_kept_in_input_order():
    assert pareto_front([(1, 2), (3, 3), (1, 2), (2, 1), (2, 2)]) == [0, 2, 3]


def test_front_of_nothing_is_empty():
    assert pareto_front([]) == []


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1, 1), (2, 2), True),
        ((1, 2), (1, 3), True),
        ((1, 2), (1, 2), False),
        ((1, 3), (2, 2), False),
        ((2, 2), (1, 1), False),
        ((1,), (2,), True),
    ],
)
def test_domination_is_nowhere_worse_and_somewhere_better(a, b, expected):
    assert dominates(a, b) is expected


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", SEEDS)
def test_hypervolume_counts_the_dominated_cells(seed, width):
    points, reference = lattice(seed, 8, width), (4,) * width
    assert hypervolume(points, reference) == cells_dominated(points, reference)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", SEEDS)
def test_hypervolume_is_the_union_by_inclusion_and_exclusion(seed, width):
    points = np.random.default_rng(seed).normal(size=(7, width))
    reference = np.full(width, 0.5)
    expected = union_by_inclusion_exclusion(points, reference)
    assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", SEEDS)
def test_hypervolume_is_optunas(seed, width):
    points = np.random.default_rng(seed).normal(size=(40, width))
    reference = points.max(axis=0) + 0.1
    expected = compute_hypervolume(points, reference)
    assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9)


def test_hypervolume_of_one_point_is_its_box():
    assert hypervolume([(1, 2, 3)], (2, 4, 6)) == 1 * 2 * 3


@pytest.mark.parametrize("width", WIDTHS)
def test_hypervolume_never_shrinks_when_a_point_is_added(width):
    points = np.random.default_rng(2).random((20, width))
    volumes = [hypervolume(points[:n], (0.9,) * width) for n in range(21)]
    assert volumes[0] == 0
    assert volumes[-1] > volumes[1]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(volumes))


@pytest.mark.parametrize("width", WIDTHS)
def test_hypervolume_ignores_the_order_of_points_and_of_objectives(width):
    rng = np.random.default_rng(3)
    points, reference = rng.random((15, width)), rng.random(width) + 0.5
    expected = pytest.approx(hypervolume(points, reference), rel=1e-12)
    assert hypervolume(rng.permutation(points), reference) == expected
    assert hypervolume(points[:, ::-1], reference[::-1]) == expected


@pytest.mark.parametrize("width", WIDTHS)
def test_a_dominated_or_repeated_point_adds_nothing(width):
    points, reference = lattice(4, 10, width), (5,) * width
    volume = hypervolume(points, reference)
    assert hypervolume([*points, points[3] + 0.5], reference) == volume
    assert hypervolume([*points, points[3]], reference) == volume
    assert hypervolume(points[pareto_front(points)], reference) == volume


@pytest.mark.parametrize("beyond", [(-9, 4, 0), (9, 9, 9), (0, 0, 4.5)])
def test_a_point_not_better_than_the_reference_everywhere_adds_nothing(beyond):
    inside, reference = [(1, 2, 3), (2, 1, 3)], (4, 4, 4)
    assert hypervolume([*inside, beyond], reference) == hypervolume(inside, reference)


def test_reference_is_the_worst_value_plus_a_margin_of_the_range():
    points = [(-20, 300), (30, 100), (0, 200)]
    assert reference_point(points) == pytest.approx((35, 320))
    assert reference_point(points, margin=0.5) == pytest.approx((55, 400))


def test_reference_lies_beyond_every_point_even_without_a_range():
    points = [(-5, 0, 7), (-5, 0, 9)]
    assert reference_point(points) == pytest.approx((-4.5, 0.1, 9.2))
    assert hypervolume(points, reference_point(points)) > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize(
    "use", [pareto_front, reference_point, lambda points: hypervolume(points, (9, 9))]
)
def test_a_value_that_is_not_finite_is_an_error_that_names_the_point(use, bad):
    with pytest.raises(StudyError, match=r"^point 1 is \(2, .*finite.*leave out[^\n]*$"):
        use([(1, 1), (2, bad)])


@pytest.mark.parametrize("short", [(), (1,), (1, 2, 3)])
def test_points_of_unequal_length_are_an_error_that_names_the_point(short):
    with pytest.raises(StudyError, match=f"point 2 has {len(short)} objectives where 2"):
        pareto_front([(1, 1), (2, 2), short])
    with pytest.raises(StudyError, match="point 1 has"):
        dominates((1, 1), short)


def test_a_bad_reference_or_margin_is_an_error():
    with pytest.raises(StudyError, match="reference point 0 is"):
        hypervolume([(1, 1)], (2, math.inf))
    with pytest.raises(StudyError, match="point 0 has 2 objectives where 3"):
        hypervolume([(1, 1)], (2, 2, 2))
    with pytest.raises(StudyError, match="no points"):
        reference_point([])
    for margin in (0, -0.1, math.nan):
        with pytest.raises(StudyError, match="margin"):
            reference_point([(1, 1)], margin)
