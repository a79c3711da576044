"""A student as two ONNX files, for programs without PyTorch.

``encoder.onnx``  x [1, 3, H, W] in [0, 1], sides multiples of 64 -> y [1, M, H/16, W/16], z [1, hyper, H/64, W/64]
``decoder.onnx``  y_hat [1, M, h, w] -> x_hat [1, 3, 16h, 16w] in [0, 1]

Both are float32 with free sizes. Between them stands entropy coding, which is no network: gains per level,
rounding, and the entropy parameters in exact arithmetic (``exact``; float32 on another library would not find the same
tables). ``nas_kd.coding.LatentCoder`` does it: ``student.coder.encode(y, z, level)`` and ``.decode``.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from nas_kd.errors import UsageError
from nas_kd.student import MULTIPLE, Student

OPSET = 17
"""The newest that PyTorch's TorchScript exporter writes without conversion."""

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


class Encoder(nn.Module):
    """Analysis and hyper-analysis; gains belong to the coder."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Y and z of a picture."""
        y = self.student.analysis(x)
        return y, self.student.h_a(y)


class Decoder(nn.Module):
    """Synthesis, clamped."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student

    def forward(self, y_hat: Tensor) -> Tensor:
        """The picture of latents."""
        return self.student.synthesis(y_hat).clamp(0, 1)


def export_onnx(student: Student, folder: Path) -> list[Path]:
    """Write encoder.onnx and decoder.onnx; raises UsageError where ``onnx`` is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise UsageError("ONNX needs the package onnx: install nas-kd[onnx]") from error
    x = torch.rand(1, 3, 2 * MULTIPLE, 3 * MULTIPLE)
    y = torch.randn(1, student.arch.M, 8, 12)
    cpu = student.cpu().eval()
    return [
        _write(Encoder(cpu), x, "x", ["y", "z"], folder / ENCODER),
        _write(Decoder(cpu), y, "y_hat", ["x_hat"], folder / DECODER),
    ]


def _write(model: nn.Module, example: Tensor, given: str, gives: list[str], path: Path) -> Path:
    free = {name: {2: f"{name}_height", 3: f"{name}_width"} for name in (given, *gives)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter by tracing is called old; the new one needs another package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            str(temporary),
            input_names=[given],
            output_names=gives,
            dynamic_axes=free,
            opset_version=OPSET,
            dynamo=False,
        )
    os.replace(temporary, path)
    return path
