"""Channels put in the order of their importance, so that leading slices keep the ones that matter.

A channel can change places with another wherever it stands: as an output of one layer, an input of the next, a gain,
a probability model. The student computes the same function before and after; only what a slice keeps is different.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.student import LMBDAS, Student

Axes = list[tuple[str, int]]
"""Where a group of channels stands: parameters by name, and the axis."""

WIDER = 2
"""Channels added to find out which axes a width decides; even, for attention halves it."""


@torch.no_grad()
def ordered(student: Student) -> Student:
    """The same codec with its channels by falling importance: the norm of all weights that a channel touches.

    Widths with attention windows stay as they are: their heads are whole groups of channels. So do all of a trunk,
    which stand in the order of energy: latents beside a linear transform in another order were better slices at first,
    and after 50 steps of training far worse (benchmarks/LOG.md). And so do those of a student that is coded in
    passes, whose checkerboard counts channels.
    """
    if student.arch.trunk or student.passes:
        return copy.deepcopy(student).eval()
    student = copy.deepcopy(student).eval()
    parameters = dict(student.named_parameters())
    groups = channel_groups(student.arch, student.lmbdas)
    for axes in groups.values():
        order = torch.argsort(_norms(parameters, axes), descending=True, stable=True)
        for name, axis in axes:
            parameters[name].copy_(parameters[name].index_select(axis, order))
    return student


def channel_groups(arch: Arch, lmbdas: tuple[float, ...] = LMBDAS) -> dict[str, Axes]:
    """The axes of a student's parameters that each width decides: ``M``, ``hyper``, ``encoder.1``, ..."""
    arch = arch.canonical()
    shapes = _shapes(arch, lmbdas)
    groups: dict[str, Axes] = {}
    for name, wider in _one_wider(arch).items():
        found: Axes = []
        for parameter, shape in _shapes(wider, lmbdas).items():
            growth = [b - a for a, b in zip(shapes[parameter], shape, strict=True)]
            found += [(parameter, axis) for axis, more in enumerate(growth) if more == WIDER]
        groups[name] = found
    return groups


def _one_wider(arch: Arch) -> dict[str, Arch]:
    """Arches of which one width alone is larger."""
    wider = {
        "M": replace(arch, M=arch.M + WIDER),
        "hyper": replace(arch, hyper=arch.hyper + WIDER),
    }
    for side in ("encoder", "decoder"):
        transform: Transform = getattr(arch, side)
        for i in range(transform.first_stage, len(transform.widths)):
            if transform.block == "window" and transform.depths[i]:
                continue
            widths: Any = tuple(w + WIDER * (j == i) for j, w in enumerate(transform.widths))
            changed: dict[str, Any] = {side: replace(transform, widths=widths)}
            wider[f"{side}.{i}"] = replace(arch, **changed)
    return wider


def _shapes(arch: Arch, lmbdas: tuple[float, ...]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in Student(arch, lmbdas).named_parameters()}


def _norms(parameters: dict[str, Tensor], axes: Axes) -> Tensor:
    """Squared norm of what each channel touches; every parameter counts alike."""
    total = torch.zeros(())
    for name, axis in axes:
        squares = parameters[name].detach().square().movedim(axis, 0)
        squares = squares.reshape(len(squares), -1).sum(1)
        total = total + squares / squares.mean().clamp(min=1e-12)
    return total
