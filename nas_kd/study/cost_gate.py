"""The cost gate: what a student costs against its limits, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nas_kd.codec.macs import arch_cost
from nas_kd.codec.networks import noise_frame, passes
from nas_kd.codec.student import Student
from nas_kd.device import synchroniser
from nas_kd.measurement.codec_energy import frame_energy
from nas_kd.measurement.device_lock import in_use
from nas_kd.measurement.latency import RUNS, measure_latency
from nas_kd.measurement.reading import Reading
from nas_kd.reasons import Reason
from nas_kd.study.limits import MEASURED, Limits

Measure = Callable[[Student, str, str], Reading]
"""Of a student, a device and a side (both, encoder, decoder): a reading."""


def energy_mj(student: Student, device: str, side: str) -> Reading:
    """Energy of one side's pass, from the cache where it is known."""
    return frame_energy(student, device, part=side)


def latency_ms(student: Student, device: str, side: str) -> Reading:
    """Time of one side's pass; waits until it has the device alone, and is taken once more where rejected."""
    work = passes(student.eval().to(device), [noise_frame(device)])[side]
    runs = RUNS[device.partition(":")[0]]

    def once() -> Reading:
        found = measure_latency({side: work}, synchronise=synchroniser(device), runs=runs)
        return found[side]

    with in_use(device).exclusive():
        first = once()
        return once() if first.state == "rejected" else first


METERS: dict[str, Measure] = {"max_mj": energy_mj, "max_latency_ms": latency_ms}
OF_KIND: dict[str, Measure] = {"energy": energy_mj, "latency": latency_ms}
"""What measures an objective of a kind."""


@dataclass(frozen=True)
class Gated:
    """Cost over limit by ``name.side``; what was measured for it; why a reading is missing, if one is."""

    ratios: dict[str, float]
    readings: dict[str, Any]
    missing: str | None = None


def gate(
    student: Student, limits: Limits, device: str, meters: dict[str, Measure] | None = None
) -> Gated:
    """Compare a student's costs with the limits; nothing is measured where a free limit is broken.

    Args:
        student: untrained: its costs do not depend on the weights.
        limits: the study's.
        device: where the student will be trained.
        meters: by limit, for tests.
    """
    ratios = limits.free_ratios(arch_cost(student.arch, student.levels))
    readings: dict[str, Any] = {}
    if any(ratio > 1 for ratio in ratios.values()):
        return Gated(ratios, readings)
    for name in MEASURED:
        for side, limit in limits.of(name).items():
            reading = (meters or METERS)[name](student, device, side)
            readings[f"{name}.{side}"] = reading.to_json()
            if reading.value_or_none is None:
                kind = Reason.ENERGY if name == "max_mj" else Reason.LATENCY
                return Gated(ratios, readings, kind.because(reading.reason))
            ratios[f"{name}.{side}"] = reading.value_or_none / limit
    return Gated(ratios, readings)
