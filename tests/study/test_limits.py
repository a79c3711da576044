import pytest

from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.errors import StudyError
from nas_kd.study.limits import Limits, canonical, excess, parsed, reason_of


@pytest.mark.parametrize(
    ("value", "sides"),
    [
        (None, {}),
        (2, {"both": 2.0}),
        ("2.5", {"both": 2.5}),
        ("decoder=0.4", {"decoder": 0.4}),
        ("encoder=2, decoder=0.4", {"encoder": 2.0, "decoder": 0.4}),
        ("both=3,decoder=1e-1", {"both": 3.0, "decoder": 0.1}),
    ],
)
def test_a_limit_is_a_number_or_names_sides(value, sides):
    assert parsed("max_gmac", value) == sides
    assert parsed("max_gmac", canonical("max_gmac", value)) == sides


@pytest.mark.parametrize("value", [0, -1, "x", "left=2", "encoder=", "encoder=2,,", float("nan")])
def test_what_is_no_limit_is_refused_by_name(value):
    with pytest.raises(StudyError, match="max_mj = .*must be a number above 0"):
        parsed("max_mj", value)


def test_an_arch_is_over_by_the_worst_of_its_shares():
    arch = load_space("demo").extreme(True)
    cost = arch_cost(arch)
    gmac, params = cost.decoder.macs / 1e9, cost.total.parameters
    limits = Limits(max_gmac=f"decoder={gmac / 2},both=1000", max_params=params / 3)
    ratios = limits.free_ratios(cost)
    assert ratios["max_gmac.decoder"] == pytest.approx(2)
    assert ratios["max_gmac.both"] < 1
    assert limits.over(arch) == excess(ratios) == pytest.approx(2)
    assert reason_of(ratios) == "over_max_params"
    assert Limits().over(arch) == 0.0
    assert reason_of({"max_gmac.both": 1.0}) is None
