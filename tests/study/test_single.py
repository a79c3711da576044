import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.cluster.worker import Order, trial_alone
from nas_kd.codec.arch import load_arch
from nas_kd.codec.checkpoint import load_student, weights_digest
from nas_kd.codec.cost import count
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import Student
from nas_kd.errors import SpaceError, UsageError
from nas_kd.places import CACHE
from nas_kd.study.prepare import prepare
from nas_kd.study.single import distill_alone, in_a_table
from nas_kd.study.study import Settings, Study, open_study
from nas_kd.teachers.targets import TARGETS, limit_pools
from nas_kd.teachers.teacher import load_teacher

torch.set_num_threads(1)
ARCH = load_space("demo").extreme(largest=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(noise).resize((128, 96), Image.Resampling.BICUBIC).save(folder / "a.png")
    return str(folder)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    """What is kept for the next trial lies below the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(pictures: str) -> Settings:
    return Settings(
        name="alone",
        space="demo",
        init="scratch",
        objectives=("bd_rate", "flops"),
        steps=2,
        batch=2,
        crops=16,
        crop_size=64,
        data=pictures,
        eval_data=pictures,
    )


@pytest.mark.thorough
def test_the_next_student_finds_the_teachers_outputs(tmp_path: Path, settings: Settings):
    heard: list[list[str]] = [[], []]
    for i, said in enumerate(heard):
        distill_alone(
            settings, ARCH, tmp_path / str(i), lambda kind, what, said=said: said.append(what)
        )
    assert "teacher's outputs: 16 of 16 crops of 64 px" in heard[0]
    assert [what for what in heard[0] if what.startswith("distilled: step 2 of 2, loss ")]
    assert not [what for what in heard[1] if "outputs" in what]
    assert weights_digest(load_student(tmp_path / "0")) == weights_digest(
        load_student(tmp_path / "1")
    )


def test_outputs_over_the_limit_are_refused(tmp_path: Path, settings: Settings):
    limit_pools(CACHE / TARGETS, 1e-6)
    with pytest.raises(UsageError, match="GB"):
        distill_alone(settings, ARCH, tmp_path / "student")


def test_an_arch_distilled_alone_is_built_once_and_leaves_a_student_and_its_figures(
    tmp_path: Path, settings: Settings, monkeypatch
):
    built, build = [], Student.__init__

    def counted(student, arch, *others):
        built.append(arch)
        build(student, arch, *others)

    monkeypatch.setattr(Student, "__init__", counted)
    said = distill_alone(settings, ARCH, tmp_path / "student")
    assert built.count(ARCH) == 1
    assert sorted(p.name for p in (tmp_path / "student").iterdir()) == [
        "arch.json",
        "student.safetensors",
    ]
    student = load_student(tmp_path / "student")
    assert student.arch == ARCH.canonical()
    assert said["flops"] == count(student).macs
    assert len(said["rd"]["bpp_est"]) == student.levels == 6
    assert json.loads(json.dumps(said)) == said
    with (console := Console(width=60)).capture() as shown:
        console.print(in_a_table(said))
    assert f"{said['flops'] / 1e9:.2f}" in shown.get()
    assert f"{said['rd']['psnr_db'][5]:.2f} dB" in shown.get()
    with pytest.raises(UsageError, match="student: holds a finished codec already"):
        distill_alone(settings, ARCH, tmp_path / "student")


def test_a_cache_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, settings: Settings):
    (tmp_path / "studies").touch()
    with pytest.raises(UsageError, match="the cache studies/.cache: cannot be written"):
        distill_alone(settings, ARCH, tmp_path / "student")


def test_the_built_in_teachers_arch_can_be_given_as_an_arch_file(tmp_path: Path):
    teacher = load_teacher("mini")
    file = tmp_path / "arch.json"
    file.write_text(json.dumps({"arch": teacher.student.arch.to_json()}))
    assert load_arch(file) == teacher.student.arch


def test_the_card_of_the_built_in_teacher_is_true_of_its_weights():
    teacher = load_teacher("mini")
    folder = Path(__file__).parents[2] / "nas_kd" / "assets" / "teachers" / "mini"
    card = json.loads((folder / "card.json").read_text())
    assert card["sha256"] == teacher.fingerprint
    assert card["psnr_db"] == sorted(card["psnr_db"])
    assert card["bd_rate_percent"]["JPEG"] < 0


def test_distilled_by_its_study_a_trials_arch_ends_where_the_trial_ended(
    tmp_path: Path, settings: Settings, monkeypatch
):
    own = {"init": "shared", "lr": 2e-3, "batch": 1, "objectives": ("rd_cost", "flops")}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # a study keeps to its root, wherever it is driven
    study = Study(replace(settings, name="s", **own), root=tmp_path)
    prepared = prepare(study, load_teacher("mini"), lambda kind, detail: None)
    number, arch = study.ask(1)
    study.tell(number, trial_alone(Order(number, arch, prepared), "cpu"))
    assert list(Path().iterdir()) == []
    assert open_study("s", root=tmp_path).counted() == 1
    monkeypatch.chdir(tmp_path)
    trial, file = study.trials[number], tmp_path / "arch.json"
    file.write_text(json.dumps({"arch": arch.to_json()}))
    words = ["distill", "s", "--arch", str(file), "--out", "alone", "--json"]
    said = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert said["rd"] == trial.user_attrs["rd"]
    assert [said["rd_cost"], said["flops"]] == trial.values
    assert (said["bd_pchip"], said["reason"]) == (trial.user_attrs["bd_pchip"], None)
    own_digest = weights_digest(load_student(study.student_folder(trial)))
    assert weights_digest(load_student("alone")) == own_digest


def settings_by(monkeypatch, *words: str) -> Settings:
    """What ``nas-kd distill`` would train with."""
    heard: list[Settings] = []
    monkeypatch.setattr(
        "nas_kd.study.single.distill_alone", lambda settings, *others: heard.append(settings) or {}
    )
    Path("arch.json").write_text(json.dumps({"arch": ARCH.to_json()}))
    words = ("distill", "--arch", "arch.json", "--out", "o", "--json", *words)
    done = CliRunner().invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return heard[0]


def test_a_study_files_settings_are_taken_and_options_replace_them(monkeypatch):
    Path("f.toml").write_text('space = "demo"\nlr = 0.002\nsteps = 7\nform = "paper"\n')
    found = settings_by(monkeypatch, "f.toml", "--set", "steps=9")
    assert (found.lr, found.steps, found.form, found.init) == (0.002, 9, "paper", "shared")
    assert settings_by(monkeypatch).init == "scratch"
    with Path("f.toml").open("a") as file:
        file.write('[[each]]\nname = "a"\n[[each]]\nname = "b"\n')
    with pytest.raises(UsageError, match="several studies .f-a, f-b.; once it is begun, give one"):
        settings_by(monkeypatch, "f.toml")


def test_an_arch_that_could_not_start_as_the_study_has_it_is_refused_before_the_work(settings):
    foreign = load_space("prim").extreme(largest=False)
    with pytest.raises(SpaceError, match="is none of space demo"):
        distill_alone(replace(settings, init="shared"), foreign, Path("student"))
    assert not list(Path().iterdir())
