import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.data.images import BUILTIN, ImageSet, open_images
from nas_kd.evaluation.classical import CODECS, lacking
from nas_kd.evaluation.classical_cost import energies, measured, ms_ssim
from nas_kd.measurement.reading import Reading


@pytest.fixture(scope="module")
def images() -> ImageSet:
    whole = open_images(BUILTIN, "eval")
    crop = np.ascontiguousarray(whole.images[0][50:226, 100:292])
    return ImageSet("crop", [crop], ("crop",), (crop.shape[:2],), "0" * 64)


def test_better_settings_cost_more_bits_and_are_more_alike(images):
    points = measured("jpeg", images)["points"]
    for name in ("bpp", "psnr_db", "ms_ssim"):
        values = [point[name] for point in points]
        assert values == sorted(values), name
    assert 0.5 < points[0]["ms_ssim"] < points[-1]["ms_ssim"] < 1
    assert all(point["encode_ms_per_mpx"] > 0 < point["decode_ms_per_mpx"] for point in points)


def test_ms_ssim_of_equal_pictures_is_one_and_of_small_ones_absent(images):
    image = images.images[0]
    assert ms_ssim(image, image) == pytest.approx(1, abs=1e-6)
    assert ms_ssim(image[:100], image[:100]) is None


def test_without_a_meter_energy_is_absent_with_its_reason(images):
    absent = Reading.unavailable("no RAPL here")
    found = energies(absent, images, "JPEG", {"quality": 50})
    assert found["encoder"] == found["decoder"] == absent.to_json()


def test_what_is_not_installed_says_how_to_get_it(images, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = measured("jpegxl", images)
    assert found["points"] is None
    assert "pip install 'nas-kd[jpegxl]'" in found["reason"]
    assert lacking("jpeg") is None


def test_the_command_prints_points_for_people_and_for_machines(images, tmp_path):
    Image.fromarray(images.images[0]).save(tmp_path / "one.png")
    words = ["baselines", "--codecs", "jpeg", "--data", str(tmp_path)]
    plain = CliRunner().invoke(app, words)
    assert plain.exit_code == 0
    lines = plain.stdout.splitlines()
    assert lines.pop(0) == f"{tmp_path}: 1 picture"
    assert len(lines) == len(CODECS["jpeg"].points) + 2
    assert lines[0].startswith("jpeg 1: ")
    assert "MS-SSIM 0." in lines[0]
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [one["codec"] for one in found["codecs"]] == ["jpeg"]
    assert found["images"] == ["one.png"]
