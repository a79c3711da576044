"""Whether a search's readings can be had at all: where the first three fail, the others would as well."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from nas_kd.errors import NasKdError
from nas_kd.objectives import of_kind
from nas_kd.reasons import UNREAD, Reason
from nas_kd.study.record import Outcome, TrialRecord, record

ENOUGH = 3


def was_read(trial: FrozenTrial) -> bool:
    """Whether a trial has a reading that was measured."""
    return has_reading(record(trial))


def has_reading(trial: TrialRecord) -> bool:
    """Whether it has a reading that was measured."""
    return any(one.state == "measured" for one in trial.readings.values())


class FirstReadings:
    """Counts readings that fail before the first that does not.

    Args:
        known: whether the study has one already; later failures lose a trial's values and no more.
    """

    def __init__(self, known: bool):
        self.known = known
        self.reasons: list[str] = []

    @property
    def failed(self) -> bool:
        """Whether the search is to end."""
        return len(self.reasons) >= ENOUGH

    def hear(self, outcome: Outcome) -> None:
        """What came of a trial."""
        self.known |= has_reading(outcome.record)
        if not self.known and Reason.of(outcome.reason) in UNREAD:
            self.reasons.append(outcome.reason or "")

    def require(self, objectives: tuple[str, ...]) -> None:
        """Raise NasKdError with the way out where they failed."""
        if not self.failed:
            return
        others = of_kind(objectives, "quality", "counted") or ["bd_rate", "flops"]
        raise NasKdError(
            f"the first {ENOUGH} readings failed ({self.reasons[-1]}): see that nothing else uses the device "
            "(`nas-kd doctor` looks at its meter) and run the same command again, which measures what is "
            f"trained; or search under another --name with --objectives {','.join(others)}"
        )
