"""Why a trial has no values: the reasons that are stored with trials, and what follows from each."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """The text that is stored, or its beginning where details follow (`because`)."""

    CRASH = "crash"
    ENERGY = "energy"
    LATENCY = "latency"
    DOMINATED = "dominated"
    WORKER_DIED = "worker_died"
    OUT_OF_MEMORY = "out_of_memory"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped at step"
    NAN = "nan"
    MISMATCH = "mismatch"
    OVER_MAX_GMAC = "over_max_gmac"
    OVER_MAX_PARAMS = "over_max_params"
    OVER_MAX_MJ = "over_max_mj"
    OVER_MAX_LATENCY_MS = "over_max_latency_ms"
    TOO_FEW_POINTS = "too_few_points"
    NOT_FINITE = "not_finite"
    NON_MONOTONE = "non_monotone"
    NO_OVERLAP = "no_overlap"
    PARTIAL_OVERLAP = "partial_overlap"
    INTERPOLATORS_DISAGREE = "interpolators_disagree"

    def because(self, details: object) -> str:
        """As it is stored with what is known: ``energy: no meter``, ``stopped at step 200``."""
        return f"{self} {details}" if self is Reason.STOPPED else f"{self}: {details}"

    @classmethod
    def of(cls, stored: str | None) -> Reason | None:
        """The reason of a stored text; None where there is none, or one that is not of this version."""
        said = stored or ""
        return next((r for r in cls if said == r or said.startswith((f"{r}: ", f"{r} "))), None)

    @classmethod
    def over(cls, limit: str) -> Reason:
        """That of an arch over a limit, named as the setting is."""
        return cls(f"over_{limit}")


FAILURES = (Reason.CRASH, Reason.ENERGY, Reason.LATENCY)
"""They say nothing about the arch: such a trial is FAIL."""
UNREAD = (Reason.ENERGY, Reason.LATENCY)
"""Of trials that were trained and could not be measured: they are FAIL and in the budget."""
DEATHS = (Reason.WORKER_DIED, Reason.OUT_OF_MEMORY)
"""May be the arch's fault: such a trial is tried again, a few times in all. INTERRUPTED, which its surroundings
did (disk full, driver gone), is always tried again."""
REFUSED = (Reason.OVER_MAX_GMAC, Reason.OVER_MAX_PARAMS)
"""Over a limit that is known in advance: they cost nothing, and the budget leaves them out."""
OVER_LIMIT = (*REFUSED, Reason.OVER_MAX_MJ, Reason.OVER_MAX_LATENCY_MS)
