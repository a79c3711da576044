import json
import tempfile
from pathlib import Path

import pytest
import torch

from nas_kd.codec.arch import Arch
from nas_kd.codec.checkpoint import ready
from nas_kd.codec.search_space import SearchSpace, load_space
from nas_kd.codec.student import Student
from nas_kd.data.images import crop_pool, open_images
from nas_kd.distillation.loss import CONTROL, Batch, Weights, distillation_loss
from nas_kd.distillation.training import Recipe, Run
from nas_kd.supernet.shared_weights import Shared
from nas_kd.supernet.warmup import (
    CARD,
    EXCHANGE,
    FEW,
    SHARED,
    load_shared,
    rate_share,
    sandwich,
    warm_up,
)
from nas_kd.teachers.curve_cache import measured_once
from nas_kd.teachers.lessons import lessons, lessons_folder
from nas_kd.teachers.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teachers.teacher import VariableRateTeacher, load_teacher

torch.set_num_threads(1)
LMBDAS = (0.0067, 0.025)


def _small() -> SearchSpace:
    """The space of every training here: ``demo`` with narrower choices, so that steps are cheap."""
    text = (Path(__file__).parents[2] / "search_spaces" / "demo.toml").read_text()
    for wide, narrow in (
        ("[32, 48]", "[8, 16]"),
        ("[64, 96]", "[16, 24]"),
        ("depth_2 = [0, 1, 3, 5]", "depth_2 = [0, 1]"),
        ("depth_3 = [0, 1, 3]", "depth_3 = [0, 1]"),
        ("[224, 256]", "[64, 96]"),
        ("[32, 64]", "[16, 32]"),
    ):
        assert wide in text
        text = text.replace(wide, narrow)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "small.toml")
        file.write_text(text)
        return load_space(str(file))


SPACE = _small()


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> TargetPool:
    torch.manual_seed(0)
    student, recipe = Student(SPACE.corners(False)[0], LMBDAS), PoolRecipe("builtin", 32, 64)
    crops = crop_pool(open_images("builtin", "train", 0), 64, 64, 0)
    student.start_from(torch.from_numpy(crops).float() / 255)
    teacher = VariableRateTeacher("t", student)
    return TargetPool(target_pool(tmp_path_factory.mktemp("targets"), teacher, recipe))


def warm(
    cache: Path, pool: TargetPool, recipe: Recipe, report=None, further=None, weights=None
) -> Path:
    loss = weights or Weights()
    return warm_up(cache, SPACE, LMBDAS, pool, recipe, loss, report, further)


class Stopped(Exception):
    pass


def stop_at(step: int):
    def report(now: int, metrics: dict[str, float]) -> None:
        if now == step:
            raise Stopped

    return report


