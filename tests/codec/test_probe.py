import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_codec import ARCH, LMBDAS, SIDE
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.codec import probe as module
from nas_kd.codec.arch import Transform
from nas_kd.codec.checkpoint import ready, save_student
from nas_kd.codec.probe import Probed, probe
from nas_kd.codec.student import Student
from nas_kd.errors import UsageError

WIDE = Transform("trunk8", (0, 0, 12, 10), (0, 0, 1, 2), block="summed", kernel=3)


def student(encoder: Transform = SIDE) -> Student:
    torch.manual_seed(0)
    made = Student(replace(ARCH, encoder=encoder), LMBDAS)
    made.start_from(torch.rand(40, 3, 64, 64))
    return made.eval()


CROPS = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_every_block_is_named_in_the_order_of_a_picture_and_nothing_is_left_behind():
    probed, codec = probe(student(WIDE), CROPS), student(WIDE)
    assert [one.layer for one in probed] == [
        "encoder 1/8 block 1",
        "encoder 1/16 block 1",
        "encoder 1/16 block 2",
        "decoder 1/4 block 1",
    ]
    assert [one.channels for one in probed] == [12, 10, 10, 4]
    probe(codec, CROPS)
    assert not any(m._forward_pre_hooks for m in codec.modules())


@torch.no_grad()
def test_a_block_that_is_given_two_dimensions_needs_no_more():
    codec = student(WIDE)
    stem = codec.g_a.stem["trunk8"]
    stem.weight[2:] = 0
    stem.bias[2:] = 0
    first = probe(codec, CROPS)[0]
    assert (first.layer, first.channels) == ("encoder 1/8 block 1", 12)
    assert first.dimension <= 2
    assert first.verdict == "wasted"


def test_without_tolerance_all_that_matter_are_needed(monkeypatch: pytest.MonkeyPatch):
    loose = probe(student(), CROPS)
    monkeypatch.setattr(module, "ALLOWED", 1e-5)
    strict = probe(student(), CROPS)
    assert all(a.dimension <= b.dimension for a, b in zip(loose, strict, strict=True))
    assert sum(b.dimension for b in strict) > sum(a.dimension for a in loose)


def test_verdicts_are_shares_of_the_channels():
    assert [Probed("", 20, n).verdict for n in (10, 11, 18, 19)] == ["wasted", "", "", "lacking"]


def test_the_command_prints_a_table_or_json_and_refuses_a_student_without_blocks(tmp_path: Path):
    save_student(ready(student()), tmp_path / "with")
    run = CliRunner().invoke
    lines = run(app, ["probe", str(tmp_path / "with")]).output.splitlines()
    assert lines[0].split() == ["layer", "channels", "dimension"]
    found = json.loads(run(app, ["probe", str(tmp_path / "with"), "--json"]).output)
    rows = [f"{row['layer']} {row['channels']} {row['dimension']}" for row in found["layers"]]
    assert [" ".join(line.split()[:6]) for line in lines[1:]] == rows
    bare = Student(replace(ARCH, encoder=_bare(), decoder=_bare()), LMBDAS)
    save_student(ready(bare), tmp_path / "without")
    refused = run(app, ["probe", str(tmp_path / "without")])
    assert isinstance(refused.exception, UsageError)
    assert "no blocks" in str(refused.exception)


def _bare() -> Transform:
    return replace(SIDE, depths=(0, 0, 0, 0))
