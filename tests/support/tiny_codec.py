"""A codec of a few channels whose latents are worth coding."""

from dataclasses import replace

import torch

from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.student import Student

SIDE = Transform("trunk4", (0, 4, 4), (0, 1, 0, 0), kernel=3)


ARCH = Arch(SIDE, SIDE, M=6, hyper=4, entropy="mean-scale")


LMBDAS = (0.0035, 0.013, 0.0483)


def tiny(entropy: str) -> Student:
    torch.manual_seed(0)
    student = Student(replace(ARCH, entropy=entropy), LMBDAS).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        student.g_a.head.weight *= 50  # latents worth coding
    student.update(force=True, update_quantiles=True)
    return student
