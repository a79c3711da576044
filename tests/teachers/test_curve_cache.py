"""A teacher's curve is measured once per teacher and set of pictures, and again where its file is damaged."""

import json
from dataclasses import replace

import pytest
import torch

from nas_kd.data.images import open_images
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.teachers import curve_cache as curves
from nas_kd.teachers.curve_cache import measured_once
from nas_kd.teachers.teacher import load_teacher


class Fake:
    fingerprint, lmbdas, levels = "f", (0.01, 0.02), 2

    def to(self, device):
        return self

    def every_level(self, x):
        pixels = x.shape[-1] * x.shape[-2]
        return [
            ((x * 0.9), torch.tensor([0.1 * pixels])),
            ((x * 0.95), torch.tensor([0.3 * pixels])),
        ]


@pytest.fixture
def images():
    whole = open_images("builtin", "eval")
    return replace(whole, images=[image[:64, :64] for image in whole.images], sizes=((64, 64),) * 4)


@pytest.fixture
def ran(monkeypatch):
    """How often a teacher was evaluated."""
    runs, evaluate = [], curves.evaluate
    monkeypatch.setattr(curves, "evaluate", lambda *given: runs.append(1) or evaluate(*given))
    return runs


def test_the_second_study_finds_what_the_first_measured(tmp_path, images, ran):
    first = measured_once(tmp_path / "curves", Fake(), images)
    assert measured_once(tmp_path / "curves", Fake(), images) == first
    assert first.kind == "bpp_est"
    assert len(ran) == 1


def test_another_teacher_set_or_lambda_is_another_curve(tmp_path, images, ran):
    other = Fake()
    other.fingerprint = "g"
    third = Fake()
    third.lmbdas = (0.01, 0.03)
    asked = [(Fake(), images), (other, images), (third, images)]
    for teacher, some in [*asked, (Fake(), replace(images, fingerprint="h"))]:
        measured_once(tmp_path, teacher, some)
    assert (len(ran), len(list(tmp_path.iterdir()))) == (4, 4)


@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_a_damaged_file_is_measured_again(tmp_path, images, ran, damage):
    first = measured_once(tmp_path, Fake(), images)
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    kept["points"]["per_image_psnr_db"][0][0] += 1.0
    damaged = {"cut": file.read_text()[:50], "altered": json.dumps(kept), "empty": ""}
    file.write_text(damaged[damage])
    assert measured_once(tmp_path, Fake(), images) == first
    assert len(ran) == 2
    assert measured_once(tmp_path, Fake(), images) == first
    assert len(ran) == 2


def test_points_survive_json(images):
    measured = Measured("bpp", [[1.0, 2.0]], [[30.0, 31.0]], ["a", "b"], "f")
    assert Measured.from_json(json.loads(json.dumps(measured.to_json()))) == measured


def test_a_real_teachers_points_are_kept_to_the_last_digit(tmp_path, images):
    teacher = load_teacher("mini")
    first, second = (measured_once(tmp_path, teacher, images) for _ in range(2))
    assert first == second
    assert first.curve().bpp == tuple(sorted(first.curve().bpp))
