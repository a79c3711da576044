"""The pool of targets: computed once, whole or not there, mended where it went bad, never larger than allowed."""

import gc
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas_kd.cli.machine import cache as cache_command
from nas_kd.distillation.loss import Weights
from nas_kd.errors import UsageError
from nas_kd.teachers.targets import (
    ARRAYS,
    CHUNK,
    MANIFEST,
    PoolRecipe,
    TargetPool,
    drop,
    limit_gb,
    limit_pools,
    pools,
    target_pool,
)

LEVELS = 2


class FakeTeacher:
    """Outputs that a test can foretell; counts the crops that it sees."""

    name, lmbdas, latent_widths = "fake", (0.01, 0.02), (4, 2)
    shared_latents = False

    def __init__(self, fingerprint: str = "f", fails_at: int | None = None):
        self.fingerprint, self.levels, self.fails_at = fingerprint, LEVELS, fails_at
        self.seen = 0

    def outputs(self, x, level):
        assert not x.requires_grad
        if len(x) > 1:  # one crop alone is a look at the shapes
            self.seen += len(x)
        if self.fails_at is not None and self.seen > self.fails_at:
            raise KeyboardInterrupt
        y = x.mean((1, 2, 3))[:, None, None, None] * level
        return x / level, y.expand(-1, 4, 4, 4), y.expand(-1, 2, 1, 1)

    def latents(self, x, level):
        return self.outputs(x, level)[1:]

    def to(self, device):
        return self


@pytest.fixture
def recipe(tmp_path: Path) -> PoolRecipe:
    (tmp_path / "pictures").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "pictures" / "a.png")
    return PoolRecipe(str(tmp_path / "pictures"), 3 * CHUNK, 64, x_hat=True)


def test_scaling_a_teachers_latents_changes_nothing(tmp_path):
    """In our form they come in units of their own deviation; 8 is exact in half precision."""

    class Noisy(FakeTeacher):
        scale = 1.0

        def outputs(self, x, level):
            x_hat, y, z = super().outputs(x, level)
            y = y + x[:, :1, ::16, ::16].expand(-1, 4, 4, 4)
            return x_hat, self.scale * y, self.scale * z

    loud = Noisy("loud")
    loud.scale = 8.0
    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8)).save(tmp_path / "p" / "a.png")
    recipe = PoolRecipe(str(tmp_path / "p"), 2 * CHUNK, 64)
    index, level = torch.tensor([3, 20]), torch.tensor([1, 2])
    quiet, other = (
        TargetPool(target_pool(tmp_path / t.fingerprint, t, recipe)).batch(
            index, level, level * 0.01, Weights(0.0, 0.5, 0.5)
        )
        for t in (Noisy("quiet"), loud)
    )
    assert torch.equal(quiet.y_T, other.y_T)
    assert torch.equal(quiet.z_T, other.z_T)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_pool_without_reconstructions_holds_the_same_latents_and_is_smaller(tmp_path, recipe):
    class Analysis(FakeTeacher):
        """Its latents, and no pictures."""

        def latents(self, x, level):
            return FakeTeacher().outputs(x, level)[1:]

        def outputs(self, x, level):
            raise AssertionError("nobody asked for pictures")

    whole = target_pool(tmp_path / "cache", FakeTeacher(), recipe)
    lean = target_pool(tmp_path / "cache", Analysis(), replace(recipe, x_hat=False))
    assert lean != whole
    kept, less = contents(whole), contents(lean)
    assert set(kept) - set(less) == {"x_hat.npy"}
    assert all(kept[f"{name}.npy"] == less[f"{name}.npy"] for name in "xyz")
    again = target_pool(tmp_path / "cache", Analysis(), replace(recipe, x_hat=False))
    assert again == lean

    index, level, lmbda = torch.tensor([5]), torch.tensor([1]), torch.tensor([0.1])
    pool = TargetPool(lean)
    batch = pool.batch(index, level, lmbda, Weights(0.0, 0.1, 0.1))
    assert batch.x_hat_T is None
    assert batch.y_T is not None
    assert batch.z_T is not None
    assert not pool.is_far(Weights(0.0, 0.1, 0.1))
    with pytest.raises(ValueError, match="the pool has none"):
        pool.batch(index, level, lmbda, Weights(0.5))


def test_a_pool_holds_the_teachers_outputs(tmp_path, recipe):
    teacher = FakeTeacher()
    pool = TargetPool(target_pool(tmp_path / "cache", teacher, recipe))
    assert teacher.seen == LEVELS * recipe.crops
    assert len(pool) == recipe.crops
    index, level = torch.tensor([5, 40]), torch.tensor([1, 2])
    batch = pool.batch(index, level, level * 0.01, Weights(0.4, 0.3, 0.3, "paper"))
    assert torch.equal(batch.x, pool.pictures()[index])
    wanted = batch.x / level[:, None, None, None]
    assert (batch.x_hat_T - wanted).abs().max() <= 0.5 / 255 + 1e-6
    y = batch.x.mean((1, 2, 3)) * level
    assert torch.allclose(batch.y_T[:, 0, 0, 0], y, atol=1e-3)
    assert torch.allclose(batch.z_T[:, 1, 0, 0], y, atol=1e-3)


