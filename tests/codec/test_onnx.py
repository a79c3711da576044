from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_session import session
from PIL import Image
from tiny_codec import ARCH, LMBDAS

from nas_kd.codec.arch import Transform
from nas_kd.codec.bitstream import decode, encode
from nas_kd.codec.checkpoint import ready, save_student
from nas_kd.codec.onnx import MEANINGS, OPSET, export_onnx
from nas_kd.codec.student import Student
from nas_kd.data.metrics import padded, psnr_db

PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"

GDN = Transform("conv", (8, 8, 8), (0, 1, 0), (False, False, True), "depthwise", "gdn", 5)
WINDOWS = Transform("unshuffle2", (16, 16, 16), (0, 1, 1), block="window", activation="leaky_relu")
PATCHES = Transform(
    "trunk16", (0, 0, 0, 24), (0, 0, 0, 2), (False,) * 3 + (True,), "summed", "relu6"
)
RENDER = Transform("trunk4-render", (0, 6, 0, 8), (0, 2, 0, 1), block="gated", kernel=3)
SPACES = {
    "patches, render": replace(ARCH, encoder=PATCHES, decoder=RENDER),
    "trunk": replace(ARCH, entropy="checkerboard"),
    "gdn, attention, depthwise": replace(ARCH, encoder=GDN, decoder=GDN),
    "scale": replace(ARCH, entropy="scale"),
    "windows": replace(ARCH, encoder=WINDOWS, decoder=WINDOWS),
}


@pytest.fixture(scope="module", params=list(SPACES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(0)
    student = ready(Student(SPACES[request.param], LMBDAS))
    return student, *export_onnx(student, tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("size", [(192, 64), (65, 63), (1, 200)])
@torch.no_grad()
def test_onnx_runtime_computes_what_torch_does_at_any_size(exported, size: tuple[int, int]):
    student, encoder, decoder = exported
    assert sorted(p.name for p in encoder.parent.iterdir()) == ["decoder.onnx", "encoder.onnx"]
    for path in (encoder, decoder):
        assert [s.version for s in onnx.load(path).opset_import if not s.domain] == [OPSET]
    x = torch.rand(1, 3, *size)
    y, z = session(encoder).run(None, {"x": x.numpy()})
    expected = student.analysis(padded(x))
    np.testing.assert_allclose(y, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(z, student.h_a(expected).numpy(), atol=1e-4)
    # What ONNX Runtime analysed is coded, decoded, and synthesised by ONNX Runtime.
    coded = student.coder.encode(torch.from_numpy(y), torch.from_numpy(z), 2)
    decoded = student.coder.decode(coded.strings, z.shape[2:], 2)
    assert torch.equal(decoded.y_hat, coded.y_hat)
    (x_hat,) = session(decoder).run(None, {"y_hat": decoded.y_hat.numpy()})
    ours = student.synthesis(decoded.y_hat).clamp(0, 1)
    np.testing.assert_allclose(x_hat, ours.numpy(), atol=1e-4)


def test_every_tensor_says_its_shape_and_meaning_in_the_file_and_in_the_docs(exported):
    student, *paths = exported
    page = PAGE.read_text()
    M, hyper = student.arch.M, student.arch.hyper
    told = {}
    for path in paths:
        graph = onnx.load(path).graph
        for tensor in (*graph.input, *graph.output):
            dims = tensor.type.tensor_type.shape.dim
            told[tensor.name] = [d.dim_param or d.dim_value for d in dims]
            assert tensor.doc_string == MEANINGS[tensor.name]
    assert told == {
        "x": [1, 3, "height", "width"],
        "y": [1, M, "y_height", "y_width"],
        "z": [1, hyper, "z_height", "z_width"],
        "y_hat": [1, M, "y_height", "y_width"],
        "x_hat": [1, 3, "padded_height", "padded_width"],
    }
    for name, shape in told.items():
        words = {M: "M", hyper: "hyper"}
        written = ", ".join(str(words.get(d, d)) if i == 1 else str(d) for i, d in enumerate(shape))
        assert f"| `{name}` | {written} |" in page


@pytest.mark.parametrize("exported", ["scale"], indirect=True)
def test_the_example_of_the_page_runs(exported, tmp_path: Path, monkeypatch):
    student, encoder, _ = exported
    save_student(student, encoder.parent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "students").mkdir()
    (tmp_path / "students" / "trial-0003").symlink_to(encoder.parent)
    picture = np.random.default_rng(0).integers(0, 256, (65, 63, 3), np.uint8)
    Image.fromarray(picture).save("photo.png")
    lines = [line[4:] for line in PAGE.read_text().splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})
    restored = np.asarray(Image.open("restored.png"))
    assert restored.shape == picture.shape
    assert psnr_db(restored, decode(student, encode(student, picture, 3))) > 40
