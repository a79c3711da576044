import json
import time
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest

from nas_kd.measurement.calibration import Calibration, known_for_an_hour
from nas_kd.measurement.counter import Sensor
from nas_kd.measurement.meter import Identity
from nas_kd.measurement.reading import Reading
from nas_kd.measurement.reading_cache import Key, Readings, cache_folder

KEY = Key("a1b2", "both", "GPU-1", "570.0", "2.11", "float32", (1, 3, 512, 768), "full")
READING = Reading.measured(12.5, 0.25, "mJ", "nvml", {"cv": 0.001})


def test_a_reading_comes_back_as_it_was(tmp_path):
    assert Readings(tmp_path / "new").get(KEY) is None
    assert Readings(tmp_path / "new").put(KEY, READING)
    assert Readings(tmp_path / "new").get(KEY) == READING
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"{KEY.digest}.json"]


@pytest.mark.parametrize("name", [field.name for field in fields(Key)])
def test_a_reading_serves_nothing_that_differs(tmp_path, name):
    Readings(tmp_path).put(KEY, READING)
    other = (1, 3, 64, 64) if name == "shape" else 3 if name in ("protocol", "levels") else "other"
    assert Readings(tmp_path).get(replace(KEY, **{name: other})) is None


def test_what_a_fake_measured_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match="fake"):
        Readings(tmp_path).put(KEY, Reading.measured(12.5, 0.25, "mJ", "fake"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reading", [Reading.unavailable("no meter"), Reading.rejected("stalled")])
def test_what_was_not_measured_is_not_kept(tmp_path, reading):
    assert not Readings(tmp_path).put(KEY, reading)
    assert Readings(tmp_path).get(KEY) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": 1, "reading": 2}'])
def test_a_spoilt_file_is_measured_again(tmp_path, text):
    (tmp_path / f"{KEY.digest}.json").write_text(text)
    assert Readings(tmp_path).get(KEY) is None


def test_a_spoilt_reading_is_measured_again(tmp_path):
    record = {"key": KEY.to_json(), "reading": READING.to_json() | {"value": None}}
    (tmp_path / f"{KEY.digest}.json").write_text(json.dumps(record))
    assert Readings(tmp_path).get(KEY) is None


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    assert not Readings(tmp_path / "file").put(KEY, READING)


def test_readings_lie_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "nas-kd" / "energy"


def test_what_is_known_of_a_device_is_measured_once_an_hour(tmp_path, monkeypatch):
    found = Calibration(Sensor(0.02, True, 0.9), 60.0, pause_w=110.0)
    taken = []

    def measure():
        taken.append(time.time())
        return found

    meter = SimpleNamespace(name="nvml", identity=lambda: Identity("GPU-1", "570.0"))
    assert [known_for_an_hour(meter, measure, tmp_path) for _ in range(3)] == [found] * 3
    assert len(taken) == 1
    meter.identity = lambda: Identity("GPU-1", "575.0")
    known_for_an_hour(meter, measure, tmp_path)
    assert len(taken) == 2  # of another driver nothing is known
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3700)
    known_for_an_hour(meter, measure, tmp_path)
    assert len(taken) == 3


def test_what_a_fake_shows_of_itself_is_not_kept(tmp_path):
    meter = SimpleNamespace(name="fake", identity=lambda: Identity("GPU-1", "570.0"))
    found = Calibration(Sensor(0.02, True), 60.0)
    assert known_for_an_hour(meter, lambda: found, tmp_path) == found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"key": 1}'])
def test_a_spoilt_calibration_is_measured_again(tmp_path, text):
    meter = SimpleNamespace(name="nvml", identity=lambda: Identity("GPU-1", "570.0"))
    found = Calibration(Sensor(0.02, True), 60.0)
    known_for_an_hour(meter, lambda: found, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_text(text)
    other = Calibration(Sensor(0.1, False), None, "it sleeps")
    assert known_for_an_hour(meter, lambda: other, tmp_path) == other
