from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_bitstream import ARCH, LMBDAS

from nas_kd.onnx_export import OPSET, export_onnx
from nas_kd.space import Transform
from nas_kd.student import Student
from nas_kd.weights import ready

GDN = Transform("conv", (8, 8, 8), (0, 1, 0), (False, False, True), "depthwise", "gdn", 5)
SPACES = {
    "unshuffle4 with shortcut": replace(ARCH, entropy="checkerboard"),
    "gdn, attention, depthwise": replace(ARCH, encoder=GDN, decoder=GDN, shortcut=False),
    "scale": replace(ARCH, entropy="scale"),
}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


@pytest.mark.parametrize("name", list(SPACES))
@torch.no_grad()
def test_onnx_runtime_computes_what_torch_does_at_another_size(name: str, tmp_path: Path):
    torch.manual_seed(0)
    student = ready(Student(SPACES[name], LMBDAS))
    encoder, decoder = export_onnx(student, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder.onnx", "encoder.onnx"]
    for path in (encoder, decoder):
        assert [s.version for s in onnx.load(path).opset_import if not s.domain] == [OPSET]
    x = torch.rand(1, 3, 192, 64)
    y, z = session(encoder).run(None, {"x": x.numpy()})
    expected = student.analysis(x)
    np.testing.assert_allclose(y, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(z, student.h_a(expected).numpy(), atol=1e-4)
    # What ONNX Runtime analysed is coded, decoded, and synthesised by ONNX Runtime.
    coded = student.coder.encode(torch.from_numpy(y), torch.from_numpy(z), 2)
    decoded = student.coder.decode(coded.strings, z.shape[2:], 2)
    assert torch.equal(decoded.y_hat, coded.y_hat)
    (x_hat,) = session(decoder).run(None, {"y_hat": decoded.y_hat.numpy()})
    ours = student.synthesis(decoded.y_hat).clamp(0, 1)
    np.testing.assert_allclose(x_hat, ours.numpy(), atol=1e-4)
