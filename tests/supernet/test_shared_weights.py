from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas_kd.codec import trunk
from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.cost import count
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import Student
from nas_kd.codec.trunk import Common
from nas_kd.errors import SpaceError
from nas_kd.supernet.shared_weights import Shared, parts, shared_name

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def demo() -> Shared:
    torch.manual_seed(0)
    return Shared(load_space("demo"), crops=torch.rand(40, 3, 64, 64))


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor(
        [1.0, 4]
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_student_taken_out_computes_what_its_slice_does_bit_for_bit(demo: Shared, seed: int):
    arch, (x, level) = demo.space.draw(seed), pictures()
    student = demo.student(arch).eval()
    demo.eval()
    with torch.no_grad():
        apart, within = student(x, level), demo.through(arch)(x, level)
    assert torch.equal(apart["x_hat"], within["x_hat"])
    assert torch.equal(apart["likelihoods"]["y"], within["likelihoods"]["y"])


def test_a_student_taken_out_costs_what_its_arch_does(demo: Shared):
    arch = demo.space.draw(5)
    assert count(demo.student(arch)).macs == count(Student(arch)).macs


def test_a_narrow_archs_gradient_reaches_its_slice_alone(demo: Shared):
    x, level = pictures()
    smallest = demo.smallest[0]
    demo.zero_grad()
    demo.train()
    demo.through(smallest)(x, level)["x_hat"].sum().backward()
    wide = demo.get_parameter(shared_name("g_s.stages.2.resample.weight", smallest))
    assert wide.grad is not None
    assert wide.grad[: smallest.M].abs().sum() > 0
    assert wide.grad[smallest.M :].abs().sum() == 0


@pytest.mark.parametrize("name", ["demo", "prim", "asymmetric", "frontier", "phone"])
@pytest.mark.thorough
def test_the_shared_weights_serve_every_kind_of_arch_of_the_space(name: str):
    space = load_space(name)
    with torch.device("cpu" if name == "prim" else "meta"):  # GDN has constants on the CPU
        shared = Shared(space, lmbdas=(0.01, 0.02))
        for arch in [*(space.draw(seed) for seed in range(6)), space.extreme(False)]:
            student = Student(arch, shared.lmbdas)
            for key, value in shared.slices(student).items():
                assert value.shape == student.get_parameter(key).shape


def test_the_quantiles_of_every_entropy_model_are_trained():
    shared = Shared(load_space("asymmetric"), lmbdas=(0.01, 0.02))
    shared.aux_loss().backward()
    quantiles = [p for n, p in shared.named_parameters() if n.endswith(".quantiles")]
    assert len(quantiles) == 3  # three entropy models
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in quantiles)


def test_archs_of_other_parts_are_told_apart():
    draws = [load_space("frontier").draw(seed) for seed in range(30)]
    for arch in draws:
        same = [b for b in draws if parts(b) == parts(arch) and sizes(b) == sizes(arch)]
        for other in same:
            assert names_in(other) == names_in(arch)


def names_in(arch):
    with torch.device("meta"):
        return {shared_name(n, arch) for n, _ in Student(arch, (0.01,)).named_parameters()}


def sizes(arch):
    return (
        arch.encoder.depths,
        arch.encoder.attention,
        arch.decoder.depths,
        arch.decoder.attention,
    )


def test_parts_that_clash_are_refused(demo: Shared):
    with pytest.raises(SpaceError, match="cannot share"):
        demo._keep("g_a.leaky_relu-trunk.head.weight", torch.zeros(1))


SIDE = """
[arch.{0}]
stem = "${0}_stem"
widths = [0, 24, 32, 64]
depths = [0, 0, 1, 1]
block = "depthwise"
kernel = 3
"""
STEMS = """
[vary]
encoder_stem = ["trunk16", "trunk8", "trunk4"]
decoder_stem = ["trunk8", "trunk4", "trunk4-render"]
[arch]
M = 48
hyper = 8
entropy = "mean-scale"
""" + "".join(SIDE.format(side) for side in ("encoder", "decoder"))


def smooth_pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(40, 3, 16, 16, generator=generator)
    return torch.nn.functional.interpolate(coarse, (128, 128), mode="bicubic").clamp(0, 1)


def test_every_encoder_begins_with_every_decoder_as_a_codec(tmp_path: Path):
    path = tmp_path / "stems.toml"
    path.write_text(STEMS)
    space = load_space(str(path))
    x = smooth_pictures()
    shared = Shared(space, (0.05,), x).eval()
    assert len(shared.largest) == 9
    with torch.no_grad():
        errors = [
            float(((shared.student(a).eval()(x[:8], torch.ones(8))["x_hat"] - x[:8]) ** 2).mean())
            for a in shared.largest
        ]
    assert max(errors) < 1.5 * min(errors)
    assert max(errors) < 0.1 * float(x.var())


@torch.no_grad()
def test_sides_of_the_same_projections_begin_alike_and_once(monkeypatch: pytest.MonkeyPatch):
    plain = Transform("trunk8", (0, 0, 32, 64), (0, 0, 1, 1), block="depthwise", kernel=3)
    gated = replace(plain, block="gated", kernel=5)
    first, second = (Student(Arch(s, s, 48, 8, "mean-scale")) for s in (plain, gated))
    common = Common()
    first.start_from(smooth_pictures(), common)
    monkeypatch.setattr(trunk, "_least_squares", None)  # what calls it now fails
    second.start_from(smooth_pictures(), common)
    for name, p in second.named_parameters():
        if name.startswith(("g_a.", "g_s.")) and ".blocks." not in name:
            assert p.equal(first.get_parameter(name)), name
    assert second.gain_y.log_gain.equal(first.gain_y.log_gain)
