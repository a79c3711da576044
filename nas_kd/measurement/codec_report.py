"""What a codec costs on this machine: MACs, memory, latency, energy, each beside the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_kd.codec.checkpoint import load_student
from nas_kd.codec.cost import DECODER, ENCODER, count
from nas_kd.codec.networks import FRAME, MEGAPIXELS, PARTS, Pass, noise_frame, passes
from nas_kd.codec.student import Student
from nas_kd.data.images import open_images
from nas_kd.device import best_device, numerics, synchroniser
from nas_kd.measurement.codec_energy import (
    EXCLUDED,
    as_frame,
    energy_of,
    energy_ratio,
    per_megapixel,
)
from nas_kd.measurement.device_lock import in_use
from nas_kd.measurement.energy import FULL, QUICK, Mode
from nas_kd.measurement.entropy_coding_cost import coding_cost, no_coding
from nas_kd.measurement.graph_replay import graph_replay
from nas_kd.measurement.latency import QUICK_RUNS, RUNS, latency_ratio, measure_latency
from nas_kd.measurement.meter import Meter
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.profiling import LAUNCH_BOUND, gpu_busy_share, memory_bytes
from nas_kd.measurement.reading import Reading
from nas_kd.places import TEACHERS

TEACHER = "mini"


@dataclass(frozen=True)
class Subject:
    """A codec to be measured.

    Args:
        name: how it was asked for.
        arch: what it is, for people.
        arch_key: what it is, to compare by.
        model: in evaluation mode, on the CPU.
        passes: what its sides run on frames.
        uncoded: why its entropy coding is not timed; None where it is.
        trained: whether its weights are.
        excluded: what its passes leave out.
    """

    name: str
    arch: str
    arch_key: str
    model: Any
    passes: Callable[[list[Tensor]], dict[str, Pass]]
    uncoded: str | None = None
    trained: bool = True
    excluded: str = EXCLUDED


def measured(subject: Subject, quick: bool = False) -> dict[str, Any]:
    """Everything that ``nas-kd measure`` reports of a codec on this machine, as JSON can hold it."""
    model, device = subject.model, best_device()
    cost = count(model)
    teacher = load_student(TEACHERS / TEACHER).to(device)
    frames = [noise_frame(device)]
    model.to(device)
    own, others = subject.passes(frames), passes(teacher, frames)
    with in_use(device).exclusive():
        latency = _latency(own, others, device, quick)
        energy = _energy(own, others, device, QUICK if quick else FULL)
        memory = memory_bytes(model, own)
    uncoded = subject.uncoded
    coding = _coding(model.cpu(), quick) if uncoded is None else no_coding(uncoded)
    return {
        "codec": subject.name,
        "arch": subject.arch,
        "arch_key": subject.arch_key,
        "trained": subject.trained,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "numerics": numerics(device),
        "frame": list(FRAME),
        "teacher": TEACHER,
        "excluded": subject.excluded,
        "cost": cost.to_json(),
        "memory_bytes": memory,
        "latency": latency,
        "entropy_coding": {side: found["ms"] for side, found in coding.items()},
        "entropy_coding_energy": {side: found["mj"] for side, found in coding.items()},
        "energy": energy,
    }


# ---------------------------------------------------------------- latency


def _latency(
    own: dict[str, Pass], others: dict[str, Pass], device: str, quick: bool
) -> dict[str, Any]:
    works = {part: own[part] for part in PARTS} | {f"teacher {p}": others[p] for p in PARTS}
    runs = (QUICK_RUNS if quick else RUNS)[device.partition(":")[0]]
    readings = measure_latency(works, synchronise=synchroniser(device), runs=runs)
    return {
        part: {
            "student": readings[part].to_json(),
            "teacher": readings[f"teacher {part}"].to_json(),
            "ratio": latency_ratio(readings[part], readings[f"teacher {part}"]).to_json(),
        }
        for part in PARTS
    }


def _coding(student: Student, quick: bool) -> dict[str, Any]:
    """Of a photograph, on the CPU."""
    x = as_frame(open_images("builtin", "eval").images[-1])
    return coding_cost(student, x, (QUICK_RUNS if quick else RUNS)["cpu"])


# ---------------------------------------------------------------- energy


def _energy(
    own: dict[str, Pass], others: dict[str, Pass], device: str, mode: Mode
) -> dict[str, Any]:
    meter = find_meter(device)
    if isinstance(meter, Reading):
        return {part: {"student": meter.to_json()} for part in PARTS}
    found: dict[str, Any] = {}
    for part in PARTS:
        found[part] = _beside_teacher(meter, own[part], others[part], device, mode)
        if device.startswith("cuda"):
            found[part] |= _launches(own[part])
    if device.startswith("cuda"):
        found["both_graph"] = _graphed(meter, own["both"], others["both"], device, mode)
    return found


def _beside_teacher(
    meter: Meter, own: Pass, other: Pass, device: str, mode: Mode
) -> dict[str, Any]:
    student = energy_of(meter, own, device, mode)
    teacher = energy_of(meter, other, device, mode)
    return {
        "student": student.to_json(),
        "per_megapixel": per_megapixel(student).to_json(),
        "teacher": teacher.to_json(),
        "ratio": energy_ratio(student, teacher).to_json(),
    }


def _launches(work: Pass) -> dict[str, Any]:
    share = gpu_busy_share(work)
    return {
        "gpu_busy_share": share,
        "launch_bound": None if share is None else share < LAUNCH_BOUND,
    }


def _graphed(meter: Meter, own: Pass, other: Pass, device: str, mode: Mode) -> dict[str, Any]:
    """The networks without their launches, under a name of its own."""
    try:
        return _beside_teacher(meter, graph_replay(own), graph_replay(other), device, mode)
    except RuntimeError as error:
        reason = f"cannot be captured as a CUDA graph ({str(error).splitlines()[0]})"
        return {"student": Reading.unavailable(reason).to_json()}


# ---------------------------------------------------------------- for people


def in_lines(figures: dict[str, Any]) -> list[str]:
    """The report as text, one finding a line."""
    cost, memory = figures["cost"], figures["memory_bytes"]
    parts = ", ".join(f"{name} {macs / 1e6:.1f}" for name, macs in cost["parts"].items() if macs)
    peaks = ", ".join(f"{part} {memory[part] / 2**20:.1f}" for part in PARTS)
    lines = [
        f"codec:       {figures['codec']} ({'trained' if figures['trained'] else 'untrained'})",
        f"arch:        {figures['arch']}",
        f"device:      {figures['device']}, torch {figures['torch']}, {figures['numerics']}",
        f"frame:       {FRAME[3]}x{FRAME[2]}, {MEGAPIXELS:.3f} Mpx; not in it: {figures['excluded']}",
        f"parameters:  {cost['parameters']:,}",
        f"MACs:        {cost['gmac']:.3f} G, {cost['kmac_per_px']:.2f} k/px; "
        f"encoder {cost['encoder_macs'] / 1e9:.3f} G, decoder {cost['decoder_macs'] / 1e9:.3f} G",
        f"by part:     {parts} (10^6 MACs)",
        f"             {_shared(cost)}",
        f"memory:      weights {memory['weights'] / 2**20:.1f} MiB; tensors at once: {peaks} MiB",
    ]
    lines += [_latency_line(part, figures["latency"][part]) for part in PARTS]
    coding = {part: _figure(reading) for part, reading in figures["entropy_coding"].items()}
    lines += [f"latency:     entropy coding, {parts}: {said}" for parts, said in _together(coding)]
    coding = {part: _figure(r) for part, r in figures["entropy_coding_energy"].items()}
    lines += [f"energy:      entropy coding, {parts}: {said}" for parts, said in _together(coding)]
    absent = {part: found for part, found in figures["energy"].items() if _is_absent(found)}
    said = {part: _figure(found["student"]) for part, found in absent.items()}
    lines += [f"energy:      {parts}: {words}" for parts, words in _together(said)]
    for part, found in figures["energy"].items():
        lines += [] if _is_absent(found) else _energy_lines(part, found)
    return lines


def _shared(cost: dict[str, Any]) -> str:
    """Why encoder and decoder do not add up to the whole."""
    macs = {name: n for name, n in cost["parts"].items() if n}
    twice = [name for name in macs if name in ENCODER and name in DECODER]
    alone = [name for name in macs if name not in ENCODER and name not in DECODER]
    said = f"encoder and decoder both run {_listed(twice, macs)}, the whole (and `both` below) once"
    return said + (f"; it alone runs {_listed(alone, macs)}, for likelihoods" if alone else "")


def _listed(names: list[str], macs: dict[str, int]) -> str:
    return f"{', '.join(names)} ({sum(macs[name] for name in names) / 1e6:.1f})"


def _together(said: dict[str, str]) -> list[tuple[str, str]]:
    """Parts of which the same is said, in one: a reason is not repeated."""
    parts: dict[str, list[str]] = {}
    for part, words in said.items():
        parts.setdefault(words, []).append(part)
    return [(", ".join(names), words) for words, names in parts.items()]


def _is_absent(found: dict[str, Any]) -> bool:
    return found["student"]["value"] is None


def _latency_line(part: str, found: dict[str, Any]) -> str:
    student = found["student"]
    raw = student.get("details") or student.get("raw") or {}
    spread = f" (p10 {raw['p10_ms']:.2f}, p90 {raw['p90_ms']:.2f}, {raw['runs']} runs)"
    return f"latency:     {part}: {_figure(student)}{spread}; over {TEACHER}: {_figure(found['ratio'])}"


def _energy_lines(part: str, found: dict[str, Any]) -> list[str]:
    student = found["student"]
    details = student["details"]
    lines = [
        f"energy:      {part}: {_figure(student)} per frame, {_figure(found['per_megapixel'])}; "
        f"over {TEACHER}: {_figure(found['ratio'])}",
        f"             {details['power_w']:.1f} W, {_or_unknown(details['clock_mhz'], 'MHz')}, "
        f"{_or_unknown(details['temperature_c'], 'degrees C')}"
        f"{', power cap reached' if details['power_capped'] else ''}",
    ]
    if found.get("gpu_busy_share") is not None:
        bound = ", launch-bound: look at both_graph" if found["launch_bound"] else ""
        lines.append(f"             GPU busy {found['gpu_busy_share']:.0%} of the time{bound}")
    return lines


def _figure(reading: dict[str, Any]) -> str:
    """A figure with its uncertainty, or why there is none."""
    if reading["value"] is None:
        words = {"unavailable": "absent", "rejected": "rejected"}[reading["state"]]
        return f"{words}: {reading['reason']}"
    return f"{reading['value']:.4g} +- {reading['uncertainty']:.2g} {reading['unit']}"


def _or_unknown(value: float | None, unit: str) -> str:
    return f"{unit} unknown" if value is None else f"{value:.0f} {unit}"
