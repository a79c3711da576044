"""Weights that all students of a space share: a narrow student's are leading slices of the widest one's.

Widths, depths, attention, M, hyper width, kernels and levels are shared by slicing. Where two archs do not
compute with the same parts, the parts lie side by side: stems and kinds of blocks have names of their own
(layers.py); the transforms are kept apart by activation, trunks among them, the hyperprior by entropy model, and
everything by whether it belongs to a trunk.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas_kd.codec.arch import Arch
from nas_kd.codec.search_space import SearchSpace
from nas_kd.codec.student import LMBDAS, Student, slice_params
from nas_kd.codec.trunk import Common
from nas_kd.errors import SpaceError

TEMPLATES = 32
"""Students without weights of their own that are kept between steps."""


def shared_name(name: str, arch: Arch) -> str:
    """Where a student's parameter lies among the shared ones: ``h_a.conv0.weight``, apart by what differs."""
    part, rest = name.split(".", 1)
    kinds: dict[str, str] = {"g_a": arch.encoder.activation, "g_s": arch.decoder.activation}
    kind = (kinds | {"gain_y": "all"}).get(part, arch.entropy)
    return f"{part}.{kind}{'-trunk' if arch.trunk else ''}.{rest}"


def parts(arch: Arch) -> set[tuple[str, ...]]:
    """What decides which parameters an arch has, whatever their sizes."""
    trunk = str(arch.trunk)
    sides = (("g_a", arch.encoder), ("g_s", arch.decoder))
    transforms = {(name, s.stem, s.block, s.activation) for name, s in sides}
    return transforms | {("hyperprior", arch.entropy, trunk)}


class Shared(nn.Module):
    """The shared parameters, and students that compute with slices of them.

    Parameter names begin as a student's do (``g_a.``, ``gain_y.``, ...), so that training treats both alike.

    Args:
        space: whose archs share.
        lmbdas: one Lagrange multiplier per level.
        crops: pictures [n, 3, H, W] in [0, 1] that trunks start from, if they are to be trained.
    """

    def __init__(
        self,
        space: SearchSpace,
        lmbdas: tuple[float, ...] = LMBDAS,
        crops: Tensor | None = None,
    ):
        super().__init__()
        self.space, self.lmbdas = space, tuple(lmbdas)
        self.largest, self.smallest = space.corners(True), space.corners(False)
        self.arch = max(self.largest, key=lambda arch: (arch.M, arch.hyper))
        seen: set[tuple[str, ...]] = set()
        common = Common()
        for arch in self.largest:
            if not parts(arch) <= seen:
                seen |= parts(arch)
                student = Student(arch, self.lmbdas)
                if crops is not None:
                    student.start_from(crops, common)
                for name, p in student.named_parameters():
                    self._keep(shared_name(name, arch), p.detach())
        self._templates: OrderedDict[str, Student] = OrderedDict()
        self._auxiliaries: list[_Auxiliary] = []

    def _keep(self, name: str, value: Tensor) -> None:
        *path, leaf = name.split(".")
        room: nn.Module = self
        for step in path:
            if step not in room._modules:
                room.add_module(step, nn.Module())
            room = room.get_submodule(step)
        there = room._parameters.get(leaf)
        if there is None:
            room.register_parameter(leaf, nn.Parameter(value.clone()))
        elif there.shape != value.shape:
            raise SpaceError(
                f"search space {self.space.name}: {name} would be {tuple(value.shape)} beside "
                f"{tuple(there.shape)}; these archs cannot share weights, search with --set init=scratch"
            )

    @property
    def levels(self) -> int:
        """Number of rate points."""
        return len(self.lmbdas)

    def slices(self, student: Student) -> dict[str, Tensor]:
        """The student's parameters by name, as views into the shared ones."""
        names = [name for name, _ in student.named_parameters()]
        wide: dict[str, Tensor] = {
            name: self.get_parameter(shared_name(name, student.arch)) for name in names
        }
        return slice_params(wide, student)

    def student(self, arch: Arch) -> Student:
        """A student of its own that starts from the slices."""
        student = Student(arch, self.lmbdas).to(next(self.parameters()).device)
        with torch.no_grad():
            for name, value in self.slices(student).items():
                student.get_parameter(name).copy_(value)
        return student

    def through(self, arch: Arch) -> Through:
        """The forward pass of an arch with the shared weights, which receive the gradients."""
        return Through(self, self._template(arch), arch.key)

    def _template(self, arch: Arch) -> Student:
        student = self._templates.pop(arch.key, None)
        if student is None:
            # A step's noise must not depend on whether its archs have come before.
            with torch.random.fork_rng(devices=[]):
                student = Student(arch, self.lmbdas).to(next(self.parameters()).device)
        self._templates[arch.key] = student
        if len(self._templates) > TEMPLATES:
            self._templates.popitem(last=False)
        return student.train(self.training)

    def aux_loss(self) -> Tensor:
        """The loss of the quantiles of every entropy model."""
        if not self._auxiliaries:  # kept: a CUDA graph reads their constants
            first = {(arch.entropy, arch.trunk): arch for arch in self.largest}
            self._auxiliaries = [_Auxiliary(self._template(arch)) for arch in first.values()]
        losses = [
            functional_call(t, {f"student.{n}": v for n, v in self.slices(t.student).items()}, ())
            for t in self._auxiliaries
        ]
        return torch.stack(losses).sum()


@dataclass(frozen=True, eq=False)
class Through:
    """The forward pass of an arch through shared weights; ``key`` tells the arch."""

    shared: Shared
    template: Student
    key: str

    def __call__(self, x: Tensor, level: Tensor) -> dict[str, Any]:
        """What ``Student.forward`` returns."""
        return functional_call(self.template, self.shared.slices(self.template), (x, level))


class _Auxiliary(nn.Module):
    """A student's auxiliary loss as a forward pass."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student

    def forward(self) -> Tensor:
        return self.student.aux_loss()
