import json
import re

import pytest
import torch

from nas_kd.codec.arch import prim
from nas_kd.codec.checkpoint import ready
from nas_kd.codec.cost import count
from nas_kd.codec.networks import passes
from nas_kd.codec.student import Student
from nas_kd.measurement.codec_report import PARTS, _latency, in_lines
from nas_kd.measurement.energy import QUICK, measure_energy
from nas_kd.measurement.entropy_coding_cost import no_coding
from nas_kd.measurement.profiling import memory_bytes
from nas_kd.measurement.reading import Reading
from nas_kd.testing.fakes import FakeMeter, SimulatedDevice


@pytest.fixture(scope="module")
def figures():
    """Everything but the energy, on a picture of 64x64."""
    torch.manual_seed(0)
    codec = ready(Student(prim(8, 16)))
    own, other = (passes(codec, [torch.rand(1, 3, 64, 64)]) for _ in range(2))
    coding = {side: one["ms"] for side, one in no_coding("untrained").items()}
    found = {"codec": "a.toml", "arch": "arch", "trained": False, "device": "cpu", "torch": "2"}
    found |= {"numerics": "threads=1", "excluded": "coding", "cost": count(codec).to_json()}
    found |= {
        "memory_bytes": memory_bytes(codec, own),
        "entropy_coding": coding,
        "entropy_coding_energy": coding,
    }
    return found | {"latency": _latency(own, other, "cpu", quick=True)}


def test_without_a_meter_energy_is_absent_and_the_rest_is_there(figures):
    absent = {part: {"student": Reading.unavailable("no meter here").to_json()} for part in PARTS}
    text = "\n".join(in_lines(figures | {"energy": absent}))
    assert text.count("absent: no meter here") == 1  # a reason once, for all parts that have it
    assert "energy:      encoder, decoder, both: absent: no meter here" in text
    assert "MACs:" in text
    assert "p10" in text
    assert "memory:      weights" in text
    assert "entropy coding, encoder, decoder: absent: untrained" in text


def test_it_is_said_why_encoder_and_decoder_are_more_than_the_whole(figures):
    absent = {part: {"student": Reading.unavailable("no meter here").to_json()} for part in PARTS}
    text = "\n".join(in_lines(figures | {"energy": absent}))
    cost = figures["cost"]
    both = re.search(r"both run (.*) \((.*?)\), the whole.* alone runs (.*) \((.*?)\)", text)
    more = float(both[2]) - float(both[4])
    sides = cost["encoder_macs"] + cost["decoder_macs"]
    assert more == pytest.approx((sides - cost["macs"]) / 1e6, abs=0.11)
    assert (both[1], both[3]) == ("h_s, entropy_parameters", "entropy_bottleneck")


def test_an_energy_is_shown_with_its_doubt_and_conditions(figures):
    device = SimulatedDevice()
    reading = measure_energy(
        FakeMeter(device),
        device.iteration,
        synchronise=device.synchronise,
        timing=device.timing,
        mode=QUICK,
    ).to_json()
    found = {"student": reading, "per_megapixel": reading, "ratio": reading}
    found |= {"gpu_busy_share": 0.5, "launch_bound": True}
    text = "\n".join(in_lines(figures | {"energy": {"both": found}}))
    assert "both: 3000 +- " in text
    assert "300.0 W, MHz unknown" in text
    assert "GPU busy 50% of the time, launch-bound" in text


def test_latency_stands_beside_the_teachers(figures):
    json.dumps(figures["latency"], allow_nan=False)
    for part in PARTS:
        rounds = figures["latency"][part]
        assert {reading["state"] for reading in rounds.values()} <= {"measured", "rejected"}
