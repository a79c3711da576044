from dataclasses import replace

import pytest
import torch

from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.student import Student
from nas_kd.errors import SpaceError
from nas_kd.supernet.growth import grown

SIDE = Transform("trunk4", (0, 16, 32), (0, 1, 1, 0), block="depthwise", kernel=3)
ARCH = Arch(SIDE, SIDE, M=32, hyper=16, entropy="dual").canonical()


@pytest.fixture
def trained() -> Student:
    """No parameter of it is as it began."""
    torch.manual_seed(0)
    student = Student(ARCH, (0.01, 0.02)).eval()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return student


def with_depths(encoder: tuple[int, ...], decoder: tuple[int, ...]) -> Arch:
    sides = {"encoder": replace(SIDE, depths=encoder), "decoder": replace(SIDE, depths=decoder)}
    return replace(ARCH, **sides).canonical()


def test_a_deeper_student_computes_what_the_old_one_did(trained: Student):
    deep = grown(trained, with_depths((0, 2, 3, 1), (0, 1, 2, 2)))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        was, now = trained(x, 2), deep(x, 2)
    assert torch.equal(was["x_hat"], now["x_hat"])
    assert torch.equal(was["likelihoods"]["y"], now["likelihoods"]["y"])
    assert sum(p.numel() for p in deep.parameters()) > sum(p.numel() for p in trained.parameters())


def test_the_new_blocks_are_trained(trained: Student):
    deep = grown(trained, with_depths((0, 1, 2, 1), (0, 1, 1, 0))).train()
    deep(torch.rand(1, 3, 64, 64), 1)["x_hat"].square().mean().backward()
    assert deep.g_a.stages["2"].blocks[1].project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "arch",
    [
        with_depths((0, 0, 1, 0), (0, 1, 1, 0)),
        replace(ARCH, M=48),
        replace(ARCH, entropy="quad"),
        replace(ARCH, encoder=replace(SIDE, kernel=5)),
    ],
)
def test_what_differs_otherwise_is_refused(trained: Student, arch: Arch):
    with pytest.raises(SpaceError, match="cannot grow into"):
        grown(trained, arch)
