"""Whether an arch is known to be dominated before its energy is read: then it need not be.

A rival that was read must have less of everything: no more of what is counted, a quality better beyond chance, picture
by picture, and an energy below what the model of the readings so far says of the arch, by two standard deviations. What
was not read is read in the end after all where the readings since no longer show it to be dominated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from nas_kd.codec.arch import Arch
from nas_kd.codec.macs import arch_cost
from nas_kd.objectives import MEASURED, TABLE, of_kind
from nas_kd.reasons import Reason
from nas_kd.study.energy_guess import EnergyGuess, work
from nas_kd.study.record import CHECKPOINT, record
from nas_kd.study.sampler import counted
from nas_kd.study.told_apart import difference
from nas_kd.study.uncertainty import by_picture

if TYPE_CHECKING:
    from nas_kd.study.study import Study

DEVIATIONS = 2.0
"""By which energies must lie apart."""


@dataclass(frozen=True)
class Bound:
    """What is worse than this quality is known to be dominated, and by which trial.

    pictures: the rival's BD-rates by picture; None where a quality is what it is.
    """

    quality: float
    trial: int
    pictures: list[float | None] | None = None

    def excludes(self, quality: float, pictures: list[float | None] | None) -> bool:
        """Whether a quality is worse beyond chance; of one that is not known by picture nothing is known."""
        if quality <= self.quality or self.pictures is None:
            return quality > self.quality
        found = difference(self.pictures, pictures or [])
        return found is not None and found[0] > found[1]

    @property
    def said(self) -> str:
        """Why nothing is read."""
        return (
            f"trial {self.trial} has less of everything, by the energy model of the readings so far"
        )


def bound_of(study: Study, arch: Arch) -> Bound | None:
    """What of an arch's quality need not be read; None where everything may be on the front.

    All archs of a grid are read: who lists them wants their figures.
    """
    objectives = study.settings.objectives
    qualities, measured = of_kind(objectives, "quality"), of_kind(objectives, *MEASURED)
    energies = of_kind(objectives, "energy")
    if study.grid is not None or len(qualities) != 1 or not energies or measured != energies:
        return None
    least_mj = {name: _least_mj(study, arch, name) for name in energies}
    place = objectives.index(qualities[0])
    cheaper = list(_cheaper(study, arch, least_mj))
    for rival in sorted(cheaper, key=lambda trial: trial.values[place]):
        pictures = pictures_of(study, rival, qualities[0])
        if pictures is None or len(pictures) - pictures.count(None) > 1:
            return Bound(rival.values[place], rival.number, pictures)
    return None


def pictures_of(study: Study, trial: FrozenTrial, quality: str) -> list[float | None] | None:
    """A trial's BD-rates by picture; None where its quality is what it is."""
    return by_picture(study.anchor, record(trial).rd, quality)


def _least_mj(study: Study, arch: Arch, name: str) -> float | None:
    """What the arch draws at the least, as far as the readings so far tell; None where they do not."""
    own = [record(t) for t in study.trials]
    known = {one.arch: mj for one in own if (mj := one.measured(name)) is not None}
    guess = EnergyGuess.of(known, TABLE[name].part)
    if guess is None:
        return None
    mj = guess.model.predict_mj(work(arch, guess.part))
    return exp(log(mj) - DEVIATIONS * guess.sd) if mj > 0 else None


def _cheaper(study: Study, arch: Arch, least_mj: dict[str, float | None]) -> Iterator[FrozenTrial]:
    """Trials that were read and cost less beyond doubt."""
    names, levels = of_kind(study.settings.objectives, "counted"), study.levels
    own = {name: counted(name, arch_cost(arch, levels)) for name in names}
    for trial in study.trials:
        if trial.state != TrialState.COMPLETE or record(trial).same_as is not None:
            continue
        cost = arch_cost(record(trial).arch, levels)
        if all(counted(name, cost) <= own[name] for name in names) and all(
            _draws_less(trial, name, mj) for name, mj in least_mj.items()
        ):
            yield trial


def _draws_less(trial: FrozenTrial, name: str, least_mj: float | None) -> bool:
    reading = record(trial).reading(name)
    if reading is None or reading.value is None or least_mj is None:
        return False
    return reading.value + DEVIATIONS * (reading.uncertainty or 0.0) < least_mj


def is_unread(trial: FrozenTrial) -> bool:
    """Whether a trial was trained, and its energy was not read since it is dominated."""
    return record(trial).reason == Reason.DOMINATED and record(trial).same_as is None


def unread(study: Study) -> list[FrozenTrial]:
    """Those whose energy was not read and is not going to be."""
    trials = study.trials
    retried = {record(t).retry_of for t in trials}
    return [t for t in trials if is_unread(t) and t.number not in retried]


def line_up_undominated(study: Study) -> int:
    """Line up again what was not read and is not known to be dominated any more: it is read without training."""
    again = {t.number for t in unread(study) if not _still_dominated(study, t)}
    with study.locks.exclusive():
        left = [t for t in unread(study) if t.number in again]  # another driver may be here too
        study.line_up_again(left)
    return len(left)


def _still_dominated(study: Study, trial: FrozenTrial) -> bool:
    bound = bound_of(study, record(trial).arch)
    return bound is not None and all(
        bound.excludes(value, pictures_of(study, trial, name))
        for name, value in record(trial).quality.items()
    )


def drop_checkpoints(study: Study) -> None:
    """At a search's end: what stays unread is trained no further."""
    for trial in unread(study):
        (study.student_folder(trial) / CHECKPOINT).unlink(missing_ok=True)


def absences(study: Study) -> list[str]:
    """How many trials have no energy, in a sentence."""
    n = len(unread(study))
    names = " and ".join(of_kind(study.settings.objectives, "energy"))
    trials = "trial" if n == 1 else "trials"
    return [f"{names} of {n} {trials} absent: dominated, and so not read"] if n else []
