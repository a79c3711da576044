"""Teachers from files in the format that CompressAI serves, built here from untrained models."""

import argparse
import json
import shutil
import sys
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from zoo_file import serve, untrained

from nas_kd.cli.main import main
from nas_kd.cluster.launch import Machine, search
from nas_kd.cluster.worker import Order, trial_alone
from nas_kd.codec.arch import load_arch
from nas_kd.codec.student import LMBDAS
from nas_kd.distillation.loss import Weights
from nas_kd.errors import StudyError, TeacherError
from nas_kd.study.prepare import prepare
from nas_kd.study.single import distill_alone
from nas_kd.study.study import Settings, Study, open_study
from nas_kd.teachers.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teachers.teacher import load_teacher
from nas_kd.teachers.zoo import load_member

ARCH = """
[arch]
M = 16
hyper = 8
entropy = "scale"
[arch.encoder]
stem = "conv"
widths = [8, 8, 8]
depths = [0, 0, 0]
attention = [false, false, false]
block = "residual"
activation = "gdn"
kernel = 5
[arch.decoder]
stem = "conv"
widths = [8, 8, 8]
depths = [0, 0, 0]
attention = [false, false, false]
block = "residual"
activation = "gdn"
kernel = 5
"""


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    rows, columns = np.mgrid[0:96, 0:128]
    red = 128 + 90 * np.sin(rows / 9.0) * np.cos(columns / 13.0)
    (tmp_path / "pictures").mkdir()
    picture = np.stack([red, red[::-1], 255 - red], axis=2).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "pictures" / "waves.png")
    return str(tmp_path / "pictures")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Two small models: quality 1 and, wider, quality 5."""
    serve(tmp_path / "zoo", "bmshj2018-hyperprior-1", untrained("bmshj2018-hyperprior", 8, 16))
    serve(tmp_path / "zoo", "bmshj2018-hyperprior-5", untrained("bmshj2018-hyperprior", 12, 24))
    return tmp_path / "zoo"


def test_a_zoo_file_becomes_targets(tmp_path: Path, pictures: str):
    """The zoo's own quality 1, untrained: the targets are its outputs."""
    model = untrained("bmshj2018-hyperprior", 128, 192)
    folder = tmp_path / "zoo"
    serve(folder, "bmshj2018-hyperprior-1", model)
    teacher = load_teacher("bmshj2018-hyperprior:1", str(folder))
    assert (teacher.levels, teacher.lmbdas, teacher.latent_widths) == (1, (0.0018,), (192, 128))

    recipe = PoolRecipe(pictures, crops=2, size=64, x_hat=True)
    pool = TargetPool(target_pool(tmp_path / "cache", teacher, recipe))
    one = torch.ones(2, dtype=torch.long)
    batch = pool.batch(torch.arange(2), one, one * 0.0018, Weights(0.4, 0.3, 0.3, "paper"))
    with torch.no_grad():
        y = model.eval().g_a(batch.x)
        assert torch.equal(batch.y_T, y.half().float())
        assert torch.equal(batch.z_T, model.h_a(y.abs()).half().float())
        x_hat = (model(batch.x)["x_hat"].clamp(0, 1) * 255).round() / 255
    assert torch.allclose(batch.x_hat_T, x_hat, atol=1e-6)