def rd_cost(shared: Shared, arch: Arch, x: torch.Tensor) -> float:
    shared.eval()  # rounding, and no noise that differs from call to call
    level = torch.tensor([1, 2] * (len(x) // 2))
    with torch.no_grad():
        out = shared.through(arch)(x, level.float())
    batch = Batch(x, level, torch.tensor(LMBDAS)[level - 1])
    return float(distillation_loss(out, batch, CONTROL, None)["rd"])


@pytest.mark.thorough
def test_the_warm_up_serves_the_largest_and_the_smallest(tmp_path, pool):
    # The pool's teacher is untrained: of it there is nothing to learn.
    folder = warm(tmp_path, pool, Recipe(320, batch=4, lr=5e-4), weights=CONTROL)
    trained = load_shared(folder, SPACE, LMBDAS)
    untrained = load_shared(warm(tmp_path, pool, Recipe(0, batch=4)), SPACE, LMBDAS)
    x = pool.pictures()[:8]
    for arch in (SPACE.corners(True)[0], SPACE.corners(False)[0]):
        assert rd_cost(trained, arch, x) < rd_cost(untrained, arch, x)


@pytest.mark.thorough
def test_a_warm_up_is_done_once(tmp_path, pool):
    folder = warm(tmp_path, pool, Recipe(2, batch=2))
    assert (folder / SHARED).stat().st_mode == (folder / CARD).stat().st_mode, "for all to read"
    assert warm(tmp_path, pool, Recipe(2, batch=2), stop_at(1)) == folder
    assert warm(tmp_path, pool, Recipe(3, batch=2)) != folder


@pytest.mark.thorough
@pytest.mark.parametrize("file", [SHARED, CARD])
def test_shared_weights_that_went_bad_are_trained_again(tmp_path, pool, file):
    folder = warm(tmp_path, pool, Recipe(0, batch=2))
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    assert warm(tmp_path, pool, Recipe(0, batch=2)) == folder
    assert (folder / file).read_bytes() == whole


@pytest.mark.thorough
def test_shared_weights_can_be_trained_further(tmp_path, pool):
    first = warm(tmp_path, pool, Recipe(3, batch=2))
    same = warm(tmp_path, pool, Recipe(0, batch=2), further=first)
    more = warm(tmp_path, pool, Recipe(3, batch=2), further=first)
    assert len({first, same, more}) == 3
    began, kept, moved = (load_shared(f, SPACE, LMBDAS).state_dict() for f in (first, same, more))
    assert all(torch.equal(began[name], kept[name]) for name in began)
    assert any(not torch.equal(began[name], moved[name]) for name in began)


@pytest.mark.thorough
def test_a_warm_up_that_was_stopped_ends_where_an_uninterrupted_one_does(tmp_path, pool):
    recipe = Recipe(24, batch=2)
    # Stopped after step 20: the checkpoint is older, and the steps since are taken again.
    with pytest.raises(Stopped):
        warm(tmp_path / "a", pool, recipe, stop_at(20))
    whole, resumed = warm(tmp_path / "b", pool, recipe), warm(tmp_path / "a", pool, recipe)
    first, second = (load_shared(f, SPACE, LMBDAS).state_dict() for f in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list((tmp_path / "a").glob(".*"))


def test_a_run_in_two_halves_ends_where_one_without_a_break_does_to_the_bit(tmp_path, pool):
    """Students that hold the slices are kept between steps, and a resumed run has none of them."""

    def trained(name: str, *until: int) -> dict[str, torch.Tensor]:
        for last in until:
            torch.manual_seed(0)
            shared = Shared(SPACE, LMBDAS)
            file, forwards = tmp_path / name, sandwich(shared, 0)
            run = Run(shared, pool, Recipe(4, 1), Weights(), pool.latent_widths, file, forwards)
            run.run(until=last)
        return shared.state_dict()

    whole, halves = trained("whole", 4), trained("halves", 2, 4)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


@pytest.mark.thorough
def test_a_sandwich_is_the_largest_the_smallest_and_the_same_two_others_each_time(tmp_path, pool):
    shared = load_shared(warm(tmp_path, pool, Recipe(0, batch=2)), SPACE, LMBDAS)
    seen: list[str] = []
    shared.through = lambda arch: seen.append(arch.key)  # type: ignore[method-assign,assignment]
    for _ in range(2):
        sandwich(shared, 3)(7)
    assert seen[:4] == seen[4:]
    assert seen[0] in {a.key for a in shared.largest}
    assert seen[1] in {a.key for a in shared.smallest}


@pytest.mark.thorough
def test_a_warm_up_is_the_same_whatever_the_number_of_threads(tmp_path, pool):
    files = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        folder = warm(tmp_path / str(threads), pool, Recipe(4, batch=2))
        assert torch.get_num_threads() == threads
        files.append((folder / "shared.safetensors").read_bytes())
    torch.set_num_threads(1)
    assert files[0] == files[1]


def test_a_space_with_wide_stages_on_a_trunk_is_warmed_up_at_a_lower_rate(tmp_path):
    assert rate_share(load_space("demo")) == rate_share(load_space("asymmetric")) == 1
    assert rate_share(load_space("phone")) == 192 / 512
    prim = Path(__file__).parents[2] / "search_spaces" / "prim.toml"
    wide = tmp_path / "wide.toml"
    wide.write_text(prim.read_text().replace("112, 128]", "112, 320]"))
    assert max(a.encoder.widths[0] for a in load_space(str(wide)).corners(True)) == 320
    assert rate_share(load_space(str(wide))) == 1


def test_archs_that_have_graphs_are_few_and_are_exchanged():
    shared = Shared(SPACE, LMBDAS)

    def between(steps: range) -> set[str]:
        forwards = sandwich(shared, 3, few=True)
        return {forward.key for step in steps for forward in forwards(step)[2:]}

    first, again = between(range(60)), between(range(60))
    assert first == again
    assert 10 < len(first) <= FEW
    assert len(between(range(EXCHANGE, EXCHANGE + 60)) - first) > 10


@pytest.mark.thorough
def test_a_warm_up_learns_from_a_teacher_in_the_step(tmp_path):
    torch.manual_seed(0)
    teacher = VariableRateTeacher("t", ready(Student(SPACE.corners(False)[0], LMBDAS)))
    folder = lessons_folder(tmp_path / "targets", teacher, PoolRecipe("builtin", 32, 64))
    made = warm(tmp_path / "shared", lessons(folder), Recipe(2, batch=2), weights=Weights())
    assert json.loads((made / CARD).read_text())["targets"] == folder.name


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_a_warm_up_on_a_gpu_has_the_teacher_in_its_graphs(tmp_path, caplog):
    folder = lessons_folder(
        tmp_path / "targets", load_teacher("mini"), PoolRecipe("builtin", 64, 64), device="cuda"
    )
    warm(tmp_path / "shared", lessons(folder, "cuda"), Recipe(20, batch=4), weights=Weights())
    assert "without a CUDA graph" not in caplog.text


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_outputs_curve_and_warm_up_are_made_on_a_gpu(tmp_path, monkeypatch):
    """What a study computes before its trials, on the GPU, beside the same on the CPU."""
    monkeypatch.chdir(tmp_path)
    teacher, images = load_teacher("mini"), open_images("builtin", "eval")
    here, there = (measured_once(tmp_path / d, teacher, images, d).curve() for d in ("cpu", "cuda"))
    assert there.bpp == pytest.approx(here.bpp, rel=1e-2)
    assert there.psnr_db == pytest.approx(here.psnr_db, abs=1e-2)
    recipe = PoolRecipe("builtin", 32, 64)
    pools = [
        TargetPool(target_pool(tmp_path / f"t-{d}", teacher, recipe, device=d), d)
        for d in ("cpu", "cuda")
    ]
    y = [pool.arrays["y"].astype("float32") for pool in pools]
    assert abs(y[0] - y[1]).mean() < 1e-2 * abs(y[0]).mean()
    card = json.loads((warm(tmp_path / "w", pools[1], Recipe(20, batch=4)) / CARD).read_text())
    assert card["device"] == "cuda"
