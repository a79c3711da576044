"""How long a search takes and what it writes, foretold from one measured step on this machine.

Everything but the step is counted: MACs over the MACs per second of that step. Where a search stands can be seen
better once its first trials have ended (``report.live``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nas_kd.codec.arch import Arch
from nas_kd.codec.macs import FRAME_PX, arch_cost
from nas_kd.codec.search_space import SearchSpace
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.data.image_file import suffixes
from nas_kd.data.picture_files import below
from nas_kd.data.picture_sets import folder_of
from nas_kd.device import best_device, one_thread
from nas_kd.distillation.rotating_crops import SHARD_BYTES
from nas_kd.distillation.training import CHECK_EVERY, CropPool, Run
from nas_kd.objectives import of_kind
from nas_kd.places import BUILTIN
from nas_kd.recipe import Recipe
from nas_kd.seeds import derived_seed
from nas_kd.study.large_crops import SIDE_PX, has_large, large_crops
from nas_kd.study.plan import Question, kmac_per_px, narrowness, question_of, span
from nas_kd.study.settings import Settings
from nas_kd.supernet.warmup import BETWEEN, STEPS
from nas_kd.teachers.costs import TeacherCost, teacher_costs
from nas_kd.teachers.served import family_of
from nas_kd.teachers.targets import FIRST_CROPS

SECONDS, WARM_STEPS = 3.0, 3
"""How long steps are timed, and those that go before."""
BACKWARD = 3
"""A training step's MACs over those of its forward pass."""
READING_S = 4.0
"""Of an energy reading; 1.4 to 4 s on simulated devices (CHANGELOG), a student's first one on a device takes longer."""
FRONT_SHARE = 0.25
"""Of the trials, taken to be on the front that is polished."""
COPIES = 2
"""Of a trained student: in its folder, and to download from the dashboard."""
JUDGED_PX = FRAME_PX[0] * FRAME_PX[1]
EVAL_PICTURES = {BUILTIN: 4, "kodak": 24}
"""Where the pictures to judge by are not here yet, or come with what nas-kd depends on."""


@dataclass
class Forecast:
    """Seconds by stage, in order; bytes on disk; what was measured for it, in words."""

    measured: str
    seconds: dict[str, float] = field(default_factory=dict)
    disk_bytes: int = 0

    @property
    def in_lines(self) -> list[str]:
        """For people."""
        parts = ", ".join(f"{stage} {in_time(s)}" for stage, s in self.seconds.items() if s >= 1)
        return [
            f"measured: {self.measured}",
            f"time: about {in_time(sum(self.seconds.values()))} ({parts})",
            f"disk: about {self.disk_bytes / 1e9:.2g} GB",
        ]


