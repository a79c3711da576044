import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nas_kd.codec.arch import prim
from nas_kd.codec.checkpoint import ready
from nas_kd.codec.cost import count
from nas_kd.codec.networks import FRAME, MEGAPIXELS
from nas_kd.codec.student import Student
from nas_kd.data.images import ImageSet
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.measurement import codec_energy
from nas_kd.measurement.calibration import Calibration, known_for_an_hour
from nas_kd.measurement.codec_energy import (
    Wished,
    _key,
    _measured,
    as_frame,
    energy_ratio,
    per_megapixel,
)
from nas_kd.measurement.counter import Sensor
from nas_kd.measurement.energy import QUICK
from nas_kd.measurement.entropy_coding_cost import SIDES, coding_cost, coding_passes, no_coding
from nas_kd.measurement.front_energy import write_front_energy
from nas_kd.measurement.meter import Conditions, Identity
from nas_kd.measurement.reading import Reading
from nas_kd.measurement.reading_cache import Readings
from nas_kd.measurement.wishes import Wishes
from nas_kd.reasons import FAILURES, Reason
from nas_kd.study import trial

GOOD = Reading.measured(200.0, 2.0, "mJ", "nvml", {"cv": 0.001})
NONE = Reading.unavailable("no meter")
POINTS = RDCurve((0.1, 0.2, 0.4, 0.8), (28.0, 30.0, 32.0, 34.0))


def score(reading):
    """What a trial makes of an energy reading; its curve is the teacher's own."""
    task = SimpleNamespace(
        anchor=trial.Anchor(POINTS, (29.0, 33.0)),
        objectives=("bd_rate", "flops", "energy"),
        lmbdas=(0.01, 0.02, 0.03, 0.04),
        device="cpu",
        measures={"energy": lambda student, device, part: reading},
    )
    rate, quality = ([[value] for value in axis] for axis in (POINTS.bpp, POINTS.psnr_db))
    codec = Student(prim(8, 16))
    measured = Measured("bpp_est", rate, quality, ["a"], "f")
    return trial._score(task, codec, count(codec, (1, 3, 64, 64)), measured, {})


def test_a_measured_energy_is_an_objective():
    outcome = score(GOOD)
    assert outcome.values[2] == 200.0
    assert Reading.from_json(outcome.attrs["energy"]) == GOOD


@pytest.mark.parametrize("reading", [NONE, Reading.rejected("shared: two processes", {"cv": 1})])
def test_a_trial_without_energy_fails_for_that_reason(reading):
    outcome = score(reading)
    assert outcome.values is None
    assert outcome.reason == f"energy: {reading.reason}"
    assert Reason.of(outcome.reason) in FAILURES
    assert outcome.attrs["energy"]["value"] is None


def test_a_trial_refuses_what_a_fake_measured():
    with pytest.raises(ValueError, match="fake"):
        score(Reading.measured(200.0, 2.0, "mJ", "fake"))


def test_a_ratio_joins_the_relative_doubts():
    ratio = energy_ratio(GOOD, Reading.measured(400.0, 8.0, "mJ", "nvml"))
    assert (ratio.value, ratio.unit) == (0.5, "ratio")
    assert ratio.uncertainty == pytest.approx(0.5 * (0.01**2 + 0.02**2) ** 0.5)


@pytest.mark.parametrize("pair", [(GOOD, NONE), (NONE, GOOD)])
def test_there_is_no_ratio_to_nothing(pair):
    assert energy_ratio(*pair).reason == "one of the two is unavailable: no meter"


def test_a_megapixel_costs_more_than_a_smaller_frame():
    found = per_megapixel(GOOD)
    assert found.value == pytest.approx(200 / (512 * 768 / 1e6))
    assert found.uncertainty / found.value == pytest.approx(GOOD.uncertainty / GOOD.value)
    assert per_megapixel(NONE) == NONE
    assert pytest.approx(0.393216) == MEGAPIXELS


