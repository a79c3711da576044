"""What coding one picture takes on this machine's processor: time and memory of encoder and decoder, whole files."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nas_kd.codec.bitstream import decode, encode
from nas_kd.codec.student import Student
from nas_kd.data.image_file import Image8
from nas_kd.data.images import ImageSet
from nas_kd.evaluation.classical import CODECS, from_file, to_file
from nas_kd.measurement.latency import Work, measure_latency
from nas_kd.measurement.reading import Reading

SIDES = ("encode", "decode")
PEAK_RUNS = 5
ROUND_S, MOST_RUNS = 0.5, 20
"""A round's runs take about so long, and are no more: one of a student, which takes seconds, many of JPEG."""

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What makes Linux begin the peak anew (proc(5), clear_refs)."""


class FileCodec(NamedTuple):
    """A codec at one setting: from a picture to a file and back."""

    setting: str
    encode: Callable[[Image8], bytes]
    decode: Callable[[bytes], Image8]


def student_codec(student: Student) -> FileCodec:
    """A student at its middle level."""
    level = (student.levels + 1) // 2
    return FileCodec(
        f"level {level}", lambda image: encode(student, image, level), lambda d: decode(student, d)
    )


def classical_codec(name: str) -> FileCodec:
    """One of Pillow's codecs at the middle of its settings."""
    kind, _, settings = CODECS[name]
    options = settings[len(settings) // 2]
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    return FileCodec(said, lambda image: to_file(image, kind, options), from_file)


def coding_cost(codec: FileCodec, images: ImageSet) -> dict[str, Any]:
    """Milliseconds and MB of both sides on the largest picture; readings, absent or rejected with their reason."""
    place = max(range(len(images)), key=lambda i: images.sizes[i][0] * images.sizes[i][1])
    image = images.images[place]
    data = codec.encode(image)
    works: dict[str, Work] = {
        "encode": lambda: codec.encode(image),
        "decode": lambda: codec.decode(data),
    }
    times = measure_latency(works, synchronise=lambda: None, runs=_runs(works.values()))
    return {
        "picture": images.names[place],
        "height": image.shape[0],
        "width": image.shape[1],
        "setting": codec.setting,
        "threads": torch.get_num_threads(),
        **{f"{side}_ms": times[side].to_json() for side in SIDES},
        **{f"{side}_peak_mb": peak_mb(works[side]).to_json() for side in SIDES},
    }


def _runs(works: Iterable[Work]) -> int:
    """How often each is run in a round, by the slowest."""
    slowest_s = max(_seconds(work) for work in works)
    return max(1, min(MOST_RUNS, int(ROUND_S / slowest_s)))


def _seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_mb(work: Work) -> Reading:
    """Most memory that the process held during the work, over what it held before, in 10^6 bytes.

    The median of some runs: what something else in the process frees during one hides as much of its peak.
    """
    try:
        runs_mb = [_grown_mb(work) for _ in range(PEAK_RUNS)]
    except (OSError, KeyError) as error:
        return Reading.unavailable(f"{CLEAR} cannot be used here ({type(error).__name__})")
    doubt_mb = statistics.stdev(runs_mb) / PEAK_RUNS**0.5
    return Reading.measured(
        statistics.median(runs_mb), doubt_mb, "MB", "VmHWM", {"runs_mb": runs_mb}
    )


def _grown_mb(work: Work) -> float:
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed goes back to the system first
    CLEAR.write_text(RESET_PEAK)
    before_mb = _memory("VmRSS")
    work()
    return _memory("VmHWM") - before_mb


def _memory(name: str) -> float:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return float(lines[name].split()[0]) * 1024 / 1e6


def in_words(found: dict[str, Any]) -> str:
    """The four figures for people."""
    parts = [f"{side} {_figure(found[f'{side}_ms'])}" for side in SIDES]
    parts += [f"{side} peak {_figure(found[f'{side}_peak_mb'])}" for side in SIDES]
    return f"{found['width']}x{found['height']}, {found['setting']}: {', '.join(parts)}"


def _figure(reading: dict[str, Any]) -> str:
    if reading["value"] is None:
        return f"{reading['state']} ({reading['reason']})"
    return f"{reading['value']:.3g} {reading['unit']}"
