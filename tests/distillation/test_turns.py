"""Trainings at once in one process: the steps that each would take alone, whatever becomes of the others."""

import gc
import threading
import time

import pytest
import torch

from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.student import Student
from nas_kd.distillation.training import CropPool, Run
from nas_kd.errors import TrialFailed
from nas_kd.recipe import Recipe
from nas_kd.turns import TURNS, Turn, Turns, side_by_side, uncollected

SIDE = Transform("trunk4", (0, 8, 8), kernel=3)
TINY = Arch(SIDE, SIDE, M=16, hyper=8)
STEPS = 6


def _run(seed: int) -> Run:
    with TURNS:
        torch.manual_seed(seed)
        crops = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
        return Run(Student(TINY), CropPool(crops), Recipe(STEPS, batch=1, seed=seed))


def _trained(seed: int) -> dict:
    run = _run(seed)
    run.run()
    return {name: value.clone() for name, value in run.student.state_dict().items()}


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def alone() -> list[dict]:
    """The weights of three runs, one after the other."""
    return [_trained(seed) for seed in range(3)]


def test_runs_that_interleave_end_with_the_weights_of_runs_one_after_the_other(alone):
    runs, order = [_run(seed) for seed in range(3)], []
    ready = threading.Barrier(3)

    def work(i: int) -> dict:
        ready.wait()
        runs[i].run(between_steps=lambda: order.append(i))
        return runs[i].student.state_dict()

    found = side_by_side([lambda i=i: work(i) for i in range(3)])
    assert all(map(_same, found, alone))
    changes = sum(a != b for a, b in zip(order, order[1:], strict=False))
    assert changes > STEPS  # one after the other has two


def test_a_run_that_fails_leaves_those_beside_it_alone(alone):
    runs = [_run(seed) for seed in range(3)]
    with torch.no_grad():
        next(runs[1].student.parameters()).fill_(float("nan"))

    def work(i: int) -> dict:
        runs[i].run()
        return runs[i].student.state_dict()

    def stopped() -> None:
        raise RuntimeError("a library fails")

    lost = _run(7)
    works = [lambda i=i: work(i) for i in range(3)]
    found = side_by_side([*works, lambda: lost.run(between_steps=stopped)])
    assert (_same(found[0], alone[0]), _same(found[2], alone[2])) == (True, True)
    assert isinstance(found[1], TrialFailed)
    assert (found[1].reason, str(found[3])) == ("nan", "a library fails")


def test_turns_are_had_one_at_a_time_in_the_order_of_asking():
    turns, order = Turns(), []

    def wait(i: int) -> None:
        with turns:
            order.append(i)

    threads = [threading.Thread(target=wait, args=(i,)) for i in range(5)]
    with turns:
        for waiting, thread in enumerate(threads, start=1):
            thread.start()
            while len(turns._waiting) < waiting:
                time.sleep(0.001)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == list(range(5))


def test_a_turn_that_ended_in_an_error_is_given_back():
    turns = Turns()
    with pytest.raises(ValueError, match="lost"), turns:
        raise ValueError("lost")
    with turns:
        assert turns._taken


class _Generator:
    """As the default generator of a GPU: its state can be exchanged for another object."""

    def __init__(self, state: list[int]):
        self.state = state

    def clone_state(self) -> "_Generator":
        return _Generator(list(self.state))

    def graphsafe_get_state(self) -> "_Generator":
        return _Generator(self.state)

    def graphsafe_set_state(self, other: "_Generator") -> None:
        self.state = other.state


def test_on_a_gpu_every_training_has_a_state_of_noise_of_its_own():
    outside = [0]
    generator = _Generator(outside)
    one, two = Turn(generator), Turn(generator)
    with one:
        generator.state[0] = 1
        of_one = generator.state
    with two:
        generator.state[0] = 2
        assert of_one == [1]  # what a graph of the first still has to read
    assert (generator.state is outside, outside) == (True, [0])
    with one:
        assert generator.state is of_one


def test_no_garbage_is_collected_while_a_graph_is_captured():
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with uncollected():
                assert not gc.isenabled()
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
