"""The phases of a step: as today's loop on a CPU, and the same captured and replayed."""

import math
from pathlib import Path

import pytest
import torch
from plain_loop import by_tape, plain_steps

from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import Student
from nas_kd.distillation.graphs import Graphs, Replayed
from nas_kd.distillation.loss import Adapters, Batch, Weights
from nas_kd.distillation.training import CHECK_EVERY, CropPool, Run
from nas_kd.errors import TrialFailed
from nas_kd.recipe import Recipe
from nas_kd.supernet.shared_weights import Shared

SIDE = Transform("trunk4", (0, 16, 16), (0, 1, 1, 0), kernel=3)
TINY = Arch(SIDE, SIDE, M=16, hyper=8, entropy="checkerboard")
TAUGHT = Weights(0.1, 0.5, 0.2)
WIDTHS = (20, 8)
LMBDAS = (0.0067, 0.025)


class _Taught(CropPool):
    """Crops with a teacher's outputs, which are made up."""

    def batch(self, index, level, lmbda, weights):
        batch = super().batch(index, level, lmbda, weights)
        y = batch.x.mean((1, 2, 3))[:, None, None, None].expand(-1, WIDTHS[0], 4, 4)
        z = y[:, : WIDTHS[1], :1, :1]
        return Batch(batch.x, batch.level, batch.lmbda, batch.x.square(), y, z)


def _crops() -> torch.Tensor:
    coarse = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    fine = torch.nn.functional.interpolate(coarse, size=64, mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).round().to(torch.uint8)


def _student(device: str = "cpu") -> Student:
    torch.manual_seed(0)
    student = Student(TINY)
    student.start_from(_crops().float() / 255)
    return student.to(device)


def _recipe(steps: int) -> Recipe:
    return Recipe(steps, batch=3, seed=4, warmup=0.3, checkpoint_s=1e9)


def _run(steps: int, checkpoint: Path | None = None, device: str = "cpu", **more) -> Run:
    pool = _Taught(_crops(), device)
    return Run(_student(device), pool, _recipe(steps), TAUGHT, WIDTHS, checkpoint, **more)


def _shared() -> tuple[Shared, list]:
    """The narrowest archs of ``demo`` with those between: the second has fewer parameters."""
    torch.manual_seed(0)
    shared = Shared(load_space("demo"), LMBDAS, _crops().float() / 255)
    return shared, [shared.smallest[0], shared.space.draw(3)]


def _forwards(shared: Shared, archs: list):
    return lambda step: [shared.through(arch) for arch in archs[: 1 + step % 2]]


def _state(module) -> dict:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_on_a_cpu_phases_give_the_weights_of_the_plain_loop_bit_for_bit():
    plain, adapters = _student(), Adapters(6, (TINY.M, TINY.hyper), WIDTHS)
    pool, recipe = _Taught(_crops()), _recipe(5)
    told = plain_steps(plain, pool, recipe, TAUGHT, adapters, lambda step: [plain], 5)
    run = _run(5)
    assert run.run() == told[-1]
    assert _same(_state(run.student), _state(plain))
    assert run.adapters is not None
    assert _same(_state(run.adapters), _state(adapters))


def test_on_a_cpu_shared_weights_are_those_of_the_plain_loop_bit_for_bit():
    (plain, archs), (ours, _) = _shared(), _shared()
    pool, recipe, weights = CropPool(_crops()), Recipe(3, batch=2), Weights(0, 0, 0)
    plain_steps(plain, pool, recipe, weights, None, _forwards(plain, archs), 3)
    Run(ours, pool, recipe, weights, forwards=_forwards(ours, archs)).run()
    assert _same(_state(ours), _state(plain))


@pytest.mark.parametrize("taped", [False, True])
def test_a_run_stopped_at_a_rung_resumes_to_the_weights_of_one_that_was_not(tmp_path, taped):
    def run(checkpoint: Path | None = None) -> Run:
        made = _run(CHECK_EVERY + 4, checkpoint)
        if taped:
            by_tape(made)
        return made

    class Stop(Exception):  # noqa: N818
        pass

    def stop(step, metrics):
        raise Stop

    whole, stopped = run(), run(tmp_path / "run.pt")
    whole.run()
    with pytest.raises(Stop):
        stopped.run(stop)
    stopped.save()
    resumed = run(tmp_path / "run.pt")
    assert resumed.step == CHECK_EVERY
    resumed.run()
    assert _same(_state(resumed.student), _state(whole.student))


