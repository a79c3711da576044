"""Teachers trained here: a family's files are the zoo's in all but their weights, and a card says how they came."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas_kd.cli.main import main
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import LMBDAS
from nas_kd.data.images import decoded, open_images
from nas_kd.distillation.training import EveryCrop, Recipe, Run
from nas_kd.errors import TeacherError, UsageError
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.evaluation.rate_distortion import evaluate
from nas_kd.seeds import derived_seed
from nas_kd.teachers.families import FixedRate
from nas_kd.teachers.make import CropsOf, _against_formats, _pictures, train_family, train_teacher
from nas_kd.teachers.teacher import load_teacher

torch.set_num_threads(1)
ARCH = load_space("demo").extreme(largest=False)
RECIPE = Recipe(3, batch=2, seed=5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(noise).resize((128, 96), Image.Resampling.BICUBIC).save(folder / "a.png")
    return str(folder)


def _family(pictures: str, out: Path, name: str = "bmshj2018-hyperprior", levels=(1, 5)) -> Path:
    train_family(name, 8, levels, CropsOf(pictures, 64), RECIPE, pictures, out)
    return out


@pytest.fixture(scope="module")
def trained(pictures: str, tmp_path_factory) -> Path:
    return _family(pictures, tmp_path_factory.mktemp("trained"))


@pytest.mark.thorough
def test_a_teacher_that_was_trained_teaches_and_its_card_says_how(tmp_path: Path, pictures: str):
    train_teacher(ARCH, CropsOf(pictures, 64), RECIPE, pictures, tmp_path / "mine")
    teacher = load_teacher(str(tmp_path / "mine"))
    card = json.loads((tmp_path / "mine" / "card.json").read_text())
    assert card["sha256"] == teacher.fingerprint
    assert (card["training"]["recipe"]["steps"], card["training"]["recipe"]["seed"]) == (3, 5)
    assert len(card["bpp"]) == len(card["psnr_db"]) == teacher.levels
    assert not (tmp_path / "mine" / "checkpoint.pt").exists()


def test_a_curve_that_falls_is_said_in_the_card_and_stops_nothing():
    falling = RDCurve((0.1, 0.2, 0.3, 0.4), (30.0, 31.0, 30.5, 32.0))
    said = _against_formats(falling, open_images("builtin", "eval"))
    assert isinstance(said, str)
    assert said.startswith("absent: anchor's R-D curve is")


@pytest.mark.thorough
def test_a_variable_rate_teacher_may_have_some_levels_alone(tmp_path: Path, pictures: str):
    pool = CropsOf(pictures, 64)
    train_teacher(ARCH, pool, RECIPE, pictures, tmp_path / "t", (LMBDAS[1], LMBDAS[3]))
    assert load_teacher(str(tmp_path / "t")).lmbdas == (LMBDAS[1], LMBDAS[3])
    card = json.loads((tmp_path / "t" / "card.json").read_text())
    assert card["bd_rate_percent"] == "absent: 2 levels, and a BD-rate needs 4"


def test_a_family_has_one_model_per_level_and_teaches_by_folder_and_by_name(trained: Path):
    by_folder = load_teacher(str(trained))
    assert by_folder.lmbdas == (LMBDAS[0], LMBDAS[4])
    for level, quality in ((1, 1), (2, 5)):
        alone = load_teacher(f"bmshj2018-hyperprior:{quality}", str(trained))
        assert alone.lmbdas == (LMBDAS[quality - 1],)
        assert alone.latent_widths == (192, 8)
        x = torch.rand(1, 3, 64, 64)
        for a, b in zip(by_folder.outputs(x, level), alone.outputs(x, 1), strict=True):
            assert torch.equal(a, b)


def test_a_familys_card_has_its_curve_and_nothing_else_is_left(trained: Path, pictures: str):
    card = json.loads((trained / "card.json").read_text())
    teacher = load_teacher(str(trained))
    curve = evaluate(teacher, open_images(pictures, "eval")).curve()
    assert (card["family"], card["width"]) == ("bmshj2018-hyperprior", 8)
    assert (card["bpp_est"], card["psnr_db"]) == (list(curve.bpp), list(curve.psnr_db))
    assert card["sha256"] == teacher.fingerprint
    assert card["training"]["recipe"]["steps"] == 3
    assert all(rate > 0 for rate in card["bpp"])
    assert card["bd_rate_est_percent"].startswith("absent: 2 levels")
    assert {p.name for p in trained.iterdir()} == {"card.json", *card["files"].values()}


def test_training_changes_the_models_and_equal_seeds_make_equal_ones(
    trained: Path, pictures: str, tmp_path: Path
):
    again = load_teacher(str(_family(pictures, tmp_path / "again"))).members
    torch.manual_seed(derived_seed(5, "init", "bmshj2018-hyperprior", 1))
    start = FixedRate("bmshj2018-hyperprior", 1, 8).model.state_dict()
    ours = load_teacher(str(trained)).members[0].state_dict()
    name = "g_a.0.weight"
    assert torch.equal(ours[name], again[0].state_dict()[name])
    assert not torch.equal(ours[name], start[name])


def test_a_killed_training_goes_on_where_it_was(trained: Path, pictures: str, tmp_path: Path):
    pool = CropsOf(pictures, 64)
    crops = EveryCrop(decoded(open_images(pictures, "train")), 64)
    name, out = "bmshj2018-hyperprior", tmp_path / "t"
    torch.manual_seed(derived_seed(5, "init", name, 1))
    codec = FixedRate(name, 1, 8)
    run = Run(codec, crops, RECIPE, checkpoint=out / f"checkpoint-{name}-8-1.pt")
    run.run(until=2)
    train_family(name, 8, (1,), pool, RECIPE, pictures, out)
    resumed, whole = load_teacher(str(out)).members[0], load_teacher(str(trained)).members[0]
    for key, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], tensor), key


def test_crops_are_drawn_anew_from_all_places_of_the_pictures(pictures: str):
    """Of the one picture of 96x128 there are 33 times 65 places in eight symmetries."""
    crops = _pictures(open_images(pictures, "train"), CropsOf(pictures, 64))
    assert len(crops) == 8 * 33 * 65


def test_a_new_training_replaces_the_files_of_the_old(pictures: str, tmp_path: Path):
    _family(pictures, tmp_path / "t", levels=(5,))
    pool = CropsOf(pictures, 64, seed=1)
    train_family("bmshj2018-hyperprior", 8, (5,), pool, RECIPE, pictures, tmp_path / "t")
    assert len(list((tmp_path / "t").glob("*.pth.tar"))) == 1
    assert load_teacher(str(tmp_path / "t")).levels == 1


@pytest.mark.slow
def test_a_family_that_decodes_one_by_one_has_estimated_rates_alone(pictures: str, tmp_path: Path):
    out = _family(pictures, tmp_path / "t", "cheng2020-anchor", (2,))
    card = json.loads((out / "card.json").read_text())
    assert card["bpp"] == "absent: cheng2020-anchor decodes position by position"
    assert load_teacher(str(out)).latent_widths == (8, 8)


def test_a_folder_of_two_families_is_not_guessed_at(trained: Path, tmp_path: Path):
    for file in trained.glob("*.pth.tar"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "mbt2018-1-00000000.pth.tar").touch()
    with pytest.raises(TeacherError, match="holds several families"):
        load_teacher(str(tmp_path))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--arch", "cheng2021"), "--arch cheng2021: neither an arch file nor one of"),
        (("--arch", "mbt2018", "--levels", "7"), "--levels 7: must be qualities from 1 to 6"),
        (("--arch", "mbt2018", "--crop-size", "100"), "--crop-size 100: must be a multiple of 64"),
        (
            ("--arch", "arch.json", "--width", "8"),
            "--width 8: the arch file arch.json says its own",
        ),
        (("--arch", "mbt2018", "--eval-data", "nowhere"), "'nowhere' is no folder"),
        (("--arch", "mbt2018", "--lr", "0"), "lr = 0.0: must be a number above 0"),
    ],
)
def test_a_training_that_cannot_start_says_why(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arch.json").write_text("{}")
    line = ["nas-kd", "teacher", "train", "--out", "t", "--steps", "1", *words]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert says in said
    assert not (tmp_path / "t").exists()


def test_the_command_trains_a_family(pictures: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["teacher", "train", "--arch", "mbt2018-mean", "--width", "8", "--levels", "4"]
    words += ["--steps", "1", "--crop-size", "64", "--batch", "2", "--out", "t"]
    monkeypatch.setattr(
        sys, "argv", ["nas-kd", *words, "--data", pictures, "--eval-data", pictures]
    )
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "quality 4, step 1 of 1" in capsys.readouterr().out
    assert load_teacher("t").lmbdas == (LMBDAS[3],)


def test_settings_that_break_a_rule_write_nothing(pictures: str, tmp_path: Path):
    with pytest.raises(UsageError):
        train_family("mbt2018", 8, (1,), CropsOf("nowhere"), RECIPE, pictures, tmp_path / "t")
    assert not (tmp_path / "t").exists()