@pytest.mark.thorough
def test_a_student_is_distilled_from_a_zoo_file(
    zoo: Path, tmp_path: Path, pictures: str, monkeypatch, capsys
):
    (tmp_path / "arch.toml").write_text(ARCH)
    words = ["distill", "--arch", "arch.toml", "--out", "student", "--json"]
    keys = {"teacher": "bmshj2018-hyperprior:1", "weights": "zoo", "steps": 2, "crops": 16}
    keys |= {"data": pictures, "eval_data": pictures}
    words += [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nas-kd", *words])
    with pytest.raises(SystemExit, match="0"):
        main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["reason"] is None
    bpp, quality = figures["rd"]["bpp_est"][0], figures["rd"]["psnr_db"][0]
    assert figures["rd_cost"] == pytest.approx(bpp + 0.0018 * 255**2 * 10 ** (-quality / 10))
    assert (tmp_path / "student" / "student.safetensors").is_file()


def test_every_quality_together_fills_narrow_latents_with_nothing(tmp_path: Path, pictures: str):
    """The zoo's qualities differ in width; what a narrow one lacks is NaN in the targets."""
    for q in range(1, 7):
        widths = (8, 16) if q < 6 else (12, 24)
        stem = f"bmshj2018-hyperprior-{q}"
        serve(tmp_path / "zoo", stem, untrained("bmshj2018-hyperprior", *widths))
    teacher = load_teacher("bmshj2018-hyperprior", str(tmp_path / "zoo"))
    assert (teacher.lmbdas, teacher.latent_widths) == (LMBDAS, (24, 12))
    recipe = PoolRecipe(pictures, crops=2, size=64, x_hat=True)
    pool = TargetPool(target_pool(tmp_path / "cache", teacher, recipe))
    level = torch.tensor([1, 6])
    batch = pool.batch(torch.arange(2), level, level * 0.01, Weights(0.0, 1.0, 1.0))
    assert batch.y_T[0, 16:].isnan().all()
    assert batch.z_T[0, 8:].isnan().all()
    assert not batch.y_T[0, :16].isnan().any()
    assert not batch.y_T[1].isnan().any()


@pytest.mark.parametrize(
    ("name", "stem", "widths"),
    [
        ("cheng2020-anchor", "cheng2020-anchor-4", (8,)),
        ("cheng2020-attn", "cheng2020_attn-mse-4", (8,)),
        ("mbt2018", "mbt2018-4", (8, 12)),
        ("mbt2018-mean", "mbt2018-mean-4", (8, 12)),
    ],
)
def test_every_structure_loads_by_name_and_by_file(tmp_path: Path, name, stem, widths):
    file = serve(tmp_path / "zoo", stem, model := untrained(name, *widths))
    x = torch.rand(1, 3, 64, 64)
    by_name, by_file = load_teacher(f"{name}:4", str(tmp_path / "zoo")), load_teacher(str(file))
    for teacher in (by_name, by_file):
        assert teacher.lmbdas == (0.0130,)
        x_hat, y, z = teacher.outputs(x, 1)
        with torch.no_grad():
            assert torch.equal(y, model.g_a(x))
            assert torch.equal(z, model.h_a(model.g_a(x)))
        assert all(map(torch.equal, teacher.latents(x, 1), (y, z)))
        assert x_hat.shape == x.shape
    assert by_name.fingerprint == by_file.fingerprint


@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_of_training_says_its_structure_by_its_keys(tmp_path: Path, nested: bool):
    model = untrained("mbt2018-mean", 8, 12)
    state = {f"module.{k}": v for k, v in model.state_dict().items()}  # as DataParallel names them
    file = tmp_path / "checkpoint_best.pth.tar"
    torch.save({"epoch": 3, "state_dict": state, "loss": 1.5} if nested else state, file)
    assert load_member(file).name == "mbt2018-mean"
    assert load_teacher(str(file), lmbda=0.02).lmbdas == (0.02,)
    with pytest.raises(TeacherError, match="does not say for which lambda .* give lmbda"):
        load_teacher(str(file))


def test_a_students_lambda_replaces_that_of_a_one_quality_teacher(zoo: Path):
    teacher = load_teacher("bmshj2018-hyperprior:5", str(zoo), lmbda=0.0035)
    assert teacher.lmbdas == (0.0035,)
    for lmbda in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(TeacherError, match="must be positive"):
            load_teacher("bmshj2018-hyperprior:5", str(zoo), lmbda=lmbda)
    with pytest.raises(TeacherError, match="has 6 levels, each with its own"):
        load_teacher("mini", lmbda=0.01)


def test_two_teachers_are_one_with_the_others_hyper_latents(zoo: Path):
    spec, spec_z = "bmshj2018-hyperprior:5", "bmshj2018-hyperprior:1"
    both = load_teacher(spec, str(zoo), spec_z=spec_z)
    d, r = load_teacher(spec, str(zoo)), load_teacher(spec_z, str(zoo))
    x = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(
        both.outputs(x, 1), (*d.outputs(x, 1)[:2], r.outputs(x, 1)[2]), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert all(map(torch.equal, both.latents(x, 1), both.outputs(x, 1)[1:]))
    assert all(map(torch.equal, d.latents(x, 1), d.outputs(x, 1)[1:]))  # z is made of |y| here
    assert both.lmbdas == d.lmbdas
    assert both.latent_widths == (24, 8)
    assert both.fingerprint not in (d.fingerprint, r.fingerprint)
    with pytest.raises(TeacherError, match="has 6 levels and the teacher"):
        load_teacher(spec, str(zoo), spec_z="mini")


@pytest.mark.thorough
def test_a_study_with_two_teachers_trains_its_whole_grid_and_then_rests(
    zoo: Path, pictures: str, tmp_path: Path, monkeypatch
):
    """The paper's second equation over a grid, judged by its own R-D cost; trial by trial, without Ray."""
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        name="s",
        space="prim",
        teacher="bmshj2018-hyperprior:5",
        init="scratch",
        teacher_z="bmshj2018-hyperprior:1",
        weights="zoo",
        objectives=("rd_cost", "flops"),
        steps=1,
        batch=2,
        crops=16,
        crop_size=64,
        data=pictures,
        eval_data=pictures,
        kd_x=0.2,
        kd_y=0.2,
        kd_z=0.2,
        form="paper",
        grid={"N": [16, 32]},
    )
    study = Study(settings)
    teacher = load_teacher(*settings.teacher_spec)
    prepared = prepare(study, teacher, lambda kind, detail: None)
    while (asked := study.ask(study.affordable(None))) is not None:
        order = Order(*asked, prepared)
        study.tell(asked[0], trial_alone(order, "cpu"))
    again = open_study("s")
    assert again.settings == settings
    assert [t.params["N"] for t in again.trials] == [16, 32]
    for trial in again.trials:
        assert trial.values == [trial.user_attrs["rd_cost"], trial.user_attrs["cost"]["macs"]]
    assert again.ask(again.affordable(99)) is None


def test_a_bd_rate_is_not_asked_of_one_level(zoo: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(name="s", space="prim", teacher="bmshj2018-hyperprior:1", weights=str(zoo))
    with pytest.raises(StudyError, match="1 level, and a BD-rate needs 4; take rd_cost"):
        search(settings, 1, Machine(1), lambda kind, detail: None)
    assert not (tmp_path / "studies").exists()


def _damage(file: Path, how: str) -> Path:
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif how == "renamed":
        return file.rename(file.with_name("bmshj2018-hyperprior-1-00000000.pth.tar"))
    return file


@pytest.mark.parametrize("how", ["truncated", "renamed"])
def test_a_file_whose_hash_is_not_that_of_its_name_is_refused(zoo: Path, how: str):
    file = _damage(next(zoo.glob("*-1-*")), how)
    for spec in ("bmshj2018-hyperprior:1", str(file)):
        with pytest.raises(
            TeacherError, match=r"its sha256 begins with [0-9a-f]{8}, its name says"
        ) as e:
            load_teacher(spec, str(zoo))
        assert (e.value.exit_code, "\n" in str(e.value)) == (2, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be loaded as weights"),
        (b"not weights at all", "cannot be loaded as weights"),
        (None, "cannot be loaded as weights"),  # cut in the middle
        ([1, 2], "holds no state dict"),
        ({"g_a": 3}, "holds no state dict"),
        ({"g_a.0.weight": torch.zeros(2)}, "tensors do not fit bmshj2018-hyperprior or "),
    ],
)
def test_a_file_that_holds_no_codec_is_refused(tmp_path: Path, content, message: str):
    file = tmp_path / "odd.pth.tar"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        model = untrained("bmshj2018-hyperprior", 8, 16)
        torch.save(model.state_dict() if content is None else content, file)
        if content is None:
            file.write_bytes(file.read_bytes()[:20000])
    message = message.replace("fit bmshj2018", "fit bmshj2018-factorized or bmshj2018")
    with pytest.raises(TeacherError, match=message) as caught:
        load_teacher(str(file), lmbda=0.01)
    assert "\n" not in str(caught.value)


class Trap:
    """Runs code in whoever unpickles it."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


class Kept(dict):
    """What a trainer of one's own keeps beside the weights."""


def test_code_in_a_file_is_not_run(tmp_path: Path):
    (tmp_path / "there").touch()
    state = untrained("bmshj2018-hyperprior", 8, 16).state_dict()
    copies = Trap(shutil.copyfile, str(tmp_path / "there"), str(tmp_path / "sprung"))
    touches = Trap(Path.touch, tmp_path / "sprung")
    for held, says in (
        ({"state_dict": touches}, "cannot be left out"),
        ({"state_dict": copies}, "holds no state dict"),
        ({"state_dict": state, "other": Kept(a=1)}, "cannot be left out .*; save its state dict"),
        ({"state_dict": state, "other": copies}, None),
    ):
        torch.save(held, tmp_path / "trap.pth.tar")
        with pytest.raises(TeacherError, match=says) if says else nullcontext():
            load_teacher(str(tmp_path / "trap.pth.tar"), lmbda=0.01)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"args": argparse.Namespace(lmbda=0.01), "best": Path("best.pth")},
        {"loss": np.float64(1.2), "seen": np.arange(3), "when": datetime(2026, 1, 1)},
    ],
)
def test_whole_weights_are_read_whatever_is_in_their_names_or_beside_them(
    tmp_path: Path, prefix: str, beside: dict
):
    model = untrained("bmshj2018-hyperprior", 8, 16)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state} | beside, tmp_path / "own.pth.tar")
    teacher = load_teacher(str(tmp_path / "own.pth.tar"), lmbda=0.01)
    for name, tensor in teacher.members[0].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_at_load(tmp_path: Path, value: float):
    state = untrained("bmshj2018-hyperprior", 8, 16).state_dict()
    state["g_a.0.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "own.pth.tar")
    with pytest.raises(TeacherError, match="own.pth.tar: g_a.0.weight holds NaN or infinite"):
        load_teacher(str(tmp_path / "own.pth.tar"), lmbda=0.01)


def test_another_architecture_under_a_zoo_name_is_refused(tmp_path: Path):
    serve(tmp_path / "zoo", "mbt2018-mean-1", untrained("bmshj2018-hyperprior", 8, 16))
    with pytest.raises(TeacherError, match="its tensors do not fit mbt2018-mean; give another"):
        load_teacher("mbt2018-mean:1", str(tmp_path / "zoo"))


def test_missing_weights_name_the_ways_out_and_two_candidates_are_not_guessed_among(
    zoo: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "nas-kd",
            "search",
            "--teacher",
            "mbt2018:2",
            "--set",
            f"weights={zoo}",
            "--data",
            "builtin",
        ],
    )
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--objectives", "rd_cost"])
    with pytest.raises(SystemExit) as ended:
        main()
    line = capsys.readouterr().err
    assert (ended.value.code, line.count("\n")) == (2, 1)
    for way in (
        "--set weights=DIR",
        "nas-kd teacher train",
        "--teacher mini",
        "mbt2018-2-HASH.pth.tar",
    ):
        assert way in line
    serve(zoo, "bmshj2018-hyperprior-1", untrained("bmshj2018-hyperprior", 9, 16))
    with pytest.raises(TeacherError, match="several files for bmshj2018-hyperprior 1"):
        load_teacher("bmshj2018-hyperprior:1", str(zoo))
    with pytest.raises(TeacherError, match="weights nowhere: no such folder"):
        load_teacher("bmshj2018-hyperprior:1", "nowhere")


def test_a_model_without_hyper_latents_is_refused(tmp_path: Path):
    file = serve(
        tmp_path / "zoo", "bmshj2018-factorized-1", untrained("bmshj2018-factorized", 8, 16)
    )
    for spec in ("bmshj2018-factorized:1", str(file)):
        with pytest.raises(TeacherError, match="no hyper-latents"):
            load_teacher(spec, str(tmp_path / "zoo"))


@pytest.mark.thorough
def test_the_paper_form_without_adapters_reaches_a_student(
    zoo: Path, pictures: str, tmp_path: Path
):
    """Latents of equal width in form paper-kld, alone: steps are taken and judged by the R-D cost."""
    (tmp_path / "arch.toml").write_text(ARCH)
    settings = Settings(
        name="alone",
        space="demo",
        teacher="bmshj2018-hyperprior:1",
        weights=str(zoo),
        init="scratch",
        steps=2,
        crops=16,
        crop_size=64,
        data=pictures,
        eval_data=pictures,
        kd_x=0.2,
        kd_y=0.2,
        form="paper-kld",
    )
    figures = distill_alone(settings, load_arch(tmp_path / "arch.toml"), tmp_path / "out")
    assert figures["rd_cost"] > 0
