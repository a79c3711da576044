"""A student's ONNX files in int8: what ONNX Runtime's static quantiser makes of them after training.

``encoder-int8.onnx`` and ``decoder-int8.onnx``: the convolutions of all blocks, most of a student's multiplications,
on 8-bit weights (a scale per output channel) and activations (ranges seen on calibration pictures, the channels
brought nearer to one size first). What runs along the trunk stays in float32, the projections and sums between the
blocks: latents and features there have a wider range than 8 bits hold. So does the hyper-encoder; entropy parameters
are no part of the files anyway, so that what an int8 codec writes any other of the student's reads.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.codec.onnx import DECODER, ENCODER, export_onnx
from nas_kd.codec.student import Student
from nas_kd.errors import UsageError
from nas_kd.files import replacing

INT8 = {name: name.replace(".onnx", "-int8.onnx") for name in (ENCODER, DECODER)}
"""File names, by those of the float files."""

BLOCKS = ("/blocks/", "/latent/")
"""What a node's name holds where it is part of a block."""
SIDES = ("g_a.", "g_s.")
LEAST = 1e-6


def export_int8(student: Student, folder: Path, crops: Tensor) -> list[Path]:
    """Write both files beside the float ones, which are written too.

    Args:
        student: with its tables made and with blocks; raises UsageError where it has none, and where ``onnx`` or
            ``onnxruntime`` is not installed.
        folder: there already.
        crops: [n, 3, H, W] in [0, 1] to calibrate on, sides multiples of 64; coded at the levels in turn.
    """
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise UsageError("int8 needs onnx and onnxruntime: install nas-kd[onnx]") from error
    latents = _latents(student, crops)
    given = {ENCODER: ("x", list(crops.split(1))), DECODER: ("y_hat", latents)}
    export_onnx(student, folder)
    with tempfile.TemporaryDirectory() as scratch:
        floats = {p.name: p for p in export_onnx(_evened(student, crops, latents), Path(scratch))}
        return [
            _quantised(floats[name], folder / INT8[name], tensor, examples)
            for name, (tensor, examples) in given.items()
        ]


class Evened(nn.Module):
    """A convolution whose input channels are first brought nearer to one size, and its weights the other way.

    Features stand in the order of energy; with one range for all of them eight bits would drop the last. The square
    root shares the differences between features and weights (SmoothQuant, Xiao et al., ICML 2023); a depthwise
    convolution has a range for each channel's weights, and takes them all.
    """

    inverse: Tensor

    def __init__(self, convolution: nn.Conv2d, most: Tensor):
        super().__init__()
        self.convolution = convolution
        weight, depthwise = convolution.weight, convolution.groups > 1
        largest = weight.abs().amax((1, 2, 3) if depthwise else (0, 2, 3))
        size = most if depthwise else (most / largest.clamp(min=LEAST)).sqrt()
        size = size.clamp(min=LEAST)
        weight.mul_(size[:, None, None, None] if depthwise else size[None, :, None, None])
        self.register_buffer("inverse", 1 / size[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """What the convolution alone gave."""
        return self.convolution(x * self.inverse)


@torch.no_grad()
def _evened(student: Student, crops: Tensor, latents: list[Tensor]) -> Student:
    """A copy that computes the same, for eight bits."""
    made = copy.deepcopy(student).eval()
    inside = {
        name: module
        for name, module in made.named_modules()
        if isinstance(module, nn.Conv2d) and name.startswith(SIDES) and _in_block(f"/{name}/")
    }
    most: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen = given[0].abs().amax((0, 2, 3))
            most[name] = torch.maximum(most[name], seen) if name in most else seen

        return look

    handles = [m.register_forward_pre_hook(watch(name)) for name, m in inside.items()]
    made.analysis(crops)
    for y_hat in latents:
        made.synthesis(y_hat)
    for handle in handles:
        handle.remove()
    for name, convolution in inside.items():
        parent, _, leaf = name.rpartition(".")
        setattr(made.get_submodule(parent), leaf, Evened(convolution, most[name]))
    return made


def _in_block(name: str) -> bool:
    return any(part in name.replace(".", "/") for part in BLOCKS)


@torch.no_grad()
def _latents(student: Student, crops: Tensor) -> list[Tensor]:
    """y_hat of crops, each at a level."""
    assert student.coder is not None
    found = []
    for i, x in enumerate(crops.split(1)):
        y, z = student.latents(x)
        found.append(student.coder.encode(y, z, 1 + i % student.levels).y_hat)
    return found


def _quantised(path: Path, target: Path, tensor: str, examples: list[Tensor]) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """One example after the other."""

        def __init__(self) -> None:
            self.waiting: Iterator[Tensor] = iter(examples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            one = next(self.waiting, None)
            return None if one is None else {tensor: one.numpy()}

    with tempfile.TemporaryDirectory() as scratch, replacing(target) as temporary:
        prepared = Path(scratch) / path.name
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        nodes = _block_convolutions(prepared)
        if not nodes:
            raise UsageError(f"{path.name}: no blocks whose convolutions could be in int8")
        quantize_static(prepared, temporary, Reader(), per_channel=True, nodes_to_quantize=nodes)
    return target


def _block_convolutions(path: Path) -> list[str]:
    import onnx

    graph: Any = onnx.load(path).graph
    return [node.name for node in graph.node if node.op_type == "Conv" and _in_block(node.name)]
