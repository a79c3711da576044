"""How many trials share a GPU: measured, by training the largest arch of the space on more and more streams.

One small student leaves a large GPU idle. Twice as many trainings in threads of this process are tried until they do
not fit into its memory any more, or together are hardly faster than half as many, or the time for it is up. What was
found is kept for the next search of the same kind on such a GPU.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from nas_kd.codec.arch import Arch
from nas_kd.codec.search_space import SearchSpace
from nas_kd.codec.student import Student
from nas_kd.device import best_device
from nas_kd.distillation.training import CHECK_EVERY, CropPool, Run
from nas_kd.errors import UsageError
from nas_kd.measurement.reading_cache import read_record, write_record
from nas_kd.places import user_cache
from nas_kd.recipe import Recipe
from nas_kd.turns import side_by_side

WARM_STEPS = 5
SECONDS = 1.5
"""Of training that count, once all have taken their first steps."""
LIMIT_S = 20.0
"""For all of it: a search waits for this before its first trial."""
GAIN = 1.1
"""What twice the trials must give together to be worth it."""
SHARE_OF_FREE = 0.9
"""Of a device's memory that trials may take."""
CROPS = 64

Clock = Callable[[], float]


@dataclass(frozen=True)
class Placement:
    """Where trials run, and the tasks of a ranking or a polish, which have a process each.

    Args:
        workers: processes of trials.
        lanes: trials at once in each of them.
        gpus: the share of a GPU of each.
        tasks: tasks at once.
        gpus_of_task: the share of a GPU of each.
    """

    workers: int
    lanes: int
    gpus: float
    tasks: int
    gpus_of_task: float


@dataclass(frozen=True)
class Packed:
    """So many trials at once: their steps per second together, and the bytes of memory that all of them took."""

    trials: int
    steps_per_s: float
    taken_bytes: int


def best(
    measure: Callable[[int], Packed],
    free_bytes: int,
    most: int,
    clock: Clock = time.monotonic,
) -> tuple[Packed, list[Packed]]:
    """The packing to work with, and all that were measured in LIMIT_S.

    Args:
        measure: what comes of so many trials at once.
        free_bytes: of the device before any.
        most: trials that the machine has cores for.
        clock: seconds.
    """
    begun = last_s = clock()
    seen = [measure(1)]
    while 2 * seen[-1].trials <= most:
        last, now_s = seen[-1], clock()
        first_steps_s = max(now_s - last_s - SECONDS, 0.0)
        more = 2 if last.trials > 1 else 1  # times the trainings that had to take theirs
        next_s, last_s = more * first_steps_s + SECONDS, now_s
        if now_s + next_s > begun + LIMIT_S:
            break
        if 2 * last.taken_bytes > SHARE_OF_FREE * free_bytes:
            break
        seen.append(measure(2 * last.trials))
        if seen[-1].steps_per_s < GAIN * last.steps_per_s:
            break
    return max(seen, key=lambda packed: packed.steps_per_s), seen


def trials_per_gpu(
    space: SearchSpace, lmbdas: tuple[float, ...], recipe: Recipe, size: int, most: int
) -> dict[str, Any]:
    """How many trials of a space share the GPU here, as ``trials``, with what was measured, now or once before.

    Args:
        space: its largest arch is the one that is trained.
        lmbdas: of its students' levels.
        recipe: crops per step, and the optimiser.
        size: side of a crop in pixels.
        most: trials that the machine has cores for.

    Raises UsageError where there is no GPU.
    """
    device = best_device()
    if device == "cpu":
        raise UsageError(
            "--trials-per-gpu auto: PyTorch sees no GPU on this machine; leave it out to train on the CPU, or "
            "say a number for the machines of a cluster"
        )
    gpu, free = torch.cuda.get_device_name(), free_bytes(device)
    key = _key(gpu, space, lmbdas, recipe, size, most)
    if (known := kept(key, free)) is not None:
        return known
    arch = max(space.corners(True), key=lambda a: (a.M, a.hyper))
    together = Together(arch, lmbdas, recipe, size, device, free)
    chosen, seen = best(together.measure, free, most)
    del together
    torch.cuda.empty_cache()
    measured = [asdict(packed) for packed in seen]
    found = {"trials": chosen.trials, "free_bytes": free, "arch": str(arch), "measured": measured}
    keep(key, found)
    return found


def _key(
    gpu: str,
    space: SearchSpace,
    lmbdas: tuple[float, ...],
    recipe: Recipe,
    size: int,
    most: int,
) -> dict[str, Any]:
    """What a finding depends on."""
    asked = {"space": space.fingerprint, "levels": len(lmbdas), "batch": recipe.batch}
    asked["optimiser"] = recipe.optimiser
    return {"gpu": gpu, "torch": torch.__version__, "size": size, "most": most} | asked


def _file(key: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return user_cache() / "gpu_sharing" / f"{name}.json"


def keep(key: dict[str, Any], found: dict[str, Any]) -> None:
    """Keep a finding for later searches of this user, where it can be written."""
    write_record(_file(key), key, {"found": found})


def kept(key: dict[str, Any], free: int) -> dict[str, Any] | None:
    """What an earlier search found, unless others have taken the memory for it; None where there is nothing."""
    record = read_record(_file(key), key) or {}
    found: dict[str, Any] = record.get("found") or {"measured": []}
    taken = [m["taken_bytes"] for m in found["measured"] if m["trials"] == found["trials"]]
    return found if taken and taken[0] <= SHARE_OF_FREE * free else None


def free_bytes(device: str) -> int:
    """Memory that nobody has taken: of a GPU, or of this machine."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


class Together:
    """Trainings of an arch in threads of this process, which are added to and measured again.

    Args:
        arch: of all of them.
        lmbdas: of its levels.
        recipe: crops per step, and the optimiser.
        size: side of a crop in pixels.
        device: where they train.
        free: bytes of its memory before any.
    """

    def __init__(
        self,
        arch: Arch,
        lmbdas: tuple[float, ...],
        recipe: Recipe,
        size: int,
        device: str,
        free: int,
    ):
        self._arch, self._lmbdas = arch, lmbdas
        self._recipe = replace(recipe, steps=10**9, checkpoint_s=1e9)
        self._device, self._free = device, free
        self._pool = CropPool(
            torch.randint(0, 256, (CROPS, 3, size, size), dtype=torch.uint8), device
        )
        self._runs: list[Run] = []

    def measure(self, n: int) -> Packed:
        """Steps per second of ``n`` at once for SECONDS; no steps at all where one of them fails."""
        try:
            while len(self._runs) < n:
                self._runs.append(self._begun())
        except Exception:  # out of memory
            return Packed(n, 0.0, self._free)
        ready = threading.Barrier(n)
        found = side_by_side([partial(_steps_per_s, run, ready) for run in self._runs[:n]])
        if any(isinstance(rate, Exception) for rate in found):
            return Packed(n, 0.0, self._free)
        return Packed(n, sum(found), max(self._free - free_bytes(self._device), 0))

    def _begun(self) -> Run:
        student = Student(self._arch, self._lmbdas).to(self._device)
        run = Run(student, self._pool, self._recipe)
        run.run(until=WARM_STEPS)
        return run


def _steps_per_s(run: Run, ready: threading.Barrier) -> float:
    torch.set_num_threads(1)  # counts for the thread that sets it
    ready.wait()
    started, first = time.perf_counter(), run.step
    while time.perf_counter() - started < SECONDS:
        # Ends in a look at the loss, which waits for the device.
        run.run(until=run.step + CHECK_EVERY)
    return (run.step - first) / (time.perf_counter() - started)
