"""Pictures that do not fit into memory: shards that take turns, the same ones for a resumed run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from plain_loop import by_tape

from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.student import Student
from nas_kd.data.images import ImageSet
from nas_kd.distillation.loss import CONTROL
from nas_kd.distillation.rotating_crops import RotatingCrops, anew
from nas_kd.distillation.training import EveryCrop, Run
from nas_kd.errors import DataError
from nas_kd.recipe import Recipe

SIDE = Transform("trunk4", (0, 16, 16), (0, 1, 1, 0), kernel=3)
TINY = Arch(SIDE, SIDE, M=16, hyper=8)
SIZES = [(9, 7), (4, 11), (5, 5), (3, 4), (8, 8), (6, 10), (12, 4)]


def _images(sizes=SIZES, low: int = 0) -> list:
    draw = np.random.default_rng(0)
    return [draw.integers(low, 256, (*size, 3), dtype=np.uint8) for size in sizes]


class _Decoded(list):
    """Pictures that remember which of them were asked for."""

    def __init__(self, images):
        super().__init__(images)
        self.asked = []

    def __getitem__(self, place):
        self.asked.append(place)
        return super().__getitem__(place)


def _rotating(images, **more) -> RotatingCrops:
    sizes = [image.shape[:2] for image in images]
    return RotatingCrops(images, sizes, 4, shard_bytes=400, stay=3, **more)


def _all(crops) -> set[bytes]:
    index = torch.arange(len(crops))
    level = torch.ones(len(index))
    x = crops.batch(index, level, level, CONTROL).x
    return {(255 * one).round().to(torch.uint8).numpy().tobytes() for one in x}


def test_in_each_round_every_picture_is_in_one_shard_and_shards_are_alike_in_size():
    images = _images([(20 + i % 7, 24) for i in range(60)])
    crops = _rotating(images, seed=5)
    areas = np.array([a.shape[0] * a.shape[1] for a in images])
    rounds = []
    for turn in range(2):
        shards = [crops.shard(turn * crops.shards + k) for k in range(crops.shards)]
        assert sorted(sum(shards, [])) == list(range(60))
        shared = areas.sum() / crops.shards
        assert all(abs(areas[s].sum() - shared) <= areas.max() for s in shards)
        rounds.append(shards)
    assert rounds[0] != rounds[1]
    assert crops.shard(1) != _rotating(images, seed=6).shard(1)


def test_no_shard_is_empty_where_one_picture_is_larger_than_all_others():
    crops = _rotating(_images([(64, 64), (4, 4), (4, 4)]))
    assert [len(crops.shard(k)) > 0 for k in range(crops.shards)] == [True] * crops.shards


def test_a_shards_crops_are_all_crops_of_its_pictures_and_of_no_others():
    images = _images()
    crops = _rotating(images)
    assert crops.shards == 3
    seen = set()
    for step in (0, 3, 6):
        crops.turn(step)
        here = _all(crops)
        assert here == _all(EveryCrop([images[i] for i in crops.shard(step // 3)], 4))
        seen |= here
    assert seen == _all(EveryCrop(images, 4))


def test_a_shard_stays_and_the_next_is_decoded_meanwhile():
    images = _Decoded(_images())
    crops = _rotating(images)
    crops.turn(0)
    crops._thread.submit(lambda: None).result()  # what was begun before it is done
    assert images.asked == crops.shard(0) + crops.shard(1)
    there = _all(crops)
    crops.turn(2)
    assert _all(crops) == there
    assert len(images.asked) == len(crops.shard(0) + crops.shard(1))
    crops.turn(3)
    assert _all(crops) != there


def test_pictures_that_have_room_are_decoded_once_and_told_of():
    images, told = _images(), []
    sizes = tuple(image.shape[:2] for image in images)
    held = ImageSet("set", images, tuple("abcdefg"), sizes, "f")
    whole = anew(held, 4, 0, progress=lambda done, of: told.append((done, of)))
    assert isinstance(whole, EveryCrop)
    assert told[-1] == (7, 7)
    few = anew(held, 4, 0, shard_bytes=400)
    assert isinstance(few, RotatingCrops)
    few.turn(0)
    assert _all(few) < _all(whole)


def test_a_picture_that_is_another_than_it_was_ends_the_run():
    images = _images()
    crops = RotatingCrops(images, [(9, 9), *SIZES[1:]], 4)
    with pytest.raises(DataError, match="has 9x7 pixels and had 9x9 when its folder was opened"):
        crops.turn(0)


def _run(path: Path | None, steps: int = 6) -> Run:
    images = _images([(66, 64), (64, 70), (64, 64), (80, 64)])
    sizes = [image.shape[:2] for image in images]
    crops = RotatingCrops(images, sizes, 64, 1, shard_bytes=30_000, stay=2)
    torch.manual_seed(0)
    return Run(Student(TINY), crops, Recipe(steps, batch=2, seed=4), checkpoint=path)


def test_a_run_on_shards_resumes_to_the_same_weights(tmp_path: Path):
    whole, halves = _run(None), _run(tmp_path / "run.pt")
    whole.run()
    halves.run(until=3)
    again = _run(tmp_path / "run.pt")
    again.run()
    assert again.step == 6
    there = again.student.state_dict()
    assert all(torch.equal(there[n], t) for n, t in whole.student.state_dict().items())


def test_replayed_draws_see_the_shard_that_is_there_now():
    eager, replayed = _run(None, 5), _run(None, 5)
    eager.optimiser.param_groups[0]["lr"] = torch.tensor(eager.recipe.lr)
    by_tape(replayed)
    assert replayed.run() == pytest.approx(eager.run(), rel=1e-5)


def test_runs_that_share_pictures_have_each_a_shard_of_its_own():
    pictures = _rotating(_images())
    first, second = pictures.of_one_run(), pictures.of_one_run()
    first.turn(0)
    there = _all(first)
    second.turn(3)
    assert _all(first) == there != _all(second)
