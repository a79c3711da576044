"""Training: it learns, it resumes exactly, and it says why it stopped."""

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.student import Student
from nas_kd.distillation.loss import Batch, Weights
from nas_kd.distillation.training import CHECK_EVERY, CropPool, EveryCrop, Recipe, Run
from nas_kd.errors import TrialFailed, UsageError

SIDE = Transform("trunk4", (0, 16, 16), (0, 1, 1, 0), kernel=3)
TINY = Arch(SIDE, SIDE, M=16, hyper=8)


def _crops() -> Tensor:
    """Smooth crops, so that there is something to learn: uint8 [32, 3, 64, 64]."""
    coarse = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    fine = torch.nn.functional.interpolate(coarse, size=64, mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).round().to(torch.uint8)


def _student(arch: Arch = TINY) -> Student:
    torch.manual_seed(0)
    student = Student(arch)
    student.start_from(_crops().float() / 255)
    return student


def _run(steps: int = 40, checkpoint: Path | None = None, seed: int = 0, lr: float = 1e-3) -> Run:
    recipe = Recipe(steps=steps, batch=4, lr=lr, seed=seed)
    return Run(_student(), CropPool(_crops()), recipe, checkpoint=checkpoint)


class _Stop(Exception):  # noqa: N818
    pass


def _same(a: Student, b: Student) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@torch.no_grad()
def _loss(student: Student) -> float:
    """R-D loss of every crop at every level, without noise."""
    x, total = _crops().float() / 255, 0.0
    student.eval()
    for level, lmbda in enumerate(student.lmbdas, 1):
        out = student(x, level)
        bits = sum(-torch.log2(p).sum() for p in out["likelihoods"].values())
        mse = (out["x_hat"] - x).square().mean()
        total += float(bits / (len(x) * 64 * 64) + lmbda * 255**2 * mse)
    return total / student.levels


@pytest.mark.thorough
def test_the_loss_falls_within_sixty_steps():
    run = _run(steps=60, lr=5e-3)
    before = _loss(run.student)
    run.run()
    assert _loss(run.student) < 0.9 * before  # 0.83 to 0.85 with seeds 0 to 2


@pytest.mark.thorough
def test_a_run_that_was_stopped_ends_where_an_uninterrupted_one_does(tmp_path: Path):
    whole = _run()
    expected = whole.run()
    stopped = _run(checkpoint=tmp_path / "run.pt")

    def stop(step: int, metrics: dict[str, float]) -> None:
        stopped.save()
        raise _Stop

    with pytest.raises(_Stop):
        stopped.run(stop)
    resumed = _run(checkpoint=tmp_path / "run.pt")
    assert resumed.step == CHECK_EVERY
    reports: list[int] = []
    assert resumed.run(lambda step, _: reports.append(step)) == expected
    assert reports == [40]
    assert _same(resumed.student, whole.student)


def test_a_finished_run_taken_up_again_takes_no_step(tmp_path: Path):
    first = _run(steps=2, checkpoint=tmp_path / "run.pt")
    first.run()
    again = _run(steps=2, checkpoint=tmp_path / "run.pt")
    again.run()
    assert again.step == 2
    assert _same(first.student, again.student)


def test_adapters_are_resumed_too(tmp_path: Path):
    def run() -> Run:
        recipe = Recipe(steps=3, batch=2)
        weights = Weights(0.0, 1.0, 0.0)
        return Run(_student(), _Taught(_crops()), recipe, weights, (20, 8), tmp_path / "run.pt")

    first = run()
    first.run()
    assert first.adapters is not None
    moved = first.adapters.y - torch.eye(20, 16)
    assert moved.abs().max() > 0
    again = run()
    assert again.adapters is not None
    assert torch.equal(again.adapters.y, first.adapters.y)


class _Far(CropPool):
    """A pool that says that its batches come from afar; remembers who asked."""

    def __init__(self, crops: Tensor):
        super().__init__(crops)
        self.threads: set[str] = set()

    def batch(self, index: Tensor, level: Tensor, lmbda: Tensor, weights: Weights) -> Batch:
        self.threads.add(threading.current_thread().name)
        return super().batch(index, level, lmbda, weights)

    def is_far(self, weights: Weights) -> bool:
        return True


def test_batches_fetched_ahead_are_the_same_and_come_from_a_thread():
    near, pool = _run(steps=4), _Far(_crops())
    far = Run(_student(), pool, Recipe(steps=4, batch=4))
    assert near.run() == far.run()
    assert _same(near.student, far.student)
    assert pool.threads
    assert threading.current_thread().name not in pool.threads


def test_a_batch_that_cannot_be_fetched_ends_the_run(monkeypatch):
    far = Run(_student(), _Far(_crops()), Recipe(steps=4, batch=4))

    def fails(*given):
        raise OSError("gone")

    monkeypatch.setattr(far.pictures, "batch", fails)
    with pytest.raises(OSError, match="gone"):
        far.run()