def test_what_no_term_weighs_is_not_fetched(tmp_path, recipe):
    pool = TargetPool(target_pool(tmp_path / "cache", FakeTeacher(), recipe))
    one = torch.ones(2, dtype=torch.long)
    batch = pool.batch(one, one, one * 0.01, Weights(0.0, 0.0, 0.0))
    assert batch.x_hat_T is batch.y_T is batch.z_T is None


def test_a_pool_is_computed_once(tmp_path, recipe):
    first, again = FakeTeacher(), FakeTeacher()
    folder = target_pool(tmp_path / "cache", first, recipe)
    assert target_pool(tmp_path / "cache", again, recipe) == folder
    assert again.seen == 0


def test_another_teacher_seed_or_picture_makes_another_pool(tmp_path, recipe):
    cache = tmp_path / "cache"
    first = target_pool(cache, FakeTeacher(), recipe)
    other = target_pool(cache, FakeTeacher("g"), recipe)
    seeded = target_pool(cache, FakeTeacher(), replace(recipe, seed=1))
    Image.new("RGB", (80, 80)).save(tmp_path / "pictures" / "b.png")
    with_more = target_pool(cache, FakeTeacher(), recipe)
    assert len({first, other, seeded, with_more}) == 4


def test_a_pool_that_was_interrupted_goes_on_and_ends_as_an_uninterrupted_one(
    tmp_path, recipe, monkeypatch
):
    monkeypatch.setattr("nas_kd.teachers.targets.KEEP_S", 0.0)
    whole = target_pool(tmp_path / "whole", FakeTeacher(), recipe)
    with pytest.raises(KeyboardInterrupt):
        target_pool(tmp_path / "cache", FakeTeacher(fails_at=LEVELS * 2 * CHUNK), recipe)
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.is_dir()] == [f".{whole.name}"]
    rest, heard = FakeTeacher(), []
    folder = target_pool(
        tmp_path / "cache", rest, recipe, lambda done, total: heard.append((done, total))
    )
    assert rest.seen == LEVELS * CHUNK
    assert heard == [(recipe.crops, recipe.crops)]
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_bit_is_found_and_its_chunk_alone_computed_again(tmp_path, recipe, name):
    folder = target_pool(tmp_path / "cache", FakeTeacher(), recipe)
    before = contents(folder)
    data = bytearray(before[f"{name}.npy"])
    data[-1] ^= 1
    (folder / f"{name}.npy").write_bytes(data)
    teacher = FakeTeacher()
    assert target_pool(tmp_path / "cache", teacher, recipe) == folder
    assert teacher.seen == LEVELS * CHUNK
    assert contents(folder) == before


@pytest.mark.parametrize("harm", ["truncate", "remove", "manifest", "garble"])
def test_a_file_that_is_cut_short_or_missing_is_made_anew(tmp_path, recipe, harm):
    folder = target_pool(tmp_path / "cache", FakeTeacher(), recipe)
    before = contents(folder)
    if harm == "truncate":
        (folder / "y.npy").write_bytes(before["y.npy"][:500])
    elif harm == "remove":
        (folder / "x_hat.npy").unlink()
    elif harm == "manifest":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text("{")
    teacher = FakeTeacher()
    target_pool(tmp_path / "cache", teacher, recipe)
    assert teacher.seen == LEVELS * recipe.crops
    assert contents(folder) == before


def test_a_folder_of_another_pool_under_this_name_is_not_taken_for_it(tmp_path, recipe):
    cache = tmp_path / "cache"
    folder, other = (target_pool(cache, FakeTeacher(f), recipe) for f in ("f", "g"))
    wanted = contents(folder)
    for path in other.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    target_pool(cache, FakeTeacher("f"), recipe)
    assert contents(folder) == wanted


def test_a_pool_above_the_limit_is_refused_before_anything_is_written(tmp_path, recipe):
    limit_pools(tmp_path / "cache", 0.001)
    with pytest.raises(
        UsageError, match="48 crops of 64 px .* 0.001 GB that .* crops = 26 or"
    ) as e:
        target_pool(tmp_path / "cache", FakeTeacher(), recipe)
    assert e.value.exit_code == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["limit_gb"]
    fits = replace(recipe, crops=26)
    assert target_pool(tmp_path / "cache", FakeTeacher(), fits).is_dir()


