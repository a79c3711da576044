import io
import zipfile

import torch
from optuna.artifacts import get_all_artifact_meta
from PIL import Image

from nas_kd.codec.arch import Arch
from nas_kd.codec.checkpoint import load_student
from nas_kd.data.images import open_images
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.report.illustrate import illustrate
from nas_kd.study.anchor import Anchor
from nas_kd.study.record import Outcome
from nas_kd.study.storage import storage_of
from nas_kd.study.trial_artifacts import made_with, note, store


def artifacts(study, number):
    metas = get_all_artifact_meta(study.trials[number], storage=storage_of(study.optuna))
    found = {}
    for meta in metas:
        with store(study.folder).open_reader(meta.artifact_id) as reader:
            found[meta.filename] = io.BytesIO(reader.read())
    return found


def test_a_trial_with_a_student_has_plot_crops_and_checkpoint(small, tmp_path):
    found = artifacts(small, 0)
    assert set(found) == {"rd.png", "crops.png", "trial-0000.zip"}
    picture = Image.open(found["crops.png"])
    assert picture.size == (4 * 192, 128 + 16)
    zipfile.ZipFile(found["trial-0000.zip"]).extractall(tmp_path)
    assert load_student(tmp_path / "trial-0000").arch.key == small.trials[0].user_attrs["arch_key"]


def test_a_crash_has_a_note_and_no_artifacts(small):
    assert artifacts(small, 4) == {}


def test_no_archive_is_left_beside_the_student(small):
    assert not list((small.folder / "students").rglob("*.zip"))


def test_drawings_that_fail_do_not_cost_the_trial(small, tmp_path):
    curve = Outcome([1.0], attrs={"rd": small.trials[0].user_attrs["rd"]})
    anchor = Anchor(RDCurve((0.1, 0.2), (20.0, 30.0)), (20.0, 30.0))
    images = open_images(small.settings.eval_data, "eval")
    illustrate(anchor, images, tmp_path, curve)
    assert curve.attrs["drawings"].startswith("failed: ")
    assert curve.values == [1.0]


def test_a_note_says_values_levels_and_costs_by_part(small):
    attrs = small.trials[1].user_attrs
    text = note(
        Outcome([30.0, 5e9], attrs=attrs), ("bd_rate", "flops"), Arch.from_json(attrs["arch"])
    )
    assert "BD-rate (%) 30, 5.000 GMAC per 768x512 frame" in text
    assert f"| latents | M {attrs['arch']['M']}, hyper {attrs['arch']['hyper']}, " in text
    assert text.count("\n| 6 |") == 1
    assert f"| g_s | {attrs['cost']['parts']['g_s'] / 1e6:.1f} |" in text


def test_a_note_says_why_there_is_nothing():
    text = note(Outcome(None, "no_overlap", 2.5, {"message": "too few steps"}), ("bd_rate",))
    assert "no values: no_overlap** (2.50 dB short): too few steps" in text


def test_the_record_of_a_search_names_versions_and_the_meter():
    made = made_with("cpu")
    assert torch.__version__.startswith(made["torch"])
    assert made["energy_meter"]
