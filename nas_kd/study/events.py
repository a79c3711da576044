"""What a search says while it runs, with all that a watcher needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

if TYPE_CHECKING:
    from nas_kd.study.study import Study


@dataclass(frozen=True)
class TrialEvent:
    """A trial was started or has ended: the study that it belongs to, as its driver holds it, and its number."""

    study: Study
    number: int

    @property
    def trial(self) -> FrozenTrial:
        """As it is stored now."""
        return self.study.trials[self.number]

    def __str__(self) -> str:
        return str(self.number)


Listen = Callable[[str, str | int | TrialEvent], None]
"""Hears (kind, detail): "preparing" where it is, "reaped" how many trials, "started" and "trial" a TrialEvent."""
