from dataclasses import replace

import pytest
import torch

from nas_kd.codec.arch import Transform, prim
from nas_kd.codec.student import Student
from nas_kd.data.images import open_images
from nas_kd.supernet.channel_order import channel_groups, ordered

SIDE = Transform(stem="conv", widths=(8, 12, 16), depths=(0, 1, 1), kernel=3)


@pytest.fixture(scope="module")
def crops():
    images = open_images("builtin", "eval").images
    middles = [torch.from_numpy(x[64:192, 64:192].copy()) for x in images]
    return torch.stack(middles).permute(0, 3, 1, 2).float() / 255


def arch(**changes):
    decoder = replace(SIDE, stem="unshuffle2", widths=(16, 8, 12), activation="leaky_relu")
    return replace(prim(8, 24), **{"encoder": SIDE, "decoder": decoder, "hyper": 10} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"entropy": "checkerboard"},
        {"entropy": "mean-scale"},
        {"encoder": replace(SIDE, block="depthwise", attention=(False, False, True))},
    ],
    ids=["checkerboard", "mean-scale", "depthwise"],
)
def test_a_student_in_another_order_is_the_same_codec(changes, crops):
    torch.manual_seed(5)
    student = Student(arch(**changes)).eval()
    with torch.no_grad():
        for p in student.parameters():  # no two channels alike
            p.add_(0.02 * torch.rand_like(p))
        other = ordered(student)
        a, b = student(crops, 3), other(crops, 3)
    moved = [n for n, p in student.named_parameters() if not torch.equal(p, other.get_parameter(n))]
    assert {"g_a.stages.2.resample.weight", "g_s.stages.2.resample.weight"} <= set(moved)
    assert "h_a.conv1.weight" in moved
    torch.testing.assert_close(a["x_hat"], b["x_hat"], atol=1e-4, rtol=1e-4)
    for part in ("y", "z"):
        bits = [-torch.log2(out["likelihoods"][part]).sum((0, 2, 3)) for out in (a, b)]
        torch.testing.assert_close(
            bits[0].sort().values, bits[1].sort().values, atol=0.5, rtol=1e-3
        )


def test_every_axis_of_a_width_is_found():
    groups = channel_groups(prim(8, 24))
    assert set(groups) == {
        "M",
        "hyper",
        *(f"{s}.{i}" for s in ("encoder", "decoder") for i in range(3)),
    }
    assert {("g_a.head.weight", 0), ("h_a.conv0.weight", 1)} <= set(groups["M"])
    assert set(groups["encoder.0"]) == {
        ("g_a.stages.0.resample.weight", 0),
        ("g_a.stages.0.resample.bias", 0),
        ("g_a.stages.0.act.beta", 0),
        ("g_a.stages.0.act.gamma", 0),
        ("g_a.stages.0.act.gamma", 1),
        ("g_a.stages.1.resample.weight", 1),
    }


def test_widths_with_attention_windows_stay_as_they_are():
    windows = replace(SIDE, widths=(16, 16, 16), block="window")
    assert set(channel_groups(arch(encoder=windows))) & {"encoder.0", "encoder.1", "encoder.2"} == {
        "encoder.0"
    }


@torch.no_grad()
def test_a_trunk_keeps_the_order_of_its_energy(crops):
    side = Transform("trunk4", (0, 16, 16), (0, 1, 1, 1), block="depthwise", kernel=3)
    student = Student(arch(encoder=side, decoder=side))
    student.start_from(crops)
    other = ordered(student)
    for name, p in student.named_parameters():
        assert torch.equal(p, other.get_parameter(name)), name
