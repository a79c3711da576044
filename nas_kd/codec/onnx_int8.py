"""A student's ONNX files in int8: what ONNX Runtime's static quantiser makes of them after training.

``encoder-int8.onnx`` and ``decoder-int8.onnx``: the convolutions of all blocks, most of a student's multiplications,
on 8-bit weights (a scale per output channel) and activations (ranges seen on calibration pictures). What runs along
the trunk stays in float32, the projections and sums between the blocks: latents and features there have a wider range
than 8 bits hold. So does the hyper-encoder; entropy parameters are in exact arithmetic anyway, so that files written
or read by an int8 codec are those of the format.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas_kd.codec.onnx import DECODER, ENCODER, export_onnx
from nas_kd.codec.student import Student
from nas_kd.errors import UsageError
from nas_kd.files import replacing

INT8 = {name: name.replace(".onnx", "-int8.onnx") for name in (ENCODER, DECODER)}
"""File names, by those of the float files."""

BLOCKS = ("/blocks/", "/latent/")
"""What a node's name holds where it is part of a block."""


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
    given = {ENCODER: ("x", list(crops.split(1))), DECODER: ("y_hat", _latents(student, crops))}
    floats = {path.name: path for path in export_onnx(student, folder)}
    return [
        _quantised(floats[name], folder / INT8[name], tensor, examples)
        for name, (tensor, examples) in given.items()
    ]


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
    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv" and any(part in node.name for part in BLOCKS)
    ]
