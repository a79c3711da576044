"""The teacher in the step: what a pool stores of the same crops and levels, on any device, whatever comes when."""

import gc
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from plain_loop import by_tape
from zoo_file import serve, untrained

from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.checkpoint import ready
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.data.images import open_images
from nas_kd.distillation.rotating_crops import RotatingCrops
from nas_kd.distillation.training import CropPool, EveryCrop, Run
from nas_kd.errors import UsageError
from nas_kd.recipe import Recipe, Weights
from nas_kd.teachers import lessons as module
from nas_kd.teachers.lessons import TaughtCrops, lessons, lessons_folder, reads_pictures
from nas_kd.teachers.targets import MANIFEST, PoolRecipe, TargetPool, drop, pools, target_pool
from nas_kd.teachers.teacher import HybridTeacher, VariableRateTeacher, load_teacher

torch.set_num_threads(1)
SIDE = Transform("trunk4", (0, 8, 8), (0, 1, 0, 0), kernel=3)
TINY = Arch(SIDE, SIDE, M=8, hyper=4)
LEVELS = (LMBDAS[0], LMBDAS[3])
ALL = Weights(0.3, 0.5, 0.2)
LATENTS = Weights(0.0, 0.5, 0.2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for name, size in (("a", (96, 90)), ("b", (70, 90)), ("c", (60, 80))):
        noise = draw.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC).save(
            folder / f"{name}.png"
        )
    return str(folder)


@pytest.fixture(scope="module")
def teachers(pictures, tmp_path_factory) -> dict:
    zoo = tmp_path_factory.mktemp("zoo")
    for quality, widths in ((1, (8, 16)), (4, (12, 24))):
        serve(zoo, f"bmshj2018-hyperprior-{quality}", untrained("bmshj2018-hyperprior", *widths))
    torch.manual_seed(0)
    student = Student(TINY, LEVELS)
    crops = module.crop_pool(open_images(pictures, "train"), 64, 64, 0)
    student.start_from(torch.from_numpy(crops).float() / 255)
    fixed, variable = load_teacher(str(zoo)), VariableRateTeacher("ours", ready(student))
    both = HybridTeacher(variable, fixed)
    return {"fixed": fixed, "variable": variable, "hybrid": both}


KINDS = ("fixed", "variable", "hybrid")


def _recipe(pictures: str) -> PoolRecipe:
    return PoolRecipe(pictures, 40, 64, x_hat=True)


