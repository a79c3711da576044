"""What a pass does to its device: the share of the time in which kernels run, and the memory it takes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from nas_kd.codec.networks import Pass

LAUNCH_BOUND = 0.9  # a GPU busy for less of the time waits for its kernels to be launched
PROFILED_RUNS = 20


def gpu_busy_share(work: Pass) -> float | None:
    """Share of the wall time in which kernels run, 0 to 1; None where they cannot be seen.

    Kernel times come from a profiled run, wall time from one without the profiler.
    """
    for _ in range(PROFILED_RUNS):
        work()
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    for _ in range(PROFILED_RUNS):
        work()
    torch.cuda.synchronize()
    wall_s = time.perf_counter() - start_s
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_RUNS):
            work()
        torch.cuda.synchronize()
    kernels_us = sum(event.self_device_time_total for event in profiler.key_averages())
    return min(1.0, kernels_us / 1e6 / wall_s) if kernels_us > 0 else None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at once; ``peak`` is the most so far.

    Workspaces inside of one operation are not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, then look at what is alive."""
        result = func(*args, **(kwargs or {}))
        self._live = {k: (r, n) for k, (r, n) in self._live.items() if not r.expired()}
        tensors = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
        for tensor in tensors:
            storage = tensor.untyped_storage()
            ref = StorageWeakRef(storage)
            self._live.setdefault(ref.cdata, (ref, storage.nbytes()))
        self.peak = max(self.peak, sum(n for _, n in self._live.values()))
        return result


def memory_bytes(codec: torch.nn.Module, works: dict[str, Pass]) -> dict[str, int]:
    """Bytes of the weights, and the most that tensors take at once in each pass."""
    sizes = {"weights": sum(p.numel() * p.element_size() for p in codec.parameters())}
    for part, work in works.items():
        with LiveBytes() as live:
            work()
        sizes[part] = live.peak
    return sizes
