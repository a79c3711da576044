import json
import pickle

import pytest

from nas_kd.reasons import OVER_LIMIT, REFUSED, Reason
from nas_kd.study.limits import FREE, MEASURED

STORED = {
    "crash": Reason.CRASH,
    "energy: no meter": Reason.ENERGY,
    "latency: unsteady: 3 %": Reason.LATENCY,
    "worker_died": Reason.WORKER_DIED,
    "out_of_memory": Reason.OUT_OF_MEMORY,
    "interrupted": Reason.INTERRUPTED,
    "stopped at step 200": Reason.STOPPED,
    "nan": Reason.NAN,
    "over_max_latency_ms": Reason.OVER_MAX_LATENCY_MS,
    "partial_overlap": Reason.PARTIAL_OVERLAP,
}


@pytest.mark.parametrize(("text", "reason"), STORED.items())
def test_what_studies_hold_is_read(text, reason):
    assert Reason.of(text) is reason


@pytest.mark.parametrize("text", [None, "", "nancy", "over_max_weight", "stopped at stepping"])
def test_what_is_no_reason_of_this_version_is_none(text):
    assert Reason.of(text) is None


def test_a_reason_with_details_is_stored_as_before_and_read_again():
    assert Reason.ENERGY.because("no meter") == "energy: no meter"
    assert Reason.STOPPED.because(200) == "stopped at step 200"
    assert all(Reason.of(reason.because("x: y")) is reason for reason in Reason)


def test_a_reason_is_stored_as_plain_text_and_survives_the_way_from_a_worker():
    assert json.dumps({"reason": Reason.NAN}) == '{"reason": "nan"}'
    assert pickle.loads(pickle.dumps(Reason.NAN)) is Reason.NAN


def test_every_limit_has_its_reason():
    assert tuple(map(Reason.over, FREE)) == REFUSED
    assert tuple(map(Reason.over, (*FREE, *MEASURED))) == OVER_LIMIT
