"""The first of two rounds: many archs are scored straight from their slices, the best are trained.

A score from a slice costs an evaluation and no training; the archs are ordered by non-dominated sorting on
the rate-distortion cost of the slice and the MACs of the arch (halving.ranks).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nas_kd.data import derived_seed
from nas_kd.evaluate import StudentCodec, evaluate
from nas_kd.halving import ranks
from nas_kd.macs import arch_cost
from nas_kd.space import Arch, SearchSpace
from nas_kd.trial import Task, rd_cost

DRAWS_PER_ARCH = 20
"""Draws after which a space is taken to hold no more archs."""


def draws(
    space: SearchSpace, n: int, seed: int, over: Callable[[Arch], float] = lambda arch: 0.0
) -> list[Arch]:
    """Up to ``n`` different random archs over no limit; fewer where the space holds no more."""
    found: dict[str, Arch] = {}
    for i in range(n * DRAWS_PER_ARCH):
        arch = space.draw(derived_seed(seed, "rank", i))
        if over(arch) <= 0:
            found.setdefault(arch.key, arch)
        if len(found) == n:
            break
    return list(found.values())


def ranked(
    task: Task,
    space: SearchSpace,
    n: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Random archs, best first: their ``params``, ``rd_cost`` (bits per pixel) and ``macs``.

    The task must hold shared weights. ``progress`` hears (done, of).
    """
    assert task.shared is not None
    scored: list[dict[str, Any]] = []
    levels = len(task.lmbdas)
    archs = draws(space, n, seed, lambda arch: task.limits.over(arch, levels))
    for done, arch in enumerate(archs, start=1):
        student = task.shared.student(arch)
        measured = evaluate(StudentCodec(student), task.eval_images, task.device)
        params, macs = space.params_of(arch), arch_cost(arch, levels).total.macs
        cost = rd_cost(measured, task.lmbdas)
        scored.append({"params": params, "rd_cost": cost, "macs": macs})
        if progress is not None:
            progress(done, len(archs))
    places = ranks([(s["rd_cost"], float(s["macs"])) for s in scored]) if scored else []
    return [s for _, s in sorted(zip(places, scored, strict=True), key=lambda pair: pair[0])]