@pytest.mark.parametrize("size", [(100, 900), (600, 800), (512, 768), (1, 1)])
def test_any_picture_fills_a_frame(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    frame = as_frame(image)
    assert tuple(frame.shape) == FRAME
    assert frame[0, :, 0, 0].tolist() == pytest.approx((image[0, 0] / 255).tolist())
    assert frame.isfinite().all()


def pictures():
    image = np.zeros((64, 64, 3), np.uint8)
    return ImageSet("one", [image], ("one.png",), ((64, 64),), "f")


def test_an_export_keeps_the_searchs_energy_beside_its_own(tmp_path):
    found = {"energy": GOOD, "energy:decoder": GOOD}
    write_front_energy(tmp_path, ready(Student(prim(8, 16))), pictures(), found, "mps")
    kept = json.loads((tmp_path / "energy.json").read_text())
    assert Reading.from_json(kept["in_search"]) == GOOD
    again = Reading.from_json(kept["trained_on_pictures"])
    assert (again.state, again.value) == ("unavailable", None)
    assert "has no meter" in again.reason
    assert set(kept["parts"]) == set(found)
    for side in SIDES:
        assert Reading.from_json(kept["entropy_coding"][side]["ms"]).state in (
            "measured",
            "rejected",
        )


def test_a_search_without_energy_exports_none(tmp_path):
    write_front_energy(tmp_path, Student(prim(8, 16)), pictures(), {})
    assert list(tmp_path.iterdir()) == []


def test_an_arch_without_a_meter_has_no_energy():
    assert codec_energy.frame_energy(Student(prim(8, 16)), "mps").state == "unavailable"


def test_the_meter_in_words_says_why_there_is_none():
    assert codec_energy.meter_in_words("mps").startswith("no meter: device mps has no meter")


@pytest.mark.gpu
def test_the_meter_in_words_has_its_update_period():
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    assert "(measured)" in codec_energy.meter_in_words("cuda")


def coded():
    torch.manual_seed(0)
    return ready(Student(prim(8, 16))), torch.rand(1, 3, 64, 64)


def test_entropy_coding_is_what_compress_and_decompress_do_beside_their_networks():
    student, x = coded()
    works, whole = coding_passes(student, x), student.compress(x, 1.0)
    assert works["encoder"]().strings == [one[0] for one in whole["strings"]]
    assert torch.equal(works["decoder"]().y_hat, whole["y_hat"])


@pytest.mark.thorough
def test_entropy_codings_time_and_energy_stand_under_a_name_of_their_own():
    student, x = coded()
    read = []

    def reading(meter, work):
        read.append(work())
        return GOOD

    meter = SimpleNamespace(name="rapl")
    found = coding_cost(student, x, 3, meter, reading)
    assert [found[side]["mj"]["value"] for side in SIDES] == [GOOD.value] * 2
    assert len(read) == 2
    without = coding_cost(student, x, 3, NONE)
    assert {without[side]["mj"]["reason"] for side in SIDES} == {"no meter"}
    assert no_coding("untrained")["decoder"]["ms"]["reason"] == "untrained"


class Spinning:
    """A meter of 40 W by the real clock, under the name of a real one."""

    name, part_time = "rapl", False

    def read_mj(self):
        return 40_000 * time.perf_counter() // 40 * 40

    def power_w(self):
        return None

    def conditions(self):
        return Conditions()

    def identity(self):
        return Identity("CPU-spinning", "1")

    def probe(self):
        return None


@pytest.mark.thorough
def test_an_arch_is_measured_once_and_what_others_wait_for_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    small = torch.rand(1, 3, 64, 64)
    monkeypatch.setattr(codec_energy, "noise_frame", lambda device: small)
    meter, mode = Spinning(), replace(QUICK, window_s=0.1, max_s=0.5, max_cv=1.0)
    known_for_an_hour(meter, lambda: Calibration(Sensor(0.001, False), 10.0))

    def wanted(width, part):
        student = Student(prim(8, width), (0.01,))
        return Wished(student, part, _key(student, meter, "cpu", mode, part))

    own, other = wanted(16, "decoder"), wanted(24, "encoder")
    with Wishes("CPU-spinning").filed(other.key.digest, other.to_json()):
        reading = _measured(own, meter, "cpu", mode)
    assert reading.state == "measured", reading
    assert reading.value == pytest.approx(40_000 * reading.details["iteration_s"], rel=0.05)
    assert reading.details["work"]["kernels"] > 10
    assert _measured(own, meter, "cpu", mode) == reading
    assert Readings().get(other.key).state == "measured"
