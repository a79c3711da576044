"""What a measurement says: a figure with its uncertainty, or none with the reason.

measured     value, uncertainty, unit, source, details
unavailable  reason          nothing here can measure it
rejected     reason, raw     it was measured, and the figures cannot be trusted
"""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from nas_kd.errors import UsageError

FAKE = "fake"
_FIELDS = {
    "measured": ("value", "uncertainty", "unit", "source", "details"),
    "unavailable": ("value", "reason"),
    "rejected": ("value", "reason", "raw"),
}


@dataclass(frozen=True)
class Reading:
    """One reading; build it with ``measured``, ``unavailable`` or ``rejected``.

    ``details`` and ``raw`` hold plain JSON and are copied when the reading is made.
    """

    state: Literal["measured", "unavailable", "rejected"]
    value: float | None = None
    uncertainty: float | None = None
    unit: str | None = None
    source: str | None = None
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def measured(
        cls,
        value: float,
        uncertainty: float,
        unit: str,
        source: str,
        details: dict[str, Any] | None = None,
    ) -> "Reading":
        """A figure with its standard uncertainty, both in ``unit``.

        Raises:
            ValueError: a figure is not finite, the uncertainty is negative, or ``unit`` or
                ``source`` is empty.
        """
        if not (math.isfinite(value) and math.isfinite(uncertainty) and uncertainty >= 0):
            raise ValueError(
                f"measured {value} +- {uncertainty}: both must be finite and the uncertainty "
                "not negative; use Reading.rejected for figures that are not"
            )
        if not unit or not source:
            raise ValueError(f"measured {value}: unit {unit!r} and source {source!r} must be named")
        plain = _plain_json(details or {})
        return cls("measured", float(value), float(uncertainty), unit, source, details=plain)

    @classmethod
    def unavailable(cls, reason: str) -> "Reading":
        """No figure, because nothing here can measure it."""
        return cls("unavailable", reason=_one_line(reason))

    @classmethod
    def rejected(cls, reason: str, raw: dict[str, Any] | None = None) -> "Reading":
        """No figure, because what was measured (``raw``) cannot be trusted."""
        return cls("rejected", reason=_one_line(reason), raw=_plain_json(raw or {}))

    @property
    def value_or_none(self) -> float | None:
        """The measured value, or None: never a number that was not measured."""
        return self.value if self.state == "measured" else None

    def to_json(self) -> dict[str, Any]:
        """The reading as plain JSON; a missing one is a null value with its reason."""
        everything = asdict(self)
        return {"state": self.state} | {name: everything[name] for name in _FIELDS[self.state]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Reading":
        """The inverse of ``to_json``.

        Raises:
            UsageError: the record is not one that ``to_json`` writes.
        """
        try:
            names = _FIELDS[record["state"]]
            fields = {name: record[name] for name in names if name != "value"}
            if record["state"] == "measured":
                return cls.measured(record["value"], **fields)
            if record["value"] is not None:
                raise ValueError("a missing reading has a null value")
            return getattr(cls, record["state"])(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"reading {record!r} is malformed ({type(error).__name__}: {error}): "
                f"expected a state of {', '.join(_FIELDS)} with its own fields; measure it again"
            ) from error


def require_real(reading: Reading) -> None:
    """Refuse a figure that came from a fake meter; every writer of results calls it.

    Raises:
        ValueError: the reading is measured and its source is ``fake``.
    """
    if reading.state == "measured" and reading.source == FAKE:
        raise ValueError(
            f"{reading.value} {reading.unit} comes from source {FAKE!r}: "
            "results hold real measurements only; measure it with a real meter"
        )


def _plain_json(figures: dict[str, Any]) -> dict[str, Any]:
    """A deep copy that is certain to survive storage; NaN and foreign types raise here."""
    return json.loads(json.dumps(figures, allow_nan=False))


def _one_line(reason: str) -> str:
    line = " ".join(reason.split())
    if not line:
        raise ValueError("a missing reading needs a reason; the one given is empty")
    return line
