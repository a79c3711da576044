"""The device that PyTorch computes on: which one, with what settings, and when it is done.

PyTorch is imported by whoever calls, not by importing this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def best_device() -> str:
    """The GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def synchroniser(device: str) -> Callable[[], None]:
    """Waits for all that is queued on a device."""
    import torch

    def synchronise() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return synchronise


def numerics(device: str) -> str:
    """The settings that change which kernels run."""
    import torch

    if not device.startswith("cuda"):
        return f"threads={torch.get_num_threads()}"
    cudnn = torch.backends.cudnn
    return (
        f"matmul={torch.get_float32_matmul_precision()} cudnn_tf32={cudnn.allow_tf32} "
        f"benchmark={cudnn.benchmark} deterministic={cudnn.deterministic}"
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: sums of several come out otherwise each time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
