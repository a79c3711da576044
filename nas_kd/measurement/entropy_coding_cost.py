"""What entropy coding costs: time and, where the CPU or the board has a counter, energy; apart from the networks.

The coder runs on the CPU in exact arithmetic, its hyper-decoder included, and depends on the weights: a trained
student on a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nas_kd.codec.student import Student
from nas_kd.measurement.codec_energy import Bench
from nas_kd.measurement.device_lock import in_use
from nas_kd.measurement.energy import QUICK
from nas_kd.measurement.latency import measure_latency
from nas_kd.measurement.meter import Meter
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.reading import Reading

LEVEL = 1.0
SIDES = ("encoder", "decoder")


def coding_passes(student: Student, x: Tensor) -> dict[str, Callable[[], object]]:
    """Entropy coding of a picture [1, 3, H, W] and decoding of what came of it, without analysis and synthesis.

    Args:
        student: on the CPU, with its coding tables.
        x: sides are multiples of 64.
    """
    coder = student._coder()
    with torch.no_grad():
        y, z = student.latents(x)
        strings, shape = coder.encode(y, z, LEVEL).strings, (z.shape[-2], z.shape[-1])
    return {
        "encoder": torch.no_grad()(lambda: coder.encode(y, z, LEVEL)),
        "decoder": torch.no_grad()(lambda: coder.decode(list(strings), shape, LEVEL)),
    }


def coding_cost(
    student: Student,
    x: Tensor,
    runs: int,
    meter: Meter | Reading | None = None,
    read: Callable[[Meter, Callable[[], None]], Reading] | None = None,
) -> dict[str, dict[str, Any]]:
    """Per side ``ms`` and ``mj`` as readings; this process has the processors alone meanwhile.

    Args:
        student: as in ``coding_passes``.
        x: a photograph: noise has more to code.
        runs: of each side in each of three rounds.
        meter: of the CPU or the board, or why there is none; found unless given.
        read: takes a reading; as of any pass unless given.
    """
    meter = find_meter("cpu") if meter is None else meter
    works = coding_passes(student, x)
    with in_use("cpu").exclusive():
        times = measure_latency(works, synchronise=lambda: None, runs=runs)
        energies = _energies(meter, works, read)
    return {side: {"ms": times[side].to_json(), "mj": energies[side].to_json()} for side in SIDES}


def _energies(
    meter: Meter | Reading,
    works: dict[str, Callable[[], object]],
    read: Callable[[Meter, Callable[[], None]], Reading] | None,
) -> dict[str, Reading]:
    if isinstance(meter, Reading):
        return dict.fromkeys(SIDES, meter)
    bench = Bench(meter, "cpu")

    def energy(work: Callable[[], object]) -> Reading:
        def once() -> None:
            work()

        return read(meter, once) if read is not None else bench.read(once, QUICK)

    return {side: energy(works[side]) for side in SIDES}


def no_coding(reason: str) -> dict[str, dict[str, Any]]:
    """The same, absent."""
    absent = Reading.unavailable(reason).to_json()
    return {side: {"ms": absent, "mj": absent} for side in SIDES}
