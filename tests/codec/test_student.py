"""The student: its oracle is CompressAI; its bitstreams are real; wide ones contain narrow ones."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from nas_kd.codec.arch import Arch, Transform, prim
from nas_kd.codec.compressai_light import GDN
from nas_kd.codec.search_space import load_space
from nas_kd.codec.shortcut import LinearAnalysis, LinearSynthesis
from nas_kd.codec.student import Student, anchors, slice_params
from nas_kd.supernet.from_teacher import name_there

from compressai.models import ScaleHyperprior  # isort: skip  (after nas_kd.codec.compressai_light: a light import)

FILES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.toml"))
LEAKY = Transform("conv", (8, 8, 8), activation="leaky_relu", kernel=3)
TRUNK = Transform("trunk4", (0, 24, 24), (0, 1, 1, 1), block="depthwise", kernel=3)
WIDE = Transform("trunk16", (0, 0, 0, 24), (0, 0, 0, 2), (False,) * 3 + (True,), "summed", kernel=3)
SHORT = Arch(TRUNK, replace(TRUNK, stem="trunk2", widths=(8, 16, 16)), M=48, hyper=8)


def _pictures(n: int, h: int = 64, w: int = 128, seed: int = 0) -> Tensor:
    """Smooth pictures with a little grain, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, h // 8, w // 8, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic", align_corners=False)
    return (x + 0.02 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def _student(arch: Arch, lmbdas: tuple[float, ...] | None = None) -> Student:
    torch.manual_seed(0)
    student = Student(arch) if lmbdas is None else Student(arch, lmbdas)
    student.start_from(_pictures(40))
    return student.eval()


def _bits(out: dict) -> float:
    return float(sum(-torch.log2(p).sum() for p in out["likelihoods"].values()))


# --- the oracle -------------------------------------------------------------------------------


def test_prim_at_one_level_is_compressais_scale_hyperprior():
    torch.manual_seed(1)
    theirs = ScaleHyperprior(16, 192).eval()
    ours = Student(prim(16), (0.01,)).eval()
    weights = dict(theirs.named_parameters())
    mine = dict(ours.named_parameters())
    assert {name_there(name) for name in mine} == set(weights)
    with torch.no_grad():
        for name, p in mine.items():
            p.copy_(weights[name_there(name)] * (1 if "quantiles" in name else 1.5))
            weights[name_there(name)].copy_(p)
        x = _pictures(2)
        a, b = ours(x), theirs(x)
    assert torch.equal(a["x_hat"], b["x_hat"])
    for part in ("y", "z"):
        assert torch.equal(a["likelihoods"][part], b["likelihoods"][part])


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_shortcut_is_a_convolution_and_its_transpose(layout):
    K, back = LinearAnalysis(24), LinearSynthesis(24)
    x = torch.rand(2, 3, 64, 96).contiguous(memory_format=layout)
    y = torch.randn(2, 24, 4, 6).contiguous(memory_format=layout)
    expected = torch.nn.functional.conv2d(x, K.weight, K.bias, stride=16)
    assert torch.allclose(K(x), expected, atol=1e-5)
    expected = torch.nn.functional.conv_transpose2d(y, back.weight, back.bias, stride=16)
    assert torch.allclose(back(y), expected, atol=1e-5)


# --- bitstreams -------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.thorough
def test_what_is_decoded_is_what_forward_computes(path: Path, largest: bool):
    student = _student(load_space(path).extreme(largest))
    student.update()
    x = _pictures(1, seed=5)
    gain = lambda level: 1.0 if student.gain_y is None else student.gain_y(level)[0]  # noqa: E731
    for level in range(1, student.levels + 1):
        with torch.no_grad():
            expected = student(x, level)["x_hat"].clamp(0, 1)
        coded = student.compress(x, level)
        assert len(coded["strings"]) == student.y_parts + 1
        decoded = student.decompress(coded["strings"], coded["shape"], level)
        assert torch.equal(decoded["y_hat"], coded["y_hat"])
        # Every symbol in a string, as a file of version 2 has them.
        y = student.analysis(x)
        full = student.coder.encode(y, student.h_a(y), level, quiet=0)
        x_hat = student.synthesis(full.y_hat).clamp(0, 1)
        # Means are rounded to 16 bits for the coder: a quarter of an 8-bit step in the picture, except where a
        # latent lies so near the middle of two symbols that it, and what is predicted from it, is another.
        steps = (full.y_hat - student.rounded(x, torch.tensor([float(level)]))[0]).abs() * gain(
            level
        )
        other = steps > 0.1
        assert other.float().mean() < 0.005
        assert other.any() or not ((x_hat - expected).abs() > 1e-3).any()


def test_two_pictures_are_coded_apart():
    student = _student(replace(SHORT, entropy="checkerboard"))
    student.update()
    x = _pictures(2, seed=6)
    both = student.compress(x, 3)
    for i in range(2):
        alone = student.compress(x[i : i + 1], 3)
        assert [s[0] for s in alone["strings"]] == [s[i] for s in both["strings"]]


@pytest.mark.parametrize("entropy", ["scale", "mean-scale", "checkerboard", "dual"])
def test_real_bits_are_close_to_the_estimate(entropy: str):
    student = _student(replace(SHORT, entropy=entropy))
    if entropy == "scale":
        # Untrained it predicts zero, where the estimate is a bound and real bits are escapes.
        torch.nn.init.ones_(student.entropy_parameters.scales.bias)
    student.update()
    x = _pictures(1, seed=7)
    for level in (1, 3.5, 6):
        with torch.no_grad():
            estimate = _bits(student(x, level))
        real = 8 * sum(len(s[0]) for s in student.compress(x, level)["strings"])
        assert abs(real - estimate) <= 0.05 * estimate + 600


@torch.no_grad()
def test_rate_rises_with_level_and_fractions_lie_between():
    student, x = _student(SHORT), _pictures(2, seed=8)
    bits = [_bits(student(x, level)) for level in (1, 1.5, 2, 2.25, 3, 4, 5.9, 6)]
    assert bits == sorted(bits)
    assert len(set(bits)) == len(bits)


@torch.no_grad()
def test_levels_of_a_batch_are_those_of_its_pictures():
    student, x = _student(SHORT), _pictures(2, seed=8)
    both = student(x, torch.tensor([2.0, 5.0]))["x_hat"]
    for i, level in enumerate((2.0, 5.0)):
        assert torch.allclose(both[i : i + 1], student(x[i : i + 1], level)["x_hat"], atol=1e-6)


def test_the_checkerboard_covers_every_place_once():
    half = anchors(torch.zeros(1, 2, 3, 4))
    assert half.tolist()[0] == [True, False, True, False]
    assert half.tolist()[1] == [False, True, False, True]


@torch.no_grad()
def test_the_first_half_sees_nothing_of_y():
    """Entropy parameters at anchors do not move with y; the others move with the anchors only."""
    student = _student(replace(SHORT, entropy="checkerboard"))
    features, y = torch.randn(1, 8, 4, 8), torch.randn(1, 48, 4, 8)
    gain, inverse, _, _ = student._gains(3)
    half = anchors(y)
    first = student._entropy_parameters(features, y, gain, inverse)
    moved = student._entropy_parameters(features, y + 9 * ~half, gain, inverse)
    other = student._entropy_parameters(features, y + 9 * half, gain, inverse)
    for a, b, c in zip(first, moved, other, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[..., half], c[..., half])
        assert not torch.allclose(a[..., ~half], c[..., ~half])


# --- slices of a wide student -----------------------------------------------------------------


def _arch(width: int, M: int, hyper: int, side: Transform = LEAKY, **rest) -> Arch:
    stages = 4 if side.stem == "trunk16" else len(side.widths)
    side = replace(side, widths=(width,) * stages)
    return Arch(side, side, M=M, hyper=hyper, **rest)


@torch.no_grad()
@pytest.mark.parametrize("entropy", ["scale", "mean-scale", "checkerboard", "dual"])
def test_a_narrow_student_holds_and_runs_on_slices(entropy: str):
    side = Transform(depths=(0, 1, 0), attention=(False, False, True), block="depthwise", kernel=5)
    wide = _student(_arch(12, 24, 8, side, entropy=entropy))
    narrow = _student(_arch(8, 16, 6, side, entropy=entropy))
    slices = slice_params(dict(wide.named_parameters()), narrow)
    x = _pictures(1)
    borrowed = functional_call(narrow, slices, (x, 2.0))
    untouched = narrow(x, 2.0)["x_hat"]
    for name, p in narrow.named_parameters():
        p.copy_(slices[name])
    own = narrow(x, 2.0)
    assert torch.equal(own["x_hat"], borrowed["x_hat"])
    assert not torch.equal(own["x_hat"], untouched)


@torch.no_grad()
@pytest.mark.parametrize("entropy", ["scale", "mean-scale", "checkerboard", "dual"])
@pytest.mark.parametrize(
    "side", [replace(LEAKY, depths=(1, 0, 1)), TRUNK, WIDE], ids=["conv", "trunk", "trunk16"]
)
def test_a_wide_student_whose_extra_channels_lead_nowhere_is_the_narrow_one(
    entropy: str, side: Transform
):
    wide = _student(_arch(12, 24, 8, side, entropy=entropy))
    narrow = _student(_arch(8, 16, 6, side, entropy=entropy))
    _cut_extra_channels(wide, narrow)
    slices = slice_params(dict(wide.named_parameters()), narrow)
    x = _pictures(1)
    a, b = functional_call(narrow, slices, (x, 2.0)), wide(x, 2.0)
    assert torch.allclose(a["x_hat"], b["x_hat"], atol=1e-5)
    assert torch.allclose(a["y"], b["y"][:, :16], atol=1e-5)
    assert torch.allclose(a["z"], b["z"][:, :6], atol=1e-5)
    assert torch.allclose(a["likelihoods"]["y"], b["likelihoods"]["y"][:, :16], atol=1e-4)


def _cut_extra_channels(wide: Student, narrow: Student) -> None:
    """Zero what convolutions read from channels that the narrow student lacks."""
    there = dict(narrow.named_modules())
    for name, module in wide.named_modules():
        if isinstance(module, torch.nn.ConvTranspose2d):
            module.weight[there[name].in_channels :] = 0
        elif isinstance(module, torch.nn.Conv2d) and module.groups == 1:
            module.weight[:, there[name].in_channels :] = 0


def test_kernels_of_three_and_five_share_their_centre():
    wide = dict(_student(_arch(8, 16, 6, replace(LEAKY, kernel=5))).named_parameters())
    slices = slice_params(wide, _student(_arch(8, 16, 6)))
    for name in ("g_a.head.weight", "g_s.stages.1.resample.weight"):
        assert torch.equal(slices[name], wide[name][:, :, 1:4, 1:4])


@torch.no_grad()
def test_the_shared_centre_sits_at_the_same_place():
    """With an empty rim the larger kernel computes what its centre does, up- or downwards."""
    wide = _student(_arch(8, 16, 6, replace(LEAKY, kernel=5)))
    narrow = _student(_arch(8, 16, 6))
    rim = torch.ones(5, 5)
    rim[1:4, 1:4] = 0
    for p in wide.parameters():
        if p.shape[-2:] == (5, 5):
            p.mul_(1 - rim)
    x = _pictures(1)
    slices = slice_params(dict(wide.named_parameters()), narrow)
    ours = functional_call(narrow, slices, (x, 2.0))["x_hat"]
    assert torch.allclose(ours, wide(x, 2.0)["x_hat"], atol=1e-6)


STEMS = ("conv", "unshuffle2", "unshuffle4", "trunk2", "trunk4", "trunk16")


PAIRS = [pytest.param(wide, narrow) for wide in STEMS for narrow in STEMS]


@pytest.mark.parametrize(("wide_stem", "narrow_stem"), PAIRS)
def test_a_student_of_another_stem_is_not_a_slice(wide_stem: str, narrow_stem: str):
    wide = _arch(64, 16, 6, replace(LEAKY, stem=wide_stem))
    narrow = Student(_arch(8, 16, 6, replace(LEAKY, stem=narrow_stem)))
    params = dict(Student(wide).named_parameters())
    if wide_stem == narrow_stem:
        assert slice_params(params, narrow).keys() == dict(narrow.named_parameters()).keys()
        return
    with pytest.raises(KeyError):
        slice_params(params, narrow)


@pytest.mark.parametrize("change", [{"entropy": "checkerboard"}])
def test_a_student_with_a_part_more_is_not_a_slice(change: dict):
    params = dict(Student(_arch(8, 16, 6)).named_parameters())
    with pytest.raises(KeyError):
        slice_params(params, Student(_arch(8, 16, 6, **change)))


# --- the trunk --------------------------------------------------------------------------------


@torch.no_grad()
def test_an_untrained_trunk_reconstructs_better_at_every_higher_level():
    x = _pictures(40)
    student = _student(replace(SHORT, M=192, encoder=replace(TRUNK, widths=(0, 48, 96))))
    psnr = [
        -10 * math.log10(float((student(x, level)["x_hat"].clamp(0, 1) - x).square().mean()))
        for level in range(1, 7)
    ]
    assert psnr == sorted(psnr)
    assert psnr[-1] - psnr[0] > 2
    assert psnr[0] > 20


@pytest.mark.thorough
@torch.no_grad()
def test_with_room_for_everything_an_untrained_trunk_loses_nothing_but_by_rounding():
    full = replace(TRUNK, widths=(12, 48, 192))
    patches = replace(WIDE, widths=(0, 0, 0, 768))
    x = _pictures(60)
    render = replace(patches, stem="trunk4-render", widths=(0, 48, 0, 768), depths=(0, 1, 0, 0))
    for encoder, decoder in (
        (replace(full, stem="trunk2"), full),
        (patches, patches),
        (patches, render),
    ):
        student = _student(Arch(encoder, decoder, M=768, hyper=8))
        assert torch.allclose(student.synthesis(student.analysis(x)), x, atol=2e-3)


@torch.no_grad()
def test_latents_of_an_untrained_trunk_have_unit_variance_and_the_order_of_energy():
    student, x = _student(SHORT), _pictures(40)
    y = student.analysis(x)
    assert torch.allclose(y.std((0, 2, 3)), torch.ones(48), atol=0.02)
    steps = student.gain_y.log_gain[-1]
    assert steps.tolist() == sorted(steps.tolist(), reverse=True)


@torch.no_grad()
def test_channels_of_an_untrained_trunk_are_as_loud_as_roots_of_their_components(monkeypatch):
    x = _pictures(60)
    arch = Arch(WIDE, WIDE, M=24, hyper=8)
    student = _student(arch)
    found = next(iter(student.g_a.stem.values()))(x).std((0, 2, 3))
    monkeypatch.setattr("nas_kd.codec.trunk.EVENED", 0.0)
    plain = _student(arch)
    components = next(iter(plain.g_a.stem.values()))(x).std((0, 2, 3))
    assert components[0] > 5 * components[-1]
    assert torch.allclose(found, components**0.5, rtol=0.1)
    again = [each.synthesis(each.analysis(x)) for each in (student, plain)]
    assert torch.allclose(*again, atol=1e-3)


@torch.no_grad()
def test_blocks_of_an_untrained_trunk_are_the_identity():
    bare = replace(TRUNK, depths=(0, 0, 0, 0))
    x = _pictures(4)
    gates = (False, True, True)
    for block in ("residual", "depthwise", "gated", "summed"):
        side = replace(TRUNK, block=block, attention=gates, activation="relu6")
        with_blocks, without = (
            _student(replace(SHORT, encoder=s, decoder=s)) for s in (side, bare)
        )
        y = with_blocks.analysis(x)
        assert torch.equal(y, without.analysis(x))
        assert torch.equal(with_blocks.synthesis(y), without.synthesis(y))


@torch.no_grad()
def test_a_narrow_decoder_starts_as_what_it_can_make_of_a_wide_encoders_latents():
    """No worse than if it had to do with latents of an encoder as narrow as itself."""
    x = _pictures(60)
    wide, narrow = replace(TRUNK, widths=(0, 48, 96)), replace(TRUNK, widths=(0, 8, 16))
    error = {
        encoder.widths: float(
            (_student(Arch(encoder, narrow, M=48, hyper=8))(x, 6)["x_hat"] - x).square().mean()
        )
        for encoder in (wide, narrow)
    }
    assert error[wide.widths] <= 1.02 * error[narrow.widths]


def test_gdn_parameters_are_sliced_to_a_valid_gdn():
    wide = dict(_student(_arch(12, 16, 6, Transform())).named_parameters())
    narrow = _student(_arch(8, 16, 6, Transform()))
    slices = slice_params(wide, narrow)
    assert isinstance(narrow.g_a.stages["0"].act, GDN)
    assert torch.equal(slices["g_a.stages.0.act.gamma"], wide["g_a.stages.0.act.gamma"][:8, :8])