def in_time(seconds: float) -> str:
    """Hours, minutes or seconds."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def teacher_line(s: Settings, costs: list[TeacherCost]) -> str:
    """The teacher's costs and latents, to be read beside the space's; with a remedy where its latents are wider."""
    sides = {
        "encoder": [cost.encoder for cost in costs],
        "decoder": [cost.decoder for cost in costs],
    }
    spans = (f"{side} {span(values)}" for side, values in sides.items())
    wide = max(cost.M for cost in costs)
    said = f"teacher {s.teacher}: kMAC/px {', '.join(spans)}; latents M up to {wide}"
    narrow = narrowness(question_of(s, None).bounds, wide)
    return f"{said}; {narrow}" if narrow else said


def forecast(
    s: Settings, budget: int | None, at_once: int, costs: list[TeacherCost] | None = None
) -> Forecast:
    """Measure a step of a middling arch for SECONDS and foretell the rest.

    Args:
        s: the study.
        budget: trials in the end.
        at_once: trials that train at the same time, each as fast as one alone.
        costs: the teacher's, where they are known already.
    """
    asked, device = question_of(s, budget), best_device()
    costs = teacher_costs(s.teacher) if costs is None else costs
    arch = middling(asked, s)
    step_s = measured_step_s(arch, s, device)
    crop_px, per_px = s.crop_size**2, 1e3 * kmac_per_px(arch_cost(arch), "total")
    macs_per_s = BACKWARD * per_px * s.batch * crop_px / step_s
    told = Forecast(
        f"{step_s * 1e3:.0f} ms a step of an arch of {per_px / 1e3:.3g} kMAC/px on {device}"
    )
    at_once = at_once if device == "cpu" else 1
    anew = device != "cpu"  # then the teacher works in every step, and nothing is stored
    pool_px = sum(crops * side_px**2 for crops, side_px in _pools(s))
    stored_s = pool_px * _teacher_macs(s, costs) / macs_per_s
    told.seconds["teacher's outputs"] = 0.0 if anew else stored_s
    taught = s.batch * crop_px * _live_macs(s, costs) if anew and s.loss.needs_teacher else 0.0
    step_s += taught / macs_per_s
    told.seconds["shared weights"] = (
        _warm_steps(s, asked.space) * (_warm_macs(s, asked, per_px) + taught) / macs_per_s
    )
    judge_s = _judged_macs(s, arch, sum(cost.levels for cost in costs)) / macs_per_s
    told.seconds["ranking"] = s.rank * judge_s / at_once
    told.seconds["trials"] = asked.trials * (s.steps * step_s + judge_s) / at_once
    readings = asked.trials * len(of_kind(s.objectives, "energy"))
    told.seconds["energy"] = readings * READING_S
    polished = _polished(asked)
    told.seconds[f"polish of {polished}"] = (s.polish * step_s * polished) / at_once
    told.disk_bytes = _disk_bytes(s, asked, arch, costs, anew)
    return told


def middling(asked: Question, s: Settings) -> Arch:
    """The arch of middle cost among some of those that may be trained."""
    archs = list(asked.bounds)
    if s.grid is None and s.archs is None:
        archs = [asked.space.draw(derived_seed(0, "plan", i)) for i in range(31)]
    below_limits = [arch for arch in archs if s.limits.over(arch) <= 0] or archs
    ordered = sorted(below_limits, key=lambda arch: arch_cost(arch).total.macs)
    return ordered[len(ordered) // 2]


def measured_step_s(arch: Arch, s: Settings, device: str) -> float:
    """Seconds of one training step of a student, on one thread, as a worker has."""
    crops = torch.randint(
        0, 256, (max(16, s.batch), 3, s.crop_size, s.crop_size), dtype=torch.uint8
    )
    recipe = Recipe(10**9, s.batch, checkpoint_s=1e9, optimiser=s.optimiser)
    with one_thread():
        run = Run(Student(arch, LMBDAS).to(device), CropPool(crops, device), recipe)
        run.run(until=WARM_STEPS)
        started, first = time.perf_counter(), run.step
        # Each of these waits for the device: on a GPU, which goes on without the host, not at every step.
        at_once = 1 if device == "cpu" else CHECK_EVERY
        while time.perf_counter() - started < SECONDS:
            run.run(until=run.step + at_once)
        return (time.perf_counter() - started) / (run.step - first)


def _polished(asked: Question) -> int:
    return max(1, round(FRONT_SHARE * asked.trials))


def _pools(s: Settings) -> list[tuple[int, int]]:
    """How many crops the teacher sees, and their sides."""
    return [(s.crops, s.crop_size), *([(large_crops(s), SIDE_PX)] if has_large(s) else [])]


def _teacher_macs(s: Settings, costs: list[TeacherCost]) -> float:
    """Of a pixel, of all that is kept of the teacher."""
    own = sum(1e3 * cost.encoder * cost.kept for cost in costs)
    return own + (sum(1e3 * cost.decoder * cost.levels for cost in costs) if s.kd_x > 0 else 0)


def _live_macs(s: Settings, costs: list[TeacherCost]) -> float:
    """Of a pixel, of the teacher that works in the step: each crop passes one of its models."""
    levels = sum(cost.levels for cost in costs)
    each = ((c.encoder + (c.decoder if s.kd_x > 0 else 0)) * c.levels for c in costs)
    return 1e3 * sum(each) / levels


def _warm_steps(s: Settings, space: SearchSpace) -> int:
    if s.init != "shared":
        return 0
    if s.warmup is not None:
        return s.warmup
    return 0 if family_of(s.teacher) == space.fingerprint else STEPS


def _warm_macs(s: Settings, asked: Question, per_px: float) -> float:
    """Of a step of the shared weights: the largest arch, the smallest, and some between them."""
    ends = [1e3 * kmac_per_px(arch_cost(arch), "total") for arch in asked.bounds]
    return BACKWARD * (max(ends) + min(ends) + BETWEEN * per_px) * s.batch * s.crop_size**2


def _judged_macs(s: Settings, arch: Arch, levels: int) -> float:
    """Of judging a student: its encoder once, its decoder at each level."""
    cost = arch_cost(arch)
    per_px = kmac_per_px(cost, "encoder") + levels * kmac_per_px(cost, "decoder")
    return 1e3 * per_px * JUDGED_PX * _pictures(s.eval_data)


def _pictures(spec: str) -> int:
    folder = Path() if spec == BUILTIN else folder_of(spec)
    if spec == BUILTIN or not folder.is_dir():
        return EVAL_PICTURES.get(spec, 24)
    return len(below(folder, suffixes()).files)


def _disk_bytes(
    s: Settings, asked: Question, arch: Arch, costs: list[TeacherCost], anew: bool
) -> int:
    """Crops, the teacher's outputs on them or at most a shard of pictures, and every trained student."""
    pools = sum(crops * _crop_bytes(s, side_px, costs) for crops, side_px in _pools(s))
    if anew:
        first = sum(min(crops, FIRST_CROPS) * 3 * side_px**2 for crops, side_px in _pools(s))
        pools = first + (0 if s.data == BUILTIN else SHARD_BYTES)
    students = COPIES * asked.trials + (_polished(asked) if s.polish else 0)
    return int(pools + 4 * arch_cost(arch).total.parameters * students)


def _crop_bytes(s: Settings, side_px: int, costs: list[TeacherCost]) -> int:
    crop, levels = 3 * side_px**2, sum(cost.levels for cost in costs)
    y, z = side_px // 16, side_px // 64
    kept = sum(cost.kept for cost in costs)
    latents = 2 * kept * max(cost.M * y**2 + cost.N * z**2 for cost in costs)
    return crop + latents + (levels * crop if s.kd_x > 0 else 0)
