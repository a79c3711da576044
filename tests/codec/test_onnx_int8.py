import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_session import session
from tiny_codec import ARCH, LMBDAS
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.codec.arch import Transform
from nas_kd.codec.checkpoint import ready, save_student
from nas_kd.codec.onnx import DECODER, ENCODER
from nas_kd.codec.onnx_int8 import INT8, export_int8
from nas_kd.codec.student import Student
from nas_kd.errors import UsageError
from nas_kd.evaluation.int8 import ROUNDS, decoder_ms, int8_bd_rate

SIDE = Transform("trunk8", (0, 0, 12, 16), (0, 0, 1, 1), block="summed", activation="relu6")
CROPS = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def made(side: Transform = SIDE) -> Student:
    torch.manual_seed(0)
    student = Student(replace(ARCH, encoder=side, decoder=side), LMBDAS)
    student.start_from(torch.rand(40, 3, 64, 64))
    for name, p in student.named_parameters():
        if ".blocks." in name:
            torch.nn.init.normal_(p, std=0.1)
    return ready(student)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Path]:
    student, folder = made(), tmp_path_factory.mktemp("int8")
    written = export_int8(student, folder, CROPS)
    assert [path.name for path in written] == ["encoder-int8.onnx", "decoder-int8.onnx"]
    return student, folder


def test_blocks_convolve_in_int8_and_the_trunk_in_float(exported):
    _, folder = exported
    for name in (ENCODER, DECODER):
        graph = onnx.load(folder / INT8[name]).graph
        made_by = {out: node.op_type for node in graph.node for out in node.output}
        for node in graph.node:
            if node.op_type in ("Conv", "ConvTranspose"):
                inside = "/blocks/" in node.name
                quantised = [made_by.get(i) == "DequantizeLinear" for i in node.input[:2]]
                assert quantised == [inside, inside], node.name


def test_int8_is_near_float_and_is_not_it(exported):
    _, folder = exported
    for name, given in ((ENCODER, CROPS[:1].numpy()), (DECODER, np.ones((1, 6, 4, 4), np.float32))):
        tensor = "x" if name == ENCODER else "y_hat"
        a, b = (session(folder / f).run(None, {tensor: given})[0] for f in (name, INT8[name]))
        error = np.abs(a - b).max() / np.abs(a).max()
        assert 0 < error < 0.1


def test_a_student_without_blocks_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"encoder.onnx: no blocks"):
        export_int8(made(replace(SIDE, depths=(0, 0, 0, 0))), tmp_path, CROPS)
    assert not list(tmp_path.glob("*int8*"))


def test_a_student_of_three_levels_has_no_bd_rate_and_a_reason(exported):
    from nas_kd.data.images import open_images

    student, folder = exported
    images = open_images("builtin", "eval")
    small = replace(images, images=[i[:64, :64] for i in images.images], sizes=((64, 64),) * 4)
    found = int8_bd_rate(student, folder, small)
    assert isinstance(found, str)
    assert "4 points or more" in found


def test_milliseconds_are_of_the_files_that_are_named(exported, tmp_path: Path):
    _, folder = exported
    for name in (DECODER, INT8[DECODER]):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    started = time.process_time()
    both = decoder_ms(tmp_path)
    whole_ms = 1000 * (time.process_time() - started)
    assert min(both) > 0
    assert (
        sum(both) * ROUNDS / 2 < whole_ms
    )  # a median of all but the first is less than twice their mean
    (tmp_path / INT8[DECODER]).unlink()
    with pytest.raises(Exception, match="decoder-int8"):
        decoder_ms(tmp_path)


@pytest.mark.thorough
def test_the_command_says_how_far_it_is_and_what_it_found(tmp_path: Path):
    torch.manual_seed(0)
    side = replace(SIDE, widths=(0, 0, 16, 24))
    student = Student(replace(ARCH, encoder=side, decoder=side, M=16))
    student.start_from(torch.rand(40, 3, 64, 64))
    save_student(ready(student), tmp_path / "student", {})
    words = ["export", str(tmp_path / "student"), "--int8", "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, words, catch_exceptions=False)
    assert said.stderr.splitlines()[-1] == "4 of 4 pictures judged"
    lines = said.stdout.splitlines()
    assert lines[:2] == [str(tmp_path / "out" / name) for name in INT8.values()]
    assert lines[2].startswith("BD-rate of int8 against float32, built-in photographs: ")
    assert re.fullmatch(r"Decoder, 768x512 on one thread: \d+ ms, in float32 \d+ ms", lines[3])
