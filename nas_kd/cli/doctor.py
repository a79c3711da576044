"""What this machine has, and what follows for a search."""

from __future__ import annotations

import importlib.metadata
import shutil

import psutil
import torch

from nas_kd.cores import cores
from nas_kd.device import best_device
from nas_kd.measurement.codec_energy import meter_in_words
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.reading import Reading
from nas_kd.places import TEACHERS
from nas_kd.teachers.served import ALIASES, ZOO_NAMES, file_says, hub_folder


def findings() -> list[tuple[str, str]]:
    """Name and finding, line by line."""
    device = best_device()
    has_meter = not isinstance(find_meter(device), Reading)
    weights = hub_folder()
    there = {file_says(file)[0] for file in weights.glob("*.pth.tar")}
    cached = [name for name in ZOO_NAMES if name in there]
    objectives = "" if has_meter else " --objectives bd_rate,flops"
    return [
        ("device", _device(device)),
        ("memory", f"{psutil.virtual_memory().available / 2**30:.1f} GiB free"),
        ("disk", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free here"),
        ("energy", meter_in_words(device)),
        ("torch", torch.__version__),
        ("ray", importlib.metadata.version("ray")),
        ("built-in teachers", ", ".join(sorted(p.name for p in TEACHERS.iterdir())) or "none"),
        ("zoo weights", ", ".join(cached) or f"none in {weights} (for {', '.join(ALIASES)})"),
        ("so search with", f"nas-kd search --space demo --teacher mini{objectives}"),
    ]


def _device(device: str) -> str:
    usable = f"{cores()} cores"
    return f"{torch.cuda.get_device_name()}, {usable}" if device == "cuda" else f"CPU, {usable}"
