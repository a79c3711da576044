"""What the two sides of a codec run on a device: networks without the entropy coder."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from nas_kd.codec.student import Student

FRAME = (1, 3, 512, 768)
"""One picture as large as those of the Kodak set."""
MEGAPIXELS = FRAME[2] * FRAME[3] / 1e6
PARTS = ("encoder", "decoder", "both")
LAUNCH_BOUND = 0.9  # a GPU busy for less of the time waits for its kernels to be launched
PROFILED_RUNS = 20

Pass = Callable[[], None]


def encode(student: Student, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """y_hat and z_hat of a picture [B, 3, H, W]; all that the encoder computes but the coding."""
    gain_y, inverse_y, gain_z, inverse_z = student._gains(level)
    y = student.analysis(x)
    z_hat = student._round_z(student.h_a(y) * gain_z)
    features = student.h_s(z_hat * inverse_z)
    _, means = student._entropy_parameters(features, y, gain_y, inverse_y)
    return student._round_y(y, means, gain_y, inverse_y), z_hat


def decode(student: Student, y_hat: Tensor, z_hat: Tensor, level: Tensor) -> Tensor:
    """x_hat of what ``encode`` returned; all that the decoder computes but the decoding."""
    gain_y, inverse_y, _, inverse_z = student._gains(level)
    student._entropy_parameters(student.h_s(z_hat * inverse_z), y_hat, gain_y, inverse_y)
    return student.synthesis(y_hat).clamp(0, 1)


def passes(student: Student, frames: list[Tensor]) -> dict[str, Pass]:
    """Encoder, decoder, and one after the other, each on the next frame in turn.

    Args:
        student: on the device of the frames, in evaluation mode.
        frames: [1, 3, H, W] each.
    """
    # On the device beforehand: a number would be copied there in every pass.
    level = torch.ones(1, device=frames[0].device)
    return in_turn(
        lambda x: encode(student, x, level),
        lambda y_hat, z_hat: decode(student, y_hat, z_hat, level),
        frames,
    )


def in_turn(
    encode: Callable[[Tensor], tuple[Tensor, ...]],
    decode: Callable[..., Tensor],
    frames: list[Tensor],
) -> dict[str, Pass]:
    """Encoder, decoder, and one after the other, each on the next frame in turn.

    Args:
        encode: latents of a frame.
        decode: a frame of these latents.
        frames: [1, 3, H, W] each, on the codec's device.
    """
    with torch.inference_mode():
        latents = [encode(x) for x in frames]
    turn = {part: 0 for part in PARTS}

    def now(part: str) -> int:
        turn[part] = (turn[part] + 1) % len(frames)
        return turn[part]

    @torch.inference_mode()
    def encoder() -> None:
        encode(frames[now("encoder")])

    @torch.inference_mode()
    def decoder() -> None:
        decode(*latents[now("decoder")])

    @torch.inference_mode()
    def both() -> None:
        decode(*encode(frames[now("both")]))

    return {"encoder": encoder, "decoder": decoder, "both": both}


def noise_frame(device: str) -> Tensor:
    """A frame of noise, the same every time."""
    return torch.rand(FRAME, generator=torch.Generator().manual_seed(0)).to(device)


def graph_replay(work: Pass) -> Pass:
    """The same work as one CUDA graph: its kernels without their launches.

    Raises RuntimeError where the work cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def replayed(student: Student, frames: list[Tensor], part: str) -> Pass:
    """A part of the codec on each of the frames in turn, without the launches that a host spends on each kernel.

    Raises RuntimeError where it cannot be captured.
    """
    graphs = itertools.cycle([graph_replay(passes(student, [x])[part]) for x in frames])
    return lambda: next(graphs)()


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