@pytest.fixture(scope="module")
def stored(pictures, teachers, tmp_path_factory) -> dict:
    cache = tmp_path_factory.mktemp("targets")
    folders = {kind: target_pool(cache, teachers[kind], _recipe(pictures)) for kind in KINDS}
    return {kind: TargetPool(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def folders(pictures, teachers, tmp_path_factory) -> dict:
    cache = tmp_path_factory.mktemp("lessons")
    return {kind: lessons_folder(cache, teachers[kind], _recipe(pictures)) for kind in KINDS}


def _on_the_same_crops(taught: TaughtCrops, pool: TargetPool) -> TaughtCrops:
    taught.crops = CropPool(torch.from_numpy(np.array(pool.arrays["x"][0])))
    return taught


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["kd", "paper"])
def test_outputs_in_the_step_are_those_stored_within_rounding(stored, folders, kind, form):
    pool = stored[kind]
    taught = _on_the_same_crops(lessons(folders[kind]), pool)
    index, level = torch.tensor([5, 31, 7, 0, 39]), torch.tensor([2, 1, 1, 2, 1])
    weights = replace(ALL, form=form)
    ours, theirs = (one.batch(index, level, level * 0.01, weights) for one in (taught, pool))
    assert torch.equal(ours.x, theirs.x)
    beyond = (ours.x_hat_T - theirs.x_hat_T).abs() > 0.5 / 255 + 1e-6
    # A rounded latent that lies between two numbers may become the other one in a batch of another size.
    assert beyond.float().mean() < (0.03 if kind != "fixed" else 1e-9)
    for a, b in ((ours.y_T, theirs.y_T), (ours.z_T, theirs.z_T)):
        assert torch.equal(a.isnan(), b.isnan())
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_scaled_by_the_very_deviations_of_a_pool(stored, folders, kind):
    taught = lessons(folders[kind])
    for name in "yz":
        theirs = stored[kind]._deviation(name)
        assert torch.allclose(taught._deviations[name], theirs, equal_nan=True, rtol=1e-6)
    assert torch.equal(taught.pictures(), stored[kind].pictures())
    assert taught.latent_widths == stored[kind].latent_widths


def test_no_picture_is_restored_where_no_term_asks_for_it(folders):
    class Analysis:
        shared_latents, latent_widths = True, (1, 1)

        def latents(self, x, level):
            return x.mean((1, 2, 3), keepdim=True), x[:, :1, :1, :1]

        def outputs(self, x, level):
            raise AssertionError("nobody asked for pictures")

    taught = lessons(folders["variable"])
    taught.teacher = Analysis()
    index, level = torch.arange(2), torch.ones(2, dtype=torch.long)
    assert taught.batch(index, level, level, LATENTS).x_hat_T is None
    alone = taught.batch(index, level, level, Weights(0, 0, 0))
    assert alone.y_T is alone.z_T is None
    with pytest.raises(AssertionError, match="nobody asked"):
        taught.batch(index, level, level, ALL)


def _student() -> Student:
    torch.manual_seed(1)
    return Student(TINY, LEVELS)


def _run(taught, weights, steps=7, checkpoint=None, device="cpu", batch=4, **more) -> Run:
    recipe = Recipe(steps, batch=batch, seed=2)
    return Run(
        _student().to(device), taught, recipe, weights, taught.latent_widths, checkpoint, **more
    )


def _placed(taught: TaughtCrops) -> TaughtCrops:
    """With crops gathered as on a GPU."""
    assert isinstance(taught.crops, EveryCrop)
    taught.crops.place()
    return taught


@pytest.mark.parametrize(
    ("kind", "weights", "batch", "patterns"),
    [
        ("variable", LATENTS, 3, 1),  # its work is the same at all levels
        ("variable", ALL, 4, 1),  # two crops at each of two levels
        ("fixed", LATENTS, 3, 2),  # one at the first and two at the second, or the other way
        ("fixed", ALL, 4, 1),
    ],
)
def test_the_teacher_is_captured_with_the_step_and_replayed(
    folders, kind, weights, batch, patterns
):
    """The tape fails where the host reads a tensor, and runs no Python again."""
    eager, replayed = (
        _run(_placed(lessons(folders[kind])), weights, 10, batch=batch) for _ in range(2)
    )
    eager.optimiser.param_groups[0]["lr"] = torch.tensor(eager.recipe.lr)
    tape = by_tape(replayed)
    assert replayed.run() == pytest.approx(eager.run(), rel=1e-4)
    assert tape.captured == patterns + 3  # clear, backward, update
    for name, value in replayed.student.state_dict().items():
        torch.testing.assert_close(value, eager.student.state_dict()[name], msg=name)


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "weights"),
    [("variable", LATENTS), ("variable", ALL), ("fixed", LATENTS), ("fixed", ALL)],
)
def test_on_a_gpu_the_teacher_is_in_the_graph(folders, kind, weights, caplog):
    eager, graphs = (
        _run(lessons(folders[kind], "cuda"), weights, 12, graphs=g, device="cuda")
        for g in (False, True)
    )
    assert graphs.run() == pytest.approx(eager.run(), rel=1e-2)
    assert "without a CUDA graph" not in caplog.text


def test_a_run_with_the_teacher_in_the_step_resumes_to_the_same_weights(folders, tmp_path):
    whole, halves = (
        _run(lessons(folders["fixed"]), LATENTS, 4, path) for path in (None, tmp_path / "run.pt")
    )
    whole.run()
    halves.run(until=2)
    again = _run(lessons(folders["fixed"]), LATENTS, 4, tmp_path / "run.pt")
    assert again.step == 2
    again.run()
    there = again.student.state_dict()
    assert all(torch.equal(there[n], t) for n, t in whole.student.state_dict().items())


