import threading

import pytest
import torch
from tiny_codec import ARCH, LMBDAS

from nas_kd.codec.arch import Transform
from nas_kd.codec.bfloat16 import bfloat16, inside, is_quick
from nas_kd.codec.blocks import blocks
from nas_kd.codec.student import Student
from nas_kd.distillation import training
from nas_kd.distillation.training import CropPool, Run
from nas_kd.recipe import Recipe

KINDS = ("residual", "depthwise", "gated", "summed", "window")


def stage(kind: str):
    torch.manual_seed(0)
    made = blocks(Transform("trunk4", (0, 16, 16), (0, 1, 1), block=kind, kernel=3), 16, 2)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_round_what_they_add_and_not_what_they_add_it_to(kind: str):
    made, x = stage(kind), 100 * torch.ones(1, 16, 16, 16)
    x += torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    plain = made(x)
    with bfloat16(True):
        rounded = made(x)
    added, error = (plain - x).abs().max(), (rounded - plain).abs().max()
    assert rounded.dtype == torch.float32
    assert 0 < error < 0.05 * added
    assert torch.equal(made(x), plain)


def test_nothing_of_the_trunk_is_rounded_where_blocks_add_nothing():
    side = Transform("trunk4", (0, 16, 16), (0, 1, 1), block="depthwise", kernel=3)
    x = torch.randn(1, 16, 8, 8)
    with bfloat16(True):
        assert torch.equal(blocks(side, 16, 3)(x), x)


def test_it_is_taken_in_one_thread_and_for_as_long_as_is_said():
    seen, x = [], torch.ones(1)

    def branch(x):
        seen.append(torch.is_autocast_enabled("cpu"))
        return x

    def fails():
        with bfloat16(True):
            inside(branch, x)
            other = threading.Thread(target=inside, args=(branch, x))
            other.start()
            other.join()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    inside(branch, x)
    assert seen == [True, False, False]


@pytest.mark.parametrize("quick", [True, False])
def test_a_run_takes_it_where_the_processor_has_it(quick: bool, monkeypatch):
    monkeypatch.setattr(training, "is_quick", lambda: quick)
    torch.manual_seed(0)
    student, seen = Student(ARCH, LMBDAS), []
    for name, part in student.named_modules():
        if name.endswith("conv1") or name == "g_a.head":
            part.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    crops = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    run = Run(student, CropPool(crops), Recipe(2, 1))
    run.run()
    assert (torch.bfloat16 in seen) == quick
    assert torch.float32 in seen  # the trunk
    assert all(
        p.dtype == p.grad.dtype == torch.float32 for p in run._trained() if p.grad is not None
    )
    seen.clear()
    student(crops[:1].float() / 255, torch.ones(1))
    assert set(seen) == {torch.float32}


def test_a_processor_is_asked_once_and_may_not_know(monkeypatch):
    assert is_quick() in (True, False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert is_quick.__wrapped__() is False
