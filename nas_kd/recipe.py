"""How a student is trained: what the terms of the loss weigh, how long and how fast."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nas_kd.errors import UsageError
from nas_kd.schema import STRICT, Checked

Form = Literal["kd", "paper", "paper-kld", "paper-scaled", "paper-clean", "paper-corrected"]
FORMS: tuple[str, ...] = get_args(Form)
Optimiser = Literal["adam", "soap"]
Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="a whole number from 0, below 2^63")]


@dataclass(frozen=True, config=STRICT)
class Weights(Checked):
    """What the terms weigh; all zero in our form is the control without distillation.

    form "kd": kd_x in [0, 1], kd_y and kd_z >= 0, as in the equation of nas_kd.distill.
    all other forms: what kd_x, kd_y and kd_z leave of 1 weighs the R-D term.
    """

    kd_x: Share = 0.0
    kd_y: NotNegative = 0.05
    kd_z: NotNegative = 0.0
    form: Form = "kd"

    @model_validator(mode="after")
    def _leave_a_rest(self) -> Weights:
        if self.form != "kd" and self.rest < -1e-9:
            raise UsageError(
                f"kd_x + kd_y + kd_z = {1 - self.rest:g}: must be at most 1 in form {self.form!r}, "
                "where the R-D term weighs the rest"
            )
        return self

    @property
    def rest(self) -> float:
        """What the R-D term weighs in the paper's forms."""
        return 1 - self.kd_x - self.kd_y - self.kd_z

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher's outputs."""
        return self.kd_x > 0 or self.kd_y > 0 or self.kd_z > 0


@dataclass(frozen=True, config=STRICT)
class Recipe(Checked):
    """How long and how fast to train.

    The learning rate warms up over ``warmup`` of the steps, stays, and falls to zero over the last
    ``decay`` of them. ``checkpoint_s`` is the time between checkpoints: what a crash may cost. ``optimiser``: soap
    learns as much in half of adam's steps, and each takes longer.
    """

    steps: Whole
    batch: Count = 2
    lr: Positive = 1e-3
    aux_lr: NotNegative = 1e-3
    warmup: Share = 0.03
    decay: Share = 0.5
    clip: Positive = 1.0
    seed: Seed = 0
    checkpoint_s: NotNegative = 30.0
    optimiser: Optimiser = "adam"

    def lr_factor(self, step: int) -> float:
        """Share of the learning rate at a step, 0 to 1."""
        progress = (step + 1) / max(self.steps, 1)
        falling = 0.5 * (1 - math.cos(math.pi * min(1.0, (1 - progress) / max(self.decay, 1e-9))))
        rising = min(1.0, progress / max(self.warmup, 1e-9))
        return min(rising, falling) if self.decay > 0 else rising
