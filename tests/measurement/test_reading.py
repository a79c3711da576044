import json
import pickle
from dataclasses import FrozenInstanceError

import pytest

from nas_kd.errors import UsageError
from nas_kd.measurement.reading import Reading, require_real

MEASURED = Reading.measured(3.5, 0.2, "mJ", "nvml", {"windows": [3.4, 3.6], "idle_w": None})
UNAVAILABLE = Reading.unavailable("no NVIDIA driver")
REJECTED = Reading.rejected("shared", {"windows": [1.0, 9.0]})
EVERY_FORM = pytest.mark.parametrize("reading", [MEASURED, UNAVAILABLE, REJECTED])


@EVERY_FORM
def test_a_reading_survives_json(reading):
    assert Reading.from_json(json.loads(json.dumps(reading.to_json()))) == reading


@EVERY_FORM
def test_a_reading_survives_pickling(reading):
    assert pickle.loads(pickle.dumps(reading)) == reading


@pytest.mark.parametrize("reading", [UNAVAILABLE, REJECTED])
def test_a_missing_reading_is_null_with_its_reason(reading):
    record = reading.to_json()
    assert record["value"] is None
    assert record["reason"]
    assert reading.value_or_none is None


def test_what_is_stored_is_pinned():
    assert MEASURED.to_json() == {
        "state": "measured",
        "value": 3.5,
        "uncertainty": 0.2,
        "unit": "mJ",
        "source": "nvml",
        "details": {"windows": [3.4, 3.6], "idle_w": None},
    }
    assert UNAVAILABLE.to_json() == {
        "state": "unavailable",
        "value": None,
        "reason": "no NVIDIA driver",
    }
    assert REJECTED.to_json() == {
        "state": "rejected",
        "value": None,
        "reason": "shared",
        "raw": {"windows": [1.0, 9.0]},
    }


def test_a_measured_zero_is_not_missing():
    assert Reading.measured(0, 0, "mJ", "rapl").value_or_none == 0.0


def test_a_reading_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        MEASURED.value = 0.0  # type: ignore[misc]


def test_a_reading_keeps_its_own_copy_of_the_details():
    windows = [1.0]
    reading = Reading.measured(1.0, 0.0, "mJ", "nvml", {"windows": windows})
    windows.append(2.0)
    assert reading.details == {"windows": [1.0]}


@pytest.mark.parametrize(
    ("value", "uncertainty"),
    [(float("nan"), 0.1), (float("inf"), 0.1), (1.0, float("nan")), (1.0, -0.1)],
)
def test_a_figure_that_is_no_figure_is_not_measured(value, uncertainty):
    with pytest.raises(ValueError, match="finite"):
        Reading.measured(value, uncertainty, "mJ", "nvml")


@pytest.mark.parametrize(("unit", "source"), [("", "nvml"), ("mJ", "")])
def test_a_figure_without_unit_or_source_is_not_measured(unit, source):
    with pytest.raises(ValueError, match="must be named"):
        Reading.measured(1.0, 0.1, unit, source)


def test_details_that_json_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        Reading.measured(1.0, 0.1, "mJ", "nvml", {"idle_w": float("nan")})


def test_a_reason_is_one_line_and_not_empty():
    assert Reading.unavailable("no\n  driver").reason == "no driver"
    with pytest.raises(ValueError, match="needs a reason"):
        Reading.rejected("  ")


def test_results_refuse_a_fake_figure():
    with pytest.raises(ValueError, match="fake"):
        require_real(Reading.measured(3.5, 0.2, "mJ", "fake"))


@EVERY_FORM
def test_results_take_every_real_reading(reading):
    require_real(reading)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"state": "guessed", "value": 1.0},
        {"state": "measured", "value": 1.0},
        {"state": "unavailable", "value": 0, "reason": "no driver"},
        MEASURED.to_json() | {"value": None},
        MEASURED.to_json() | {"value": "3.5"},
        None,
    ],
)
def test_a_malformed_record_is_one_line(record):
    with pytest.raises(UsageError, match="malformed") as caught:
        Reading.from_json(record)
    assert "\n" not in str(caught.value)
