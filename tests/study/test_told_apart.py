import numpy as np
import pytest
from scipy.stats import ttest_rel

from nas_kd.study.told_apart import difference, grouped, pictures_differ, readings_differ


def test_a_group_is_of_all_with_all_and_of_neighbours():
    """0 is like 1 and 1 is like 2, but 0 and 2 differ: 2 stands alone, and 3 with it."""
    alike = {(0, 1), (1, 2), (2, 3)}
    assert grouped(5, lambda i, j: (i, j) not in alike) == [[0, 1], [2, 3]]
    assert grouped(3, lambda i, j: True) == []


def test_what_moves_all_pictures_alike_tells_two_apart_however_far_pictures_lie_from_each_other():
    far = [-40.0, 0.0, 35.0, 80.0]
    assert pictures_differ(far, [x + d for x, d in zip(far, (1.0, 1.2, 0.9, 1.1), strict=True)])
    assert not pictures_differ(
        far, [x + d for x, d in zip(far, (1.0, -1.2, 0.9, -1.1), strict=True)]
    )


def test_pictures_without_a_figure_are_left_out_and_one_picture_tells_nothing():
    assert not pictures_differ([1.0, None, 3.0, 4.0], [2.0, 9.0, None, 2.0])
    assert difference([1.0, None], [2.0, 3.0]) is None
    assert difference([], []) is None


def test_a_difference_is_that_of_the_second_and_has_the_interval_of_a_paired_t_test():
    first, second = [1.0, 2.0, 3.0, 7.0], [2.0, 2.5, 4.5, 9.0]
    mean, reach = difference(first, second)
    low, high = ttest_rel(second, first).confidence_interval(0.95)
    assert (mean - reach, mean + reach) == pytest.approx((low, high))


@pytest.mark.parametrize("pictures", [2, 4, 24])
def test_equal_members_are_told_apart_one_time_in_twenty(pictures: int):
    rng = np.random.default_rng(0)
    drawn = [rng.normal(20, 5, (2, pictures)).tolist() for _ in range(2000)]
    share = np.mean([pictures_differ(a, b) for a, b in drawn])
    assert 0.035 < share < 0.065


def testreadings_differ_by_twice_the_uncertainty_of_their_difference():
    assert readings_differ((10.0, 0.3), (11.1, 0.4))
    assert not readings_differ((10.0, 0.3), (10.9, 0.4))
    assert readings_differ((10.0, None), (10.0, 0.4))
