import hashlib
from dataclasses import replace

import pytest
import torch

from nas_kd.codec.arch import prim
from nas_kd.codec.search_space import SearchSpace, load_space
from nas_kd.codec.student import Student
from nas_kd.data.images import crop_pool, open_images
from nas_kd.distillation.loss import rate_bpp
from nas_kd.errors import SpaceError
from nas_kd.study.prepare import prepare
from nas_kd.study.study import Settings, Study
from nas_kd.supernet.channel_order import ordered
from nas_kd.supernet.from_teacher import (
    Inherited,
    as_student,
    inherit,
    is_family,
    load_inherited,
    require_slices,
)
from nas_kd.teachers.teacher import HybridTeacher, VariableRateTeacher, load_teacher

from compressai.models import ScaleHyperprior  # isort: skip  (after nas_kd.codec.compressai_light: a light import)


@pytest.fixture(scope="module")
def zoo_file(tmp_path_factory):
    return zoo_model(tmp_path_factory.mktemp("zoo"), 16, 24)


def zoo_model(folder, N, M):
    """An untrained zoo model, as the zoo serves files."""
    torch.manual_seed(2)
    file = folder / "model.pth.tar"
    torch.save(ScaleHyperprior(N, M).state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    return file.rename(file.with_name(f"bmshj2018-hyperprior-5-{digest}.pth.tar"))


def space_of(*widths):
    template = prim(16, 24).to_json()
    for side in ("encoder", "decoder"):
        template[side]["widths"] = ["$N"] * 3
    return SearchSpace("narrow", {"N": tuple(widths)}, template | {"hyper": "$N"})


def test_a_zoo_hyperprior_is_one_of_our_students(zoo_file):
    teacher = load_teacher(str(zoo_file))
    ours = as_student(teacher).eval()
    x = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = teacher.members[0](x), ours(x)
    assert torch.equal(expected["x_hat"], found["x_hat"])
    assert torch.equal(expected["likelihoods"]["y"], found["likelihoods"]["y"])


def test_what_is_written_is_the_teacher_in_order_and_is_written_once(zoo_file, tmp_path):
    teacher = load_teacher(str(zoo_file))
    folder = inherit(tmp_path, teacher)
    written = (folder / "student.safetensors").stat().st_mtime_ns
    assert inherit(tmp_path, teacher) == folder
    assert (folder / "student.safetensors").stat().st_mtime_ns == written
    expected = dict(ordered(as_student(teacher)).named_parameters())
    student = load_inherited(folder).student(prim(8, 24))
    for name, p in student.named_parameters():
        if "quantiles" not in name:
            leading = tuple(slice(0, n) for n in p.shape)
            assert torch.equal(p, expected[name][leading]), name


@pytest.mark.parametrize("lost", ["arch.json", "student.safetensors"])
def test_half_of_what_is_written_is_written_again(zoo_file, tmp_path, lost):
    teacher = load_teacher(str(zoo_file))
    folder = inherit(tmp_path, teacher)
    (folder / lost).unlink()
    assert inherit(tmp_path, teacher) == folder
    assert load_inherited(folder).student(prim(8, 24)).arch == prim(8, 24)


def test_what_another_version_wrote_is_not_taken(zoo_file, tmp_path, monkeypatch):
    teacher = load_teacher(str(zoo_file))
    before = inherit(tmp_path, teacher)
    monkeypatch.setattr("nas_kd.supernet.from_teacher.FORMAT", 99)
    assert inherit(tmp_path, teacher) != before


def test_a_teacher_of_another_family_is_refused_and_says_what_to_do(zoo_file):
    hybrid = HybridTeacher(load_teacher(str(zoo_file)), load_teacher(str(zoo_file)))
    with pytest.raises(SpaceError, match="one quality of .*--set init=shared"):
        as_student(hybrid)


def test_archs_wider_than_the_teacher_are_refused_and_the_error_says_what_to_do(zoo_file):
    teacher = load_teacher(str(zoo_file))
    require_slices(space_of(8, 16).corners(True), teacher)
    with pytest.raises(SpaceError, match="no part of the teacher's .*--set init=shared"):
        require_slices(space_of(8, 32).corners(True), teacher)
    require_slices(load_space("demo").corners(True), load_teacher("mini"))


@pytest.mark.thorough
def test_of_a_grid_only_its_own_archs_need_be_parts_of_the_teacher(tmp_path, monkeypatch):
    """The space prim goes up to 128 channels; a narrower teacher serves a grid of narrower students."""
    monkeypatch.chdir(tmp_path)
    file = zoo_model(tmp_path, 16, 192)
    asked = {"objectives": ("rd_cost", "flops"), "init": "teacher", "crops": 16, "crop_size": 64}
    for grid, fits in (((16,), True), ((16, 32), False)):
        settings = Settings(f"grid{len(grid)}", "prim", grid={"N": grid}, **asked)
        study, teacher = Study(settings), load_teacher(str(file))
        if fits:
            shared = prepare(study, teacher, print).shared
            assert shared is not None
            assert (shared / "student.safetensors").is_file()
        else:
            with pytest.raises(SpaceError, match="no part of the teacher's"):
                prepare(study, teacher, print)


def test_slices_of_a_variable_rate_teacher_are_the_teacher_where_nothing_is_cut():
    torch.manual_seed(3)
    wide = Student(prim(8, 16))
    same = Inherited(VariableRateTeacher("own", wide).student).student(wide.arch)
    for name, p in same.named_parameters():
        assert torch.equal(p, wide.get_parameter(name))
    require_slices(load_space("demo").corners(True), load_teacher("mini"))
    with pytest.raises(SpaceError, match="no part"):
        Inherited(wide).student(replace(wide.arch, entropy="mean-scale"))


def test_mini_is_the_family_of_demo_and_of_no_other_space(zoo_file):
    mini = load_teacher("mini")
    assert is_family(mini, load_space("demo"))
    assert not is_family(mini, load_space("prim"))
    assert not is_family(load_teacher(str(zoo_file)), load_space("prim"))


@pytest.mark.thorough
@torch.no_grad()
def test_slices_of_the_family_cost_less_than_a_linear_codec_of_as_many_channels():
    mini, demo = load_teacher("mini"), load_space("demo")
    pictures = open_images("builtin", "eval").images
    x = torch.stack([torch.from_numpy(i[64:192, 64:192].copy()) for i in pictures])
    x = x.permute(0, 3, 1, 2).float() / 255
    crops = torch.from_numpy(crop_pool(open_images("builtin", "train", 0), 128, 128, 0)) / 255
    for arch in (demo.extreme(True), demo.extreme(False)):
        alone = Student(arch, mini.lmbdas).eval()
        alone.start_from(crops)
        costs = []
        for codec in (Inherited(mini.student).student(arch).eval(), alone):
            out = codec(x, torch.full((len(x),), 3.0))
            rate = rate_bpp(out["likelihoods"], x[0, 0].numel()).mean()
            distortion = (out["x_hat"].clamp(0, 1) - x).square().mean()
            costs.append(float(rate + mini.lmbdas[2] * 255**2 * distortion))
        assert costs[0] < 0.9 * costs[1]
