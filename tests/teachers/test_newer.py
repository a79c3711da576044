"""CompressAI's models whose h_a lies inside their latent codec, as teachers from a checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.codec.arch import prim
from nas_kd.codec.cost import count
from nas_kd.codec.student import Student
from nas_kd.distillation.training import Run
from nas_kd.errors import TeacherError
from nas_kd.recipe import Recipe, Weights
from nas_kd.study.prepare import targets
from nas_kd.study.settings import Settings
from nas_kd.teachers.costs import teacher_costs
from nas_kd.teachers.subjects import decode, encode, subjects
from nas_kd.teachers.targets import TargetPool
from nas_kd.teachers.teacher import load_teacher
from nas_kd.teachers.zoo import load_member, newer_names

SMALL = "cheng2020-anchor-checkerboard"
"""The one that is small with few channels; the others have M = 320 in any case."""


def made(name):
    from compressai.registry import MODELS

    torch.manual_seed(0)
    model = MODELS[name](8).eval()
    with torch.no_grad():
        for part in model.g_a.modules():  # latents that are not all rounded to nothing
            if isinstance(part, torch.nn.Conv2d):
                part.weight *= 2
    return model


@pytest.fixture(scope="module")
def small():
    return made(SMALL)


@pytest.fixture
def checkpoint(small, tmp_path):
    torch.save({"state_dict": small.state_dict(), "epoch": 3}, tmp_path / f"{SMALL}.pth.tar")
    return tmp_path / f"{SMALL}.pth.tar"


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "pictures" / "noise.png")
    return str(tmp_path / "pictures")


def test_the_installed_ones_are_elic_and_a_checkerboard():
    assert newer_names() == [SMALL, "elic2022-official", "elic2022-chandelier"]


def check(model, file):
    """Found by its tensors; y and z are its own; encoder and decoder are its forward pass."""
    torch.manual_seed(1)
    x = torch.rand(1, 3, 64, 128)
    teacher = load_teacher(str(file), lmbda=0.01)
    with torch.no_grad():
        y, whole = model.g_a(x), model(x)["x_hat"]
        z = model.latent_codec["hyper"].h_a(y)
        assert all(map(torch.equal, teacher.latents(x, 1), (y, z)))
        assert all(map(torch.equal, teacher.outputs(x, 1), (whole, y, z)))
        assert teacher.latent_widths == (y.shape[1], z.shape[1])
        y_hat, z_hat = encode(model, x)
        assert y_hat.abs().max() >= 1
        assert torch.equal(decode(model, y_hat, z_hat), whole.clamp(0, 1))


def test_y_and_z_of_a_checkpoint_are_the_models_own_and_its_passes_its_forward_pass(
    small, checkpoint
):
    check(small, checkpoint)
    assert load_member(checkpoint).name == SMALL


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["elic2022-official", "elic2022-chandelier"])
def test_so_are_those_of_elic(name, tmp_path):
    model = made(name)
    torch.save(model.state_dict(), tmp_path / "mine.pth.tar")
    assert load_member(tmp_path / "mine.pth.tar").name == name
    check(model, tmp_path / "mine.pth.tar")


def test_the_decoder_has_all_of_the_latent_codec_but_its_analysis(small, checkpoint):
    cost = count(small, (1, 3, 64, 64))
    assert sum(cost.parts.values()) == cost.macs
    hyper = small.latent_codec["hyper"]
    conv = [part for part in hyper.h_a if isinstance(part, torch.nn.Conv2d)]
    sides = (4, 4, 2, 2, 1)  # of what these convolutions return
    by_hand = sum(p.weight.numel() * side**2 for p, side in zip(conv, sides, strict=True))
    assert cost.parts["h_a"] == by_hand
    inside = cost.parts["latent_codec"]
    assert cost.decoder_macs == cost.parts["g_s"] + inside
    assert cost.encoder_macs == cost.parts["g_a"] + inside + by_hand
    (told,) = teacher_costs(str(checkpoint))
    assert (told.M, told.N, told.decoder) == (8, 8, cost.decoder_macs / 4096e3)


def test_it_is_measured_and_evaluated_by_its_file(checkpoint, pictures):
    (one,) = subjects(str(checkpoint))
    assert one.arch == f"{SMALL}, N = 8"
    assert "likelihoods" in one.excluded
    words = ["eval", str(checkpoint), "--data", pictures, "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["bpp_est"]) == 1


def test_a_student_is_distilled_from_it(checkpoint, pictures, tmp_path):
    settings = Settings("s", "prim", crops=16, crop_size=64, data=pictures, eval_data=pictures)
    folder = targets(settings, load_teacher(str(checkpoint), lmbda=0.01), print, tmp_path)
    pool, weights = TargetPool(folder), Weights(kd_y=0.1, kd_z=0.1)
    student = Student(prim(8, 16), (0.01,))
    terms = Run(student, pool, Recipe(1), weights, pool.latent_widths).run()
    assert terms["kd_y"] > 0
    assert terms["kd_z"] > 0


def test_what_the_installed_compressai_lacks_is_refused_in_one_line(tmp_path):
    torch.save({"g_a.0.weight": torch.zeros(8, 3, 5, 5)}, tmp_path / "tcm.pth.tar")
    with pytest.raises(TeacherError, match="elic2022-chandelier, and CompressAI .* no others") as e:
        load_teacher(str(tmp_path / "tcm.pth.tar"), lmbda=0.01)
    assert "\n" not in str(e.value)


def test_its_lambda_has_to_be_said(checkpoint):
    with pytest.raises(TeacherError, match="give lmbda"):
        load_teacher(str(checkpoint))
