"""The end of a polish: larger crops, as many pixels, the learning rate restarted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nas_kd.codec.arch import prim
from nas_kd.codec.checkpoint import load_student, save_student, weights_digest
from nas_kd.codec.student import Student
from nas_kd.data.images import ImageSet
from nas_kd.distillation.training import CropPool
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.recipe import Recipe, Weights
from nas_kd.study import prepare
from nas_kd.study.anchor import Anchor
from nas_kd.study.forecast import _pools
from nas_kd.study.large_crops import SIDE_PX, after, before, has_large, large_crops
from nas_kd.study.plan import outline
from nas_kd.study.polish import polish, polished_key
from nas_kd.study.prepare import large_targets, targets
from nas_kd.study.settings import Settings
from nas_kd.study.trial import Task
from nas_kd.teachers.targets import TargetPool
from nas_kd.teachers.teacher import load_teacher
from nas_kd.testing.tiny_study import write_tiny_study

ARCH = prim(8, 16)
STEPS, FIRST, LAST = 10, 8, 2


@pytest.mark.parametrize(("batch", "side_px"), [(8, 256), (2, 256), (1, 256), (8, 128), (3, 192)])
def test_the_last_part_takes_as_many_pixels_in_fewer_crops_or_steps(batch, side_px):
    whole = Recipe(1000, batch)
    last = after(whole, side_px)
    pixels = (whole.steps - before(whole).steps) * batch * side_px**2
    assert last.steps * last.batch * SIDE_PX**2 == pytest.approx(pixels, rel=0.01)
    assert before(whole).steps == 800


def test_the_rate_falls_to_zero_twice():
    first, last = before(Recipe(1000)), after(Recipe(1000, batch=8), 256)
    assert first.lr_factor(first.steps - 1) < 1e-4
    assert max(last.lr_factor(step) for step in range(last.steps)) > 0.95
    assert last.lr_factor(last.steps - 1) < 1e-4
    assert last.lr == first.lr


def test_each_crop_is_seen_as_often_as_one_of_the_studys_own():
    settings = Settings("s", "demo", crops=8000, batch=8, polish=100_000)
    whole, large = settings.recipe(settings.polish), large_crops(settings)
    first, last = before(whole), after(whole, settings.crop_size)
    assert last.steps * last.batch / large == first.steps * first.batch / settings.crops
    assert _pools(settings) == [(8000, 256), (large, SIDE_PX)]


def test_a_study_of_large_crops_or_a_short_polish_does_not_change_sides():
    asked = Settings("s", "demo", polish=100)
    assert has_large(asked)
    assert not has_large(replace(asked, polish=4))
    assert not has_large(replace(asked, crop_size=SIDE_PX))
    assert "trained on by 100 steps, the last part on crops of 512 px" in outline(asked, 3)[2]
    assert "crops of 512 px" not in outline(replace(asked, crop_size=SIDE_PX), 3)[2]


class Crops(CropPool):
    """Random crops said to be of 256 px; notes the sides that were asked for, and fails at one."""

    side_px, latent_widths = 256, None

    def __init__(self, side_px, asked, fails_at=None):
        generator = torch.Generator().manual_seed(side_px)
        shape = (16, 3, side_px, side_px)
        super().__init__(torch.randint(256, shape, generator=generator).to(torch.uint8))
        self.asked, self.fails_at, self.own_px = asked, fails_at, side_px

    def batch(self, index, level, lmbda, weights):
        if len(self.asked) == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(self.own_px)
        return super().batch(index, level, lmbda, weights)


def task(asked, fails_at=None):
    pool, large = (Crops(side_px, asked, fails_at) for side_px in (64, 128))
    recipe, weights = Recipe(1, 4, checkpoint_s=0), Weights(kd_y=0)
    images = ImageSet("one", [np.zeros((64, 64, 3), np.uint8)], ("black",), ((64, 64),), "f")
    anchor = Anchor(RDCurve((0.1, 0.2), (30.0, 33.0)), None)
    given = (pool, images, anchor)
    return Task((0.01,), recipe, weights, ("rd_cost",), *given, large=large)


def stored(folder):
    """A student of one level, in the folder of a study's students."""
    torch.manual_seed(0)
    save_student(Student(ARCH, (0.01,)), folder / "k")
    return folder


def polished(folder):
    return weights_digest(load_student(folder / polished_key("k")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a polish that nothing interrupted."""
    folder, asked = stored(tmp_path_factory.mktemp("whole")), list[int]()
    polish(task(asked), "k", folder, STEPS)
    assert asked == [64] * FIRST + [128] * LAST
    return polished(folder)


@pytest.mark.parametrize("killed_at", [5, FIRST, FIRST + 1])
def test_a_polish_that_is_killed_before_or_after_the_change_takes_the_same_steps(
    whole, tmp_path, killed_at
):
    asked = list[int]()
    stored(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        polish(task(asked, killed_at), "k", tmp_path, STEPS)
    polish(task(asked), "k", tmp_path, STEPS)
    assert asked == [64] * FIRST + [128] * LAST
    assert polished(tmp_path) == whole
    assert not list((tmp_path / polished_key("k")).glob("*.pt"))


def test_the_teachers_outputs_on_larger_crops_are_computed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SIDE_PX", 128)  # the teacher is slow
    write_tiny_study(tmp_path, "s")
    pictures = str(tmp_path / "pictures")
    settings = Settings("s", "demo", crops=16, crop_size=64, polish=5, data=pictures)
    settings = replace(settings, eval_data=pictures)
    teacher, heard = load_teacher("mini"), []

    def listen(kind, detail):
        heard.append(detail)

    pool = targets(settings, teacher, listen, tmp_path)
    large = large_targets(settings, teacher, pool, listen, tmp_path, False)
    assert "16 of 16 crops of 128 px" in heard[-1]
    assert TargetPool(large).side_px == 128
    heard.clear()
    assert large_targets(settings, teacher, pool, listen, tmp_path, False) == large
    assert (
        large_targets(replace(settings, polish=4), teacher, pool, listen, tmp_path, False) is None
    )
    assert heard == []
