"""How many trials share a GPU: measured, by training the largest arch of the space in more and more processes.

One small student leaves a large GPU idle. Twice as many processes are tried until they do not fit into its memory
any more, or together are hardly faster than half as many.
"""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from nas_kd.codec.arch import Arch
from nas_kd.codec.search_space import SearchSpace
from nas_kd.codec.student import Student
from nas_kd.device import best_device
from nas_kd.distillation.training import CHECK_EVERY, CropPool, Run
from nas_kd.errors import UsageError
from nas_kd.recipe import Recipe

WARM_STEPS = 5
SECONDS = 5.0
"""Of training that count, after all processes are warm."""
GAIN = 1.1
"""What twice the trials must give together to be worth it."""
SHARE_OF_FREE = 0.9
"""Of a device's memory that trials may take."""
CROPS = 64
PATIENCE_S = 300.0
"""For processes to load PyTorch and to take their first steps."""


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
    measure: Callable[[int], Packed], free_bytes: int, most: int
) -> tuple[Packed, list[Packed]]:
    """The packing to work with, and all that were measured.

    Args:
        measure: what comes of so many trials at once.
        free_bytes: of the device before any.
        most: trials that the machine has cores for.
    """
    seen = [measure(1)]
    while 2 * seen[-1].trials <= most:
        last = seen[-1]
        if 2 * last.taken_bytes > SHARE_OF_FREE * free_bytes:
            break
        seen.append(measure(2 * last.trials))
        if seen[-1].steps_per_s < GAIN * last.steps_per_s:
            break
    return max(seen, key=lambda packed: packed.steps_per_s), seen


def trials_per_gpu(
    space: SearchSpace, lmbdas: tuple[float, ...], recipe: Recipe, size: int, most: int
) -> dict[str, Any]:
    """How many trials of a space share the GPU here, as ``trials``, with what was measured.

    Args:
        space: its largest arch is the one that is trained.
        lmbdas: of its students' levels.
        recipe: crops per step.
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
    arch = max(space.corners(True), key=lambda a: (a.M, a.hyper))
    free = free_bytes(device)

    def measure(n: int) -> Packed:
        return together(n, arch, lmbdas, recipe.batch, size, device)

    chosen, seen = best(measure, free, most)
    measured = [asdict(packed) for packed in seen]
    return {"trials": chosen.trials, "free_bytes": free, "arch": str(arch), "measured": measured}


def free_bytes(device: str) -> int:
    """Memory that nobody has taken: of a GPU, or of this machine."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def together(
    n: int, arch: Arch, lmbdas: tuple[float, ...], batch: int, size: int, device: str
) -> Packed:
    """Train an arch in ``n`` processes at once for SECONDS; no steps at all where one of them fails."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(n), context.Queue()
    before = free_bytes(device)
    given = (arch, lmbdas, batch, size, device, barrier, results)
    processes = [context.Process(target=_process, args=given, daemon=True) for _ in range(n)]
    for process in processes:
        process.start()
    try:
        found = [results.get(timeout=PATIENCE_S) for _ in processes]
    except queue.Empty:  # one of them was killed
        found = [None]
    for process in processes:
        process.terminate()
        process.join()
    if None in found:
        return Packed(n, 0.0, before)
    return Packed(n, sum(rate for rate, _ in found), max(before - min(f for _, f in found), 0))


def _process(
    arch: Arch,
    lmbdas: tuple[float, ...],
    batch: int,
    size: int,
    device: str,
    barrier: Any,
    results: Any,
) -> None:
    """Tell the steps per second of one run while all others train too, and the memory that is free then."""
    try:
        torch.set_num_threads(1)
        pool = CropPool(torch.randint(0, 256, (CROPS, 3, size, size), dtype=torch.uint8), device)
        recipe = Recipe(10**9, batch, checkpoint_s=1e9)
        run = Run(Student(arch, lmbdas).to(device), pool, recipe)
        run.run(until=WARM_STEPS)
        barrier.wait(PATIENCE_S)
        rate = _steps_per_s(run)
        free = free_bytes(device)
        barrier.wait(PATIENCE_S)  # until all have read it
        results.put((rate, free))
    except Exception:  # out of memory, or another process failed
        barrier.abort()
        results.put(None)


def _steps_per_s(run: Run) -> float:
    started, first = time.perf_counter(), run.step
    while time.perf_counter() - started < SECONDS:
        run.run(
            until=run.step + CHECK_EVERY
        )  # ends in a look at the loss, which waits for the device
    return (run.step - first) / (time.perf_counter() - started)