@pytest.mark.parametrize("count", [2, 3, 8, 16])
def test_levels_of_models_are_spread_come_alike_often_and_make_few_patterns(folders, count):
    taught, generator = lessons(folders["fixed"]), torch.Generator().manual_seed(0)
    drawn = [taught.drawn_levels(count, 6, LATENTS, generator) for _ in range(1200)]
    patterns = {taught.at_levels(level, LATENTS).pattern for level in drawn}
    assert len(patterns) <= 6
    assert all(list(pattern) == sorted(pattern) for pattern in patterns)
    often = Counter(torch.cat(drawn).tolist())
    assert set(often) == {1, 2, 3, 4, 5, 6}
    assert max(often.values()) < 1.15 * min(often.values())


def test_levels_of_a_teacher_of_all_rates_are_drawn_as_from_a_pool(stored, folders):
    taught, pool = lessons(folders["variable"]), stored["variable"]
    ours, theirs = (
        one.drawn_levels(9, 6, LATENTS, torch.Generator().manual_seed(3)) for one in (taught, pool)
    )
    assert torch.equal(ours, theirs)
    assert taught.at_levels(ours, LATENTS).pattern is None


def test_the_folder_is_made_once_says_what_it_holds_and_is_made_anew_where_it_went_bad(
    pictures, teachers, tmp_path
):
    told, recipe = [], _recipe(pictures)
    made = lessons_folder(tmp_path, teachers["variable"], recipe, lambda *n: told.append(n))
    assert told == 2 * [(1, 3), (2, 3), (3, 3)]  # looked at, and decoded
    assert [found[0] for found in pools(tmp_path)] == [made]
    told.clear()
    assert lessons_folder(tmp_path, teachers["variable"], recipe, lambda *n: told.append(n)) == made
    assert told == [(1, 3), (2, 3), (3, 3)]
    (made / "first.npy").write_bytes(b"bad")
    lessons_folder(tmp_path, teachers["variable"], recipe)
    assert lessons(made).pictures().shape == (40, 3, 64, 64)
    assert lessons_folder(tmp_path, teachers["fixed"], recipe) != made


def test_a_folder_that_a_run_draws_from_is_not_dropped(pictures, teachers, tmp_path):
    folder = lessons_folder(tmp_path, teachers["variable"], _recipe(pictures))
    run = lessons(folder).of_one_run()
    assert drop(tmp_path) == 0
    assert folder.is_dir()
    del run
    gc.collect()
    assert drop(tmp_path) > 0
    with pytest.raises(UsageError, match="the teacher's outputs are gone"):
        lessons(folder)


def test_more_pictures_than_a_shard_are_read_from_their_own_folder(
    pictures, teachers, tmp_path, monkeypatch
):
    whole = lessons_folder(tmp_path / "a", teachers["variable"], _recipe(pictures))
    assert not reads_pictures(whole)
    monkeypatch.setattr(module, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(
        "nas_kd.distillation.rotating_crops.anew.__defaults__", (lambda *n: None, 40_000)
    )
    lean = lessons_folder(tmp_path / "b", teachers["variable"], _recipe(pictures))
    assert reads_pictures(lean)
    assert not (lean / "pictures.npy").exists()
    said = json.loads((lean / MANIFEST).read_text())
    (lean / MANIFEST).write_text(json.dumps(said | {"data": "elsewhere"}))
    taught = lessons(lean, data=pictures).of_one_run()
    assert isinstance(taught.crops, RotatingCrops)
    taught.turn(0)
    few, all_ = len(taught), len(lessons(whole))
    assert 0 < few < all_
    level = torch.ones(2, dtype=torch.long)
    assert taught.batch(torch.arange(2), level, level * 0.01, LATENTS).y_T.shape == (2, 8, 4, 4)
