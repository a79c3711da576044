"""Limits on what an arch may cost: on the encoder, the decoder or both, known in advance or measured.

A limit is a number, for the whole codec, or names sides: ``2.5``, ``"decoder=0.4"``, ``"encoder=2,decoder=0.4"``.
"""

from __future__ import annotations

from dataclasses import dataclass

from nas_kd.codec.arch import Arch
from nas_kd.codec.macs import ArchCost, arch_cost
from nas_kd.errors import StudyError
from nas_kd.reasons import Reason

SIDES = ("both", "encoder", "decoder")
FREE = ("max_gmac", "max_params")
"""Limits on what is known of any arch; the others are measured, on the untrained student."""
MEASURED = ("max_mj", "max_latency_ms")

Limit = float | str | None


def parsed(name: str, value: Limit) -> dict[str, float]:
    """The limit of each side it names; raises StudyError naming the value and the rule."""
    if value is None:
        return {}
    found: dict[str, float] = {}
    for part in str(value).split(","):
        side, equals, number = part.rpartition("=")
        side = side.strip() if equals else "both"
        try:
            found[side] = float(number)
        except ValueError:
            found[side] = -1.0
        if side not in SIDES or not 0 < found[side] < float("inf"):
            raise StudyError(
                f"{name} = {value!r}: must be a number above 0, or sides with one each, such as "
                "'encoder=2,decoder=0.4'"
            )
    return found


def canonical(name: str, value: Limit) -> Limit:
    """The limit in one way of writing: a number where it is on both sides together."""
    found = parsed(name, value)
    if set(found) <= {"both"}:
        return found.get("both")
    return ",".join(f"{side}={found[side]:g}" for side in SIDES if side in found)


@dataclass(frozen=True)
class Limits:
    """What no trained arch may exceed; None: no limit.

    max_gmac: 10^9 multiply-accumulates on 512x768. max_params: parameters. max_mj, max_latency_ms: energy and
    time of a pass on such a picture, entropy coding excluded.
    """

    max_gmac: Limit = None
    max_params: Limit = None
    max_mj: Limit = None
    max_latency_ms: Limit = None

    def of(self, name: str) -> dict[str, float]:
        """The limits of one name by side."""
        return parsed(name, getattr(self, name))

    @property
    def in_words(self) -> str:
        """The limits that are known in advance, as they were given."""
        return ", ".join(f"{n} = {getattr(self, n)}" for n in FREE if getattr(self, n) is not None)

    def free_ratios(self, cost: ArchCost) -> dict[str, float]:
        """Cost over limit by ``name.side``, of the limits that need no measuring."""
        found: dict[str, float] = {}
        for side in SIDES:
            counted = cost.total if side == "both" else getattr(cost, side)
            amounts = {"max_gmac": counted.macs / 1e9, "max_params": float(counted.parameters)}
            for name, amount in amounts.items():
                if side in self.of(name):
                    found[f"{name}.{side}"] = amount / self.of(name)[side]
        return found

    def over(self, arch: Arch, levels: int = 6) -> float:
        """By what share an arch exceeds the worst of the limits known in advance; 0 where none."""
        if self.max_gmac is None and self.max_params is None:
            return 0.0
        return excess(self.free_ratios(arch_cost(arch, levels)))


def excess(ratios: dict[str, float]) -> float:
    """By what share the worst ratio exceeds 1; 0 where none does."""
    return max((ratio - 1 for ratio in ratios.values() if ratio > 1), default=0.0)


def reason_of(ratios: dict[str, float]) -> Reason | None:
    """The worst broken limit as a trial's reason, ``over_max_gmac``; None where none is."""
    worst = max(ratios, key=lambda name: ratios[name], default=None)
    if worst is None or ratios[worst] <= 1:
        return None
    return Reason.over(worst.partition(".")[0])
