"""CompressAI's families at other widths."""

import pytest
import torch
from plain_loop import by_tape

from nas_kd.codec.student import LMBDAS
from nas_kd.distillation.training import CropPool, Run
from nas_kd.errors import UsageError
from nas_kd.recipe import Recipe
from nas_kd.teachers.families import FAMILIES, FixedRate, check, parsed_levels


def test_a_family_without_a_width_is_the_zoos_own():
    from compressai.zoo.image import cfgs, model_architectures

    name = "bmshj2018-hyperprior"
    wanted = model_architectures[name](*cfgs[name][5]).state_dict()
    ours = FixedRate(name, 5)
    assert {k: t.shape for k, t in ours.model.state_dict().items()} == {
        k: t.shape for k, t in wanted.items()
    }
    assert ours.width == 128


@pytest.mark.parametrize("name", FAMILIES)
def test_a_narrow_family_codes_and_is_read_back_from_its_tensors(name: str):
    narrow = FixedRate(name, 5, 8)
    assert (narrow.width, narrow.lmbdas, narrow.levels) == (8, (LMBDAS[4],), 1)
    out = narrow(torch.rand(1, 3, 64, 64), torch.ones(1))
    assert out["x_hat"].shape == (1, 3, 64, 64)
    again = type(narrow.model).from_state_dict(narrow.model.state_dict())
    assert next(again.g_a.parameters()).equal(next(narrow.model.g_a.parameters()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_steps_are_captured_and_replayed(name: str):
    """The tape fails where the host reads a tensor: what a CUDA graph could not record."""
    crops = CropPool(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(Run(FixedRate(name, 1, 8), crops, Recipe(4, batch=1)))
    runs[0].optimiser.param_groups[0]["lr"] = torch.tensor(runs[0].recipe.lr)
    tape = by_tape(runs[1])
    eager, replayed = (run.run() for run in runs)
    assert tape.captured == 4
    assert replayed == pytest.approx(eager, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("bmshj2018-factorized", None, "neither an arch file nor one of CompressAI's families"),
        ("mini.toml", None, "neither an arch file"),
        ("mbt2018", 7, "--width 7: must be even and at least 8"),
        ("mbt2018", -8, "--width -8: must be"),
    ],
)
def test_what_is_no_family_is_refused(name: str, width: int | None, message: str):
    with pytest.raises(UsageError, match=message):
        check(name, width)


def test_levels_are_qualities_in_ascending_order():
    assert parsed_levels("5") == (5,)
    assert parsed_levels("1, 5") == (1, 5)
    for wrong in ("", "a", "0", "7", "5,1", "1,1", "1-5"):
        with pytest.raises(UsageError, match="must be qualities from 1 to 6, ascending"):
            parsed_levels(wrong)
