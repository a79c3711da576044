"""What came of a trial, and what is stored with it: the one place that knows the names of a trial's attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from optuna.trial import FrozenTrial, Trial

from nas_kd.codec.arch import Arch
from nas_kd.codec.cost import Cost
from nas_kd.errors import StudyError
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.measurement.reading import Reading
from nas_kd.objectives import MEASURED, TABLE, of_kind
from nas_kd.reasons import Reason

CHECKPOINT = "checkpoint.pt"
"""Beside the student; it stays until the outcome is stored, so that a lost outcome costs no training."""

BARE: dict[str, Any] = {"value": None, "details": {}, "raw": {}}
"""What a stored reading need not say."""

T = TypeVar("T")
Rungs = dict[str, list[float]]
"""By step, as text: the R-D loss there and the MACs."""


@dataclass(frozen=True)
class Lost:
    """Of work on one student that failed, while the others' goes on: a reason, and what the error said."""

    reason: str
    message: str

    @property
    def was_interrupted(self) -> bool:
        """Whether it is to be tried again."""
        return Reason.of(self.reason) == Reason.INTERRUPTED

    @property
    def said(self) -> str:
        """Both, in brackets."""
        return f"({self.reason}: {self.message})"


@dataclass
class Outcome:
    """What came of one trial: a value per objective, or the reason why there are none."""

    values: list[Any] | None
    reason: str | None = None
    uncovered_db: float = 0.0
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> TrialRecord:
        """What will be stored, typed."""
        return TrialRecord(self.attrs)


@dataclass(frozen=True)
class TrialRecord:
    """A trial's attributes, typed; what an older version did not store, or a trial did not come to, is None."""

    stored: Mapping[str, Any]

    @property
    def arch(self) -> Arch:
        """Raises KeyError of a trial that ended before it had one: ask ``begun``."""
        return Arch.from_json(self.stored["arch"])

    @property
    def begun(self) -> bool:
        """Whether it has an arch."""
        return "arch" in self.stored

    @property
    def arch_key(self) -> str | None:
        """The arch's, which names the student's folder."""
        return self.stored.get("arch_key")

    @property
    def driver(self) -> str | None:
        """The process that asked for it."""
        return self.stored.get("driver")

    @property
    def deaths(self) -> int:
        """Workers that died of this arch so far."""
        return int(self.stored.get("deaths", 0))

    @property
    def retry_of(self) -> int | None:
        """The trial that it repeats."""
        return self.stored.get("retry_of")

    @property
    def same_as(self) -> int | None:
        """The trial of the same arch whose outcome this is; nothing was trained."""
        return self.stored.get("same_as")

    @property
    def said(self) -> str | None:
        """Why there are no values, as it is stored, with details."""
        return self.stored.get("reason")

    @property
    def reason(self) -> Reason | None:
        """Why there are no values."""
        return Reason.of(self.said)

    @property
    def message(self) -> str | None:
        """What the error said."""
        return self.stored.get("message")

    @property
    def traceback(self) -> str | None:
        """Of an error that is not one of ours."""
        return self.stored.get("traceback")

    @property
    def cost(self) -> Cost | None:
        """Parameters and MACs, counted on the student."""
        stored = self.stored.get("cost")
        return None if stored is None else Cost.from_json(stored)

    @property
    def rd(self) -> Measured | None:
        """R-D points by picture."""
        stored = self.stored.get("rd")
        return None if stored is None else Measured.from_json(stored)

    @property
    def rd_cost(self) -> float | None:
        """R + lmbda 255^2 D in bits per pixel, an objective or not."""
        return self.stored.get("rd_cost")

    @property
    def quality(self) -> dict[str, float]:
        """By objective, of a trial that has no values since its energy was not read."""
        return self.stored.get("quality", {})

    def reading(self, objective: str) -> Reading | None:
        """Of a measured objective."""
        stored = self.stored.get(objective)
        # Of some states earlier versions kept no details.
        return None if stored is None else Reading.from_json(BARE | stored)

    @property
    def readings(self) -> dict[str, Reading]:
        """Of the objectives that were measured, or could not be."""
        known = {name: self.reading(name) for name in of_kind(tuple(TABLE), *MEASURED)}
        return {name: one for name, one in known.items() if one is not None}

    def measured(self, objective: str) -> float | None:
        """The value of a measured objective's reading, if it has one."""
        return (self.stored.get(objective) or {}).get("value")

    @property
    def limit_ratios(self) -> dict[str, float]:
        """Cost over limit by ``name.side``."""
        return self.stored.get("limit_ratios", {})

    @property
    def over(self) -> float:
        """The share by which the worst limit is exceeded; 0 where none is."""
        return float(self.stored.get("over", 0.0))

    @property
    def short_db(self) -> float:
        """Decibels of the interval that the student's curve lacks; 0 where none."""
        return float(self.stored.get("constraints", [0.0])[0])

    @property
    def rungs(self) -> Rungs:
        """What it had come to where it waited."""
        return self.stored.get("rungs", {})

    @property
    def seconds(self) -> dict[str, float]:
        """How long its parts took."""
        return self.stored.get("seconds", {})


def record(trial: FrozenTrial | Trial) -> TrialRecord:
    """What is stored with a trial."""
    return TrialRecord(trial.user_attrs)


def cost_of(trial: FrozenTrial) -> Cost:
    """What a trained student costs; raises StudyError of a trial that trained none."""
    return _there(record(trial).cost, trial)


def rd_of(trial: FrozenTrial) -> Measured:
    """A student's R-D points; raises StudyError of a trial that was not evaluated."""
    return _there(record(trial).rd, trial)


def _there(stored: T | None, trial: FrozenTrial) -> T:
    if stored is None:
        raise StudyError(f"trial {trial.number}: was not evaluated, or another program stored it")
    return stored
