import numpy as np
import pytest
from PIL import Image

from nas_kd.launch import Machine, search
from nas_kd.study import Settings, open_study


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, columns = np.mgrid[0:96, 0:128]
    red = 128 + 90 * np.sin(rows / 9.0) * np.cos(columns / 13.0)
    picture = np.stack([red, red[::-1], 255 - red], axis=2).astype(np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(picture).save(tmp_path / "pictures" / "waves.png")
    return str(tmp_path / "pictures")


def test_a_search_on_a_real_ray_spends_its_budget_and_then_has_nothing_to_do(pictures):
    settings = Settings(
        name="s",
        space="demo",
        objectives=("bd_rate", "flops"),
        steps=2,
        crops=16,
        crop_size=64,
        data=pictures,
        eval_data=pictures,
    )
    heard = []
    search(settings, 2, Machine(1), lambda kind, detail: heard.append((kind, detail)))
    study = open_study("s")
    assert study.counted() == 2
    assert [detail for kind, detail in heard if kind == "trial"] == [0, 1]
    for trial in study.trials:
        assert len(trial.user_attrs["rd"]["bpp_est"]) == 6
        assert (study.student_folder(trial) / "student.safetensors").is_file()
    heard.clear()
    search(settings, 2, Machine(1), lambda kind, detail: heard.append((kind, detail)))
    assert heard == []