class _Taught(CropPool):
    """A pool whose teacher's y is one everywhere."""

    def batch(self, index: Tensor, level: Tensor, lmbda: Tensor, weights: Weights) -> Batch:
        x = self.crops[index].float() / 255
        return Batch(x, level, lmbda, y_T=torch.ones(len(x), 20, 4, 4))


def test_another_seed_takes_other_steps():
    a, b = _run(steps=2), _run(steps=2, seed=1)
    a.run()
    b.run()
    assert not _same(a.student, b.student)


def test_a_loss_that_is_not_a_number_ends_the_trial_with_reason_nan():
    run = _run(steps=CHECK_EVERY)
    with torch.no_grad():
        run.student.g_a.head.weight[0] = math.nan
    with pytest.raises(TrialFailed, match="loss is nan at step 20") as caught:
        run.run()
    assert caught.value.reason == "nan"


def test_a_checkpoint_leaves_no_temporary_file(tmp_path: Path):
    run = _run(steps=1, checkpoint=tmp_path / "deep" / "run.pt")
    run.run()
    run.save()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["run.pt"]


def test_quantiles_have_their_own_optimiser():
    run = _run(steps=1)
    aux = [p for group in run.aux_optimiser.param_groups for p in group["params"]]
    assert [id(p) for p in aux] == [id(run.student.entropy_bottleneck.quantiles)]
    counted = len(aux) + sum(len(g["params"]) for g in run.optimiser.param_groups)
    assert counted == len(list(run.student.parameters()))


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    recipe = Recipe(steps=100, warmup=0.1, decay=0.5)
    factors = [recipe.lr_factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:50] == pytest.approx([1.0] * 41)
    assert factors[49:] == sorted(factors[49:], reverse=True)
    assert factors[74] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.0)
    assert Recipe(steps=10, warmup=0.0, decay=0.0).lr_factor(9) == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": -1}, "steps = -1: must be a whole number of at least 0"),
        ({"steps": 1, "batch": 0}, "batch = 0: must be a whole number of at least 1"),
        ({"steps": 1, "lr": 0.0}, "lr = 0.0: must be a number above 0"),
    ],
)
def test_a_recipe_that_breaks_a_rule_is_refused(given: dict, message: str):
    with pytest.raises(UsageError, match=message):
        Recipe(**given)


def test_crops_are_cut_anew_and_every_place_and_symmetry_can_come():
    image = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    crops = EveryCrop([image, image[:4, :4]], 4)
    level = torch.ones(len(crops))
    batch = crops.batch(torch.arange(len(crops)), level, level, Weights(0, 0, 0))
    assert len(crops) == 8 * (3 * 2 + 1)
    found = {x.numpy().tobytes() for x in (255 * batch.x).round().to(torch.uint8)}
    expected = set()
    for top, left in [(t, n) for t in range(3) for n in range(2)]:
        crop = image[top : top + 4, left : left + 4].transpose(2, 0, 1)
        for turned in (np.rot90(crop, k, axes=(1, 2)) for k in range(4)):
            expected |= {turned.tobytes(), turned[..., ::-1].tobytes()}
    assert found == expected


def test_crops_gathered_on_the_device_are_those_cut_on_the_host():
    draw = np.random.default_rng(0)
    sizes = ((9, 7), (4, 11), (5, 5), (4, 4))
    images = [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    crops = EveryCrop(images, 4)
    index = torch.arange(len(crops))
    level, weights = torch.ones(len(crops)), Weights(0, 0, 0)
    cut, sampled = crops.batch(index, level, level, weights), crops.sample(7, 1)
    crops.place()
    assert torch.equal(crops.batch(index, level, level, weights).x, cut.x)
    assert torch.equal(crops.sample(7, 1), sampled)
    assert not crops.is_far(weights)


@pytest.mark.gpu
def test_crops_lie_on_a_gpu_and_are_gathered_there():
    image = np.arange(70 * 66 * 3, dtype=np.uint8).reshape(70, 66, 3)
    host, device = EveryCrop([image], 64), EveryCrop([image], 64, "cuda")
    assert device.placed is not None
    index, level = torch.tensor([0, 5, 100]), torch.ones(3)
    there = device.batch(index, level, level, Weights(0, 0, 0)).x
    assert torch.equal(there.cpu(), host.batch(index, level, level, Weights(0, 0, 0)).x)
    shared = device.batch(index.cuda(), level.cuda(), level.cuda(), Weights(0, 0, 0)).x
    assert torch.equal(shared, there)


def test_a_run_on_crops_drawn_anew_resumes_to_the_same_weights(tmp_path: Path):
    images = [np.ascontiguousarray(c.numpy().transpose(1, 2, 0)) for c in _crops()]
    whole, halves = (
        Run(_student(), EveryCrop(images, 64), Recipe(steps=6, seed=3), checkpoint=path)
        for path in (None, tmp_path / "run.pt")
    )
    whole.run()
    halves.run(until=3)
    again = Run(
        _student(), EveryCrop(images, 64), Recipe(steps=6, seed=3), checkpoint=tmp_path / "run.pt"
    )
    again.run()
    assert again.step == 6
    assert _same(whole.student, again.student)
