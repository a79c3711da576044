"""Time and memory of coding a picture: what is allocated is found, what cannot be measured has a reason."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

from nas_kd.codec.checkpoint import load_student
from nas_kd.data.images import ImageSet
from nas_kd.evaluation import coding_cost as cost
from nas_kd.evaluation.coding_cost import FileCodec, classical_codec, peak_mb, student_codec
from nas_kd.places import TEACHERS

PICTURES = [np.zeros((64, 96, 3), np.uint8), np.full((128, 64, 3), 7, np.uint8)]
SET = ImageSet("made", PICTURES, ("small", "large"), ((64, 96), (128, 64)), "f")


@pytest.mark.skipif(not cost.CLEAR.exists(), reason="no /proc here")
def test_the_peak_is_what_was_held_at_once_and_no_more():
    def works() -> None:
        for _ in range(3):  # one after the other: 40 MB at once, not 120
            np.ones(40_000_000, np.uint8)

    assert peak_mb(works).value == pytest.approx(40, abs=4)
    assert peak_mb(lambda: None).value < 4


@pytest.mark.skipif(not cost.CLEAR.exists(), reason="no /proc here")
def test_what_goes_meanwhile_hides_no_peak():
    held = [np.ones(34_000_000, np.uint8)]

    def works() -> None:
        held.clear()  # in the first run, as another thread may free its own
        np.ones(40_000_000, np.uint8)

    found = peak_mb(works)
    assert found.details["runs_mb"][0] < 20
    assert found.value == pytest.approx(40, abs=4)
    assert found.uncertainty > 5


def test_where_the_system_has_no_peak_it_is_absent_with_its_reason(monkeypatch):
    monkeypatch.setattr(cost, "CLEAR", Path("/nowhere/clear_refs"))
    assert (
        peak_mb(lambda: None).reason
        == "/nowhere/clear_refs cannot be used here (FileNotFoundError)"
    )


@pytest.mark.thorough
def test_both_sides_of_the_largest_picture_are_measured():
    seen: list[str] = []

    def write(image) -> bytes:
        seen.append(f"encode {image.shape}")
        return image.tobytes()

    def read(data: bytes):
        seen.append(f"decode {len(data)}")
        return data

    found = cost.coding_cost(FileCodec("raw", write, read), SET)
    assert set(seen) == {"encode (128, 64, 3)", f"decode {128 * 64 * 3}"}
    assert (found["picture"], found["width"], found["height"]) == ("large", 64, 128)
    for side in cost.SIDES:
        assert found[f"{side}_ms"]["state"] in ("measured", "rejected")
        assert found[f"{side}_peak_mb"]["unit"] == "MB"
    assert "64x128, raw: encode " in cost.in_words(found)


def test_a_student_and_a_classical_codec_are_asked_for_whole_files():
    mini, jpeg = student_codec(load_student(TEACHERS / "mini")), classical_codec("jpeg")
    assert mini.setting == "level 3"
    assert mini.encode(PICTURES[0])[:4] == b"NKD1"
    assert re.fullmatch(r"quality \d+, optimize True", jpeg.setting)
    assert jpeg.decode(jpeg.encode(PICTURES[1])).shape == (128, 64, 3)


def test_a_quick_codec_is_run_more_often_than_a_slow_one():
    assert cost._runs([lambda: None]) == cost.MOST_RUNS
    assert cost._runs([lambda: None, lambda: time.sleep(0.3)]) == 1
