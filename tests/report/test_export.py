"""The front as folders: what lies in them, that it is what was verified, and who else can use it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_session import session
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.codec.bitstream import decode, encode
from nas_kd.codec.checkpoint import load_student
from nas_kd.data.images import open_images, to_tensor
from nas_kd.data.metrics import padded
from nas_kd.errors import NasKdError
from nas_kd.evaluation.rate_distortion import evaluate_real
from nas_kd.report.export import export_front

FILES = {"arch.json", "student.safetensors", "rd.json", "card.md", "encoder.onnx", "decoder.onnx"}


@pytest.fixture(scope="module")
def out(small_folder: Path, tmp_path_factory) -> Path:
    """What `nas-kd export small --onnx` writes."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small_folder)
        done = CliRunner().invoke(app, ["export", "small", "--out", str(folder), "--onnx"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.slow
def test_every_front_member_has_its_folder_and_nothing_else_is_there(small, out: Path):
    assert {p.name for p in out.iterdir()} == {f"trial-{t.number:04d}" for t in small.front()}
    for folder in out.iterdir():
        assert {p.name for p in folder.iterdir()} >= FILES


@pytest.mark.slow
def test_what_is_written_codes_as_it_was_measured(small, out: Path):
    images = open_images(small.settings.eval_data, "eval")
    for folder in out.iterdir():
        student = load_student(folder)
        measured = evaluate_real(student, images)
        found = json.loads((folder / "rd.json").read_text())
        assert found["results"] == {
            "bpp": measured.to_json()["bpp"],
            "psnr-rgb": measured.to_json()["psnr_db"],
        }
        assert f"| {measured.curve().bpp[0]:.4f} |" in (folder / "card.md").read_text()
        picture = images.images[0]
        assert decode(student, encode(student, picture, 2)).shape == picture.shape


@pytest.mark.slow
@torch.no_grad()
def test_onnx_runtime_and_our_coder_are_the_exported_codec(small, out: Path):
    picture = open_images(small.settings.eval_data, "eval").images[0]
    x = padded(to_tensor(picture))
    for folder in out.iterdir():
        student = load_student(folder)
        y, z = session(folder / "encoder.onnx").run(None, {"x": x.numpy()})
        expected = student.analysis(x)
        np.testing.assert_allclose(y, expected.numpy(), atol=1e-4)
        np.testing.assert_allclose(z, student.h_a(expected).numpy(), atol=1e-4)
        coded = student.coder.encode(torch.from_numpy(y), torch.from_numpy(z), 3)
        decoded = student.coder.decode(coded.strings, z.shape[2:], 3)
        assert torch.equal(coded.y_hat, decoded.y_hat)
        (x_hat,) = session(folder / "decoder.onnx").run(None, {"y_hat": decoded.y_hat.numpy()})
        ours = student.synthesis(decoded.y_hat).clamp(0, 1).numpy()
        np.testing.assert_allclose(x_hat, ours, atol=1e-4)


def test_a_student_that_cannot_be_verified_is_not_written(small, tmp_path: Path):
    weights = small.student_folder(small.front()[0]) / "student.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(NasKdError):
            export_front(small, tmp_path / "out")
    finally:
        weights.write_bytes(whole)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.slow
def test_compressais_own_command_draws_the_exported_curves(out: Path, tmp_path: Path):
    files = [str(folder / "rd.json") for folder in out.iterdir()]
    command = [sys.executable, "-m", "compressai.utils.plot", "-f", *files]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "rd.png")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rd.png").read_bytes()[:4] == b"\x89PNG"
