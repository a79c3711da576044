from dataclasses import replace

import pytest

from nas_kd.codec.arch import Arch, Entropy, Transform, prim
from nas_kd.codec.cost import count
from nas_kd.codec.macs import FRAME_PX, arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import Student

SMALL = (1, 3, 64, 64)
SMALL_PER_FRAME = FRAME_PX[0] * FRAME_PX[1] // 64**2
LMBDAS = (0.01, 0.02)


@pytest.mark.parametrize("space", ["prim", "demo", "asymmetric", "frontier", "phone", "window"])
@pytest.mark.thorough
def test_the_closed_form_is_what_fvcore_counts(space: str):
    drawn = load_space(space)
    for arch in [drawn.draw(seed) for seed in range(3)] + [drawn.extreme(True)]:
        found, traced = arch_cost(arch, len(LMBDAS)), count(Student(arch, LMBDAS), SMALL)
        assert found.total.parameters == traced.parameters
        assert found.total.macs == traced.macs * SMALL_PER_FRAME, str(arch)
        assert found.encoder.macs == traced.encoder_macs * SMALL_PER_FRAME
        assert found.decoder.macs == traced.decoder_macs * SMALL_PER_FRAME


RENDER = Transform("trunk4-render", (0, 12, 0, 20), (0, 2, 0, 1), block="summed", kernel=3)


@pytest.mark.parametrize(
    "side",
    [
        Transform("unshuffle2", (16, 16, 32), (1, 0, 2), (True, False, True), "window", "gdn", 3),
        Transform("unshuffle4", (0, 8, 8), (0, 2, 1), (False, True, False), "depthwise"),
        Transform("trunk2", (8, 16, 16), (1, 0, 2, 1), block="gated", kernel=5),
        Transform("trunk8", (0, 0, 24), (0, 0, 1, 2), block="residual"),
        Transform("trunk16", (0, 0, 0, 40), (0, 0, 0, 2), (False,) * 3 + (True,), "summed"),
        Transform("trunk4", (0, 8, 10, 30), (0, 1, 0, 2), (False, True, False), "gated", "relu6"),
        RENDER,
    ],
    ids=str,
)
@pytest.mark.parametrize("entropy", ["checkerboard", "dual", "quad"])
def test_what_no_shipped_space_combines_is_counted_too(side: Transform, entropy: Entropy):
    encoder = replace(side, stem="trunk16") if side.renders else side
    arch = Arch(encoder, side, M=24, hyper=8, entropy=entropy, shortcut=not side.trunk)
    traced = count(Student(arch, LMBDAS), SMALL)
    found = arch_cost(arch, len(LMBDAS)).total
    assert (found.macs, found.parameters) == (traced.macs * SMALL_PER_FRAME, traced.parameters)


def test_a_students_sides_hold_what_its_file_needs_to_run_them():
    student, found = Student(prim(8, 16), (0.01,)), arch_cost(prim(8, 16), 1)
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in student.named_children()}
    shared = sizes["h_s"] + sizes["entropy_parameters"] + sizes["entropy_bottleneck"]
    assert found.encoder.parameters == sizes["g_a"] + sizes["h_a"] + shared
    assert found.decoder.parameters == sizes["g_s"] + shared