def test_a_limit_holds_at_once_can_be_lifted_and_is_refused_where_it_is_no_number(tmp_path, recipe):
    cache = tmp_path / "cache"
    target_pool(cache, FakeTeacher(), recipe)
    limit_pools(cache, 0.001)
    assert (limit_gb(cache), pools(cache)) == (0.001, [])
    (cache / "limit_gb").write_text("many")
    with pytest.raises(UsageError, match="limit_gb: is no number of GB; set it: nas-kd cache"):
        target_pool(cache, FakeTeacher(), recipe)
    limit_pools(cache, math.inf)
    assert target_pool(cache, FakeTeacher(), recipe).is_dir()


def test_the_least_recently_used_pool_makes_room(tmp_path, recipe):
    cache = tmp_path / "cache"
    first, second = (target_pool(cache, FakeTeacher(f), recipe) for f in ("1", "2"))
    target_pool(cache, FakeTeacher("1"), recipe)  # used again
    limit_pools(cache, 0.004)  # two of 1.8 MB
    third = target_pool(cache, FakeTeacher("3"), recipe)
    assert {folder for folder, _, _ in pools(cache)} == {first, third}
    assert not second.exists()


def test_a_pool_in_use_is_not_dropped(tmp_path, recipe):
    cache = tmp_path / "cache"
    folder = target_pool(cache, FakeTeacher(), recipe)
    pool = TargetPool(folder)
    assert drop(cache) == 0
    assert folder.is_dir()
    del pool
    assert drop(cache) > 1e6
    assert pools(cache) == []


def test_two_that_drop_at_once_drop_every_pool_and_count_it_once(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}").mkdir()
        for name in (MANIFEST, "x.npy", "y.npy"):
            (tmp_path / f"{i}" / name).write_bytes(b"x" * 100)
    with ThreadPoolExecutor(2) as both:
        freed = list(both.map(drop, [tmp_path] * 2))
    assert (sum(freed), pools(tmp_path)) == (60 * 300, [])


def test_a_pool_that_is_gone_is_a_clear_error(tmp_path):
    with pytest.raises(UsageError, match="are gone .* run the same command again"):
        TargetPool(tmp_path / "nothing")


def test_what_fits_is_held_on_the_device_and_gives_the_same_batches(tmp_path, recipe):
    folder = target_pool(tmp_path / "cache", FakeTeacher(), recipe)
    mapped, held = TargetPool(folder), TargetPool(folder, room_bytes=10**9)
    small = TargetPool(folder, room_bytes=held.arrays["x"].nbytes)
    index, level, weights = torch.arange(8), torch.tensor([1, 2] * 4), Weights(0.5, 0.5, 0.5)
    batches = [p.batch(index, level, level * 0.01, weights) for p in (mapped, held, small)]
    for other in batches[1:]:
        for name in ("x", "level", "lmbda", "x_hat_T", "y_T", "z_T"):
            assert torch.equal(getattr(batches[0], name), getattr(other, name))
    # What is held is a copy: the file may go.
    held_at = held._place("x").untyped_storage().data_ptr()
    assert held_at != held.arrays["x"].ctypes.data
    assert small._place("x_hat").untyped_storage().data_ptr() != 0
    assert small._room == 0


def test_the_manifest_says_what_the_pool_is(tmp_path, recipe):
    folder = target_pool(tmp_path / "cache", FakeTeacher(), recipe)
    said = json.loads((folder / MANIFEST).read_text())
    assert (said["teacher"], said["fingerprint"], said["crops"]) == ("fake", "f", recipe.crops)
    assert said["key"] == folder.name
    assert len(said["chunks"]) == 3


def test_the_command_lists_pools_and_drops_those_that_nobody_uses(
    tmp_path, recipe, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    cache = Path("studies/.cache/targets")
    used, unused = (target_pool(cache, FakeTeacher(name), recipe) for name in "fg")
    weights = Path("studies/.cache/shared/w")
    weights.mkdir(parents=True)
    (weights / "a.bin").write_bytes(b"x" * 7)
    (unused / MANIFEST).write_text("{ damaged")  # still listed, and still dropped

    def listed(drop: bool) -> dict:
        cache_command(drop=drop, as_json=True)
        return {one["folder"]: one for one in json.loads(capsys.readouterr().out)}

    found = listed(False)
    assert set(found) == {f"targets/{used.name}", f"targets/{unused.name}", "shared/w"}
    assert found["shared/w"]["bytes"] == 7
    assert found[f"targets/{used.name}"]["holds"].startswith("fake, 48 crops of 64 px of ")
    assert found[f"targets/{used.name}"]["bytes"] == sum(len(b) for b in contents(used).values())
    pool = TargetPool(used)
    assert set(listed(True)) == {f"targets/{used.name}", "shared/w"}
    del pool
    gc.collect()
    cache_command(drop=True, limit=2.0, as_json=False)
    assert used.name not in capsys.readouterr().out
    assert weights.is_dir()
