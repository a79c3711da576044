"""A student as two ONNX files, for programs without PyTorch.

``encoder.onnx``  x [1, 3, height, width] in [0, 1], of any size -> y [1, M, h, w], z [1, hyper, h/4, w/4]
``decoder.onnx``  y_hat [1, M, h, w] -> x_hat [1, 3, 16h, 16w] in [0, 1], to be cut to height and width

The encoder repeats a picture's edges up to multiples of 64 itself, so h = 4 ceil(height / 64) and w likewise.
Both are float32. Between them stands entropy coding, which is no network: gains per level, rounding, and the entropy
parameters in exact arithmetic (``exact``; float32 on another library would not find the same tables).
``nas_kd.codec.entropy_coding.LatentCoder`` does it: ``student.coder.encode(y, z, level)`` and ``.decode``.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from nas_kd.codec.student import Student
from nas_kd.data.metrics import MULTIPLE, padded
from nas_kd.errors import UsageError
from nas_kd.files import replacing

OPSET = 17
"""The newest that PyTorch's TorchScript exporter writes without conversion."""

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"

Shapes = dict[str, tuple[int | str, ...]]

MEANINGS = {
    "x": "the picture: RGB in [0, 1], of any size",
    "y": "latents, before gains and rounding; y_height = 4 ceil(height / 64), and so for widths",
    "z": "hyper-latents, before gains and rounding; z_height = ceil(height / 64), and so for widths",
    "y_hat": "latents as the entropy decoder gives them; sides are multiples of 4",
    "x_hat": "the picture in [0, 1], with its edges repeated: cut it to the picture's size",
}
"""Of each tensor; it stands in the files, too."""


class Encoder(nn.Module):
    """Padding, analysis and hyper-analysis; gains belong to the coder."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Y and z of a picture."""
        y = self.student.analysis(padded(x))
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
    cpu, M, hyper = student.cpu().eval(), student.arch.M, student.arch.hyper
    y_shape: tuple[int | str, ...] = (1, M, "y_height", "y_width")
    encoded: Shapes = {
        "x": (1, 3, "height", "width"),
        "y": y_shape,
        "z": (1, hyper, "z_height", "z_width"),
    }
    decoded: Shapes = {"y_hat": y_shape, "x_hat": (1, 3, "padded_height", "padded_width")}
    # No multiples of 64: the exporter leaves out a padding of nothing.
    x, y_hat = torch.rand(1, 3, 2 * MULTIPLE - 1, 3 * MULTIPLE - 1), torch.randn(1, M, 8, 12)
    return [
        _write(Encoder(cpu), x, encoded, folder / ENCODER),
        _write(Decoder(cpu), y_hat, decoded, folder / DECODER),
    ]


def _write(model: nn.Module, example: Tensor, shapes: Shapes, path: Path) -> Path:
    given, *gives = shapes
    sides = {n: {2: str(shape[2]), 3: str(shape[3])} for n, shape in shapes.items()}
    with replacing(path) as temporary, warnings.catch_warnings(), torch.no_grad():
        # The exporter by tracing is called old; the new one needs another package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            str(temporary),
            input_names=[given],
            output_names=gives,
            dynamic_axes=sides,
            opset_version=OPSET,
            dynamo=False,
        )
        _describe(temporary, shapes)
    return path


def _describe(path: Path, shapes: Shapes) -> None:
    """Write shapes and meanings into a file; the exporter's own shapes have invented names."""
    import onnx

    model = onnx.load(path)
    for tensor in (*model.graph.input, *model.graph.output):
        shape = shapes[tensor.name]
        described = onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, shape)
        tensor.CopyFrom(described)
        tensor.doc_string = MEANINGS[tensor.name]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