def test_replayed_phases_give_the_weights_and_terms_of_phases_as_they_come():
    eager, replayed = _run(8), _run(8)
    eager.optimiser.param_groups[0]["lr"] = torch.tensor(eager.recipe.lr)
    tape = by_tape(replayed)
    expected = eager.run()
    assert replayed.run() == pytest.approx(expected, rel=1e-5)
    assert tape.captured == 4  # draw, clear, backward, update
    for name, value in replayed.student.state_dict().items():
        torch.testing.assert_close(value, eager.student.state_dict()[name], msg=name)


def test_replayed_steps_of_shared_weights_leave_alone_what_a_step_does_not_touch():
    (plain, archs), (ours, _) = _shared(), _shared()
    pool, recipe, weights = CropPool(_crops()), Recipe(7, batch=2), Weights(0, 0, 0)
    runs = [Run(s, pool, recipe, weights, forwards=_forwards(s, archs)) for s in (plain, ours)]
    runs[0].optimiser.param_groups[0]["lr"] = torch.tensor(recipe.lr)
    tape = by_tape(runs[1])
    for run in runs:
        run.run()
    assert tape.captured == 2 + 2 + 2  # two archs, and an update for each set of parameters
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)


def test_a_nan_ends_a_replayed_run_where_it_ends_another():
    run = _run(CHECK_EVERY)
    by_tape(run)
    with torch.no_grad():
        run.student.g_a.head.weight[0] = math.nan
    with pytest.raises(TrialFailed, match="loss is nan at step 20"):
        run.run()


def test_what_comes_once_is_not_captured_and_the_oldest_graph_goes():
    captured, done = [], []

    def capture(work):
        captured.append(work)
        return work

    replayed = Replayed(capture, most=2)
    for key in "aabbacc":
        assert replayed(key, lambda key=key: done.append(key) or key) == key
    assert "".join(done) == "aabbacc"
    assert len(captured) == 3
    replayed("b", lambda: done.append("b"))  # it was the oldest
    assert len(captured) == 3


def test_a_cpu_captures_nothing():
    run = _run(2)
    assert not isinstance(run.way, Graphs)
    start = _state(run.student)
    run.run()
    assert _apart(_state(run.student), start, start) == pytest.approx(1)  # of the way it went


def _apart(a: dict, b: dict, start: dict) -> float:
    """How far two trainings from one start are apart, as a share of the way that they went."""
    moved = [(name, t.cpu()) for name, t in start.items() if t.is_floating_point()]
    between = sum(float((a[name] - b[name]).abs().sum()) for name, _ in moved)
    return between / sum(float((a[name].cpu() - t).abs().sum()) for name, t in moved)


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_on_a_gpu_graphs_train_as_phases_that_come_as_they_are(tmp_path, caplog):
    eager, graphs = _run(12, device="cuda", graphs=False), _run(12, device="cuda")
    expected, start = eager.run(), _state(_student())
    # Sums of some kernels come in another order each time, and Adam magnifies what is near zero.
    assert graphs.run() == pytest.approx(expected, rel=1e-2)
    assert isinstance(graphs.way, Graphs)
    assert "without a CUDA graph" not in caplog.text
    assert _apart(_state(eager.student), _state(graphs.student), start) < 0.05
    halves = _run(12, tmp_path / "run.pt", "cuda")
    halves.run(until=5)
    again = _run(12, tmp_path / "run.pt", "cuda")
    assert again.run() == pytest.approx(expected, rel=1e-2)
    assert _apart(_state(eager.student), _state(again.student), start) < 0.05


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_on_a_gpu_shared_weights_train_in_graphs_as_without():
    states = [_state(_shared()[0])]
    for graphs in (False, True):
        shared, archs = _shared()
        pool = CropPool(_crops(), "cuda")
        forwards = _forwards(shared.to("cuda"), archs)
        given = (shared, pool, Recipe(12, batch=2), Weights(0, 0, 0))
        Run(*given, forwards=forwards, graphs=graphs).run()
        states.append(_state(shared))
    assert _apart(states[1], states[2], states[0]) < 0.05
