"""What a search is going to do, in a few lines, from its settings alone: nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nas_kd.codec.arch import Arch
from nas_kd.codec.macs import FRAME_PX, ArchCost, arch_cost
from nas_kd.codec.search_space import SearchSpace, load_space
from nas_kd.objectives import of_kind
from nas_kd.study.grid import grid_points, listed_points
from nas_kd.study.large_crops import SIDE_PX, has_large
from nas_kd.study.settings import DEFAULT_BUDGET, Settings

SIDES = ("total", "encoder", "decoder")


class Question(NamedTuple):
    """What is searched: the space, how many archs it has, those between which their costs lie, and the trials."""

    space: SearchSpace
    size: int
    bounds: Sequence[Arch]
    trials: int


def question_of(s: Settings, budget: int | None) -> Question:
    """The question of a study; a grid or a list has its own archs, a space those at its corners."""
    space = load_space(s.space)
    points = None
    if s.grid is not None:
        points = grid_points(space, dict(s.grid))
    if s.archs is not None:
        points = listed_points(space, s.archs)
    if points is None:
        bounds = space.corners(False) + space.corners(True)
        return Question(space, space.size, bounds, DEFAULT_BUDGET if budget is None else budget)
    trials = len(points) if budget is None else min(budget, len(points))
    return Question(space, len(points), [space.arch(point) for point in points], trials)


def kmac_per_px(cost: ArchCost, side: str) -> float:
    """10^3 multiply-accumulates per pixel of one side, or of both (``total``)."""
    macs: int = getattr(cost, side).macs
    return macs / (FRAME_PX[0] * FRAME_PX[1]) / 1e3


def outline(s: Settings, budget: int | None) -> list[str]:
    """The plan in short: the space, the trials, and the stages before and after them."""
    asked = question_of(s, budget)
    return [_of_space(s, asked), _of_trials(s, asked), _of_stages(s)]


def _of_space(s: Settings, asked: Question) -> str:
    costs = [arch_cost(arch) for arch in asked.bounds]
    spans = {side: span([kmac_per_px(cost, side) for cost in costs]) for side in SIDES}
    latents = span([float(arch.M) for arch in asked.bounds])
    limits = f"; {s.limits.in_words}" if s.limits.in_words else ""
    return (
        f"space {asked.space.name}: {_in_words(asked.size)} archs of {spans['total']} kMAC/px (encoder "
        f"{spans['encoder']}, decoder {spans['decoder']}), latents M {latents}{limits}"
    )


def narrowness(archs: Sequence[Arch], M: int) -> str | None:
    """What follows where no arch has latents as wide as the teacher's M, and what to do; None where one has."""
    most = max(arch.M for arch in archs)
    if most >= M:
        return None
    return (
        f"no arch has latents of more than M = {most}, and the teacher has {M}: the highest qualities may end below "
        f"the interval that is compared; take a space with M up to {M}"
    )


def span(values: list[float]) -> str:
    """The least and the largest of some numbers, or the one they all are."""
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _in_words(count: int) -> str:
    return str(count) if count < 10**6 else f"{count:.1e}"


def _of_trials(s: Settings, asked: Question) -> str:
    batch = f"{s.batch} crops of {s.crop_size} px"
    return (
        f"trials: {asked.trials} of {s.steps} steps on {batch}, scored by {', '.join(s.objectives)}; teacher "
        f"{s.teacher}, pictures {s.data}, judged by {s.eval_data}"
    )


def _of_stages(s: Settings) -> str:
    parts = [f"teacher's outputs on {s.crops} crops", _start_of(s)]
    if s.rank:
        parts.append(f"{s.rank} archs ranked by their slices")
    parts.append("the trials")
    if energies := of_kind(s.objectives, "energy"):
        parts[-1] += (
            f", {len(energies)} energy reading{'s' * (len(energies) > 1)} each unless dominated"
        )
    if s.polish:
        parts.append(f"the front trained on by {s.polish} steps{_ended_on(s)}")
    return "stages: " + ", then ".join(parts)


def _ended_on(s: Settings) -> str:
    return f", the last part on crops of {SIDE_PX} px" if has_large(s) else ""


def _start_of(s: Settings) -> str:
    if s.init == "scratch":
        return "students from transform codecs"
    if s.init == "teacher":
        return "students from slices of the teacher"
    if s.warmup is None:
        return "shared weights (built in where they fit, else a warm-up)"
    return f"shared weights, {s.warmup} steps"
