from dataclasses import replace
from types import SimpleNamespace

import pytest

from nas_kd.codec.arch import prim
from nas_kd.codec.cost import count
from nas_kd.codec.student import Student
from nas_kd.errors import MeterError, UsageError
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.measurement import meters
from nas_kd.measurement.meters import require_likely_meter
from nas_kd.measurement.reading import Reading
from nas_kd.objectives import MEASURED, TABLE, of_kind
from nas_kd.reasons import UNREAD
from nas_kd.report.figures import panes
from nas_kd.report.tables import _energy_models
from nas_kd.study import trial
from nas_kd.study.anchor import _by_similarity
from nas_kd.study.cost_gate import OF_KIND
from nas_kd.study.obstacles import require_clear
from nas_kd.study.record import Outcome
from nas_kd.study.sampler import history_of
from nas_kd.study.settings import KNOWN_OBJECTIVES, QUALITY, Settings
from nas_kd.study.study import (
    Study,
)

POINTS = RDCurve((0.1, 0.2, 0.4, 0.8), (28.0, 30.0, 32.0, 34.0))


def score(*objectives, curve=POINTS, states=None):
    """What a trial makes of readings whose value tells kind and part; its curve is the teacher's own."""
    asked = []

    def measure(kind):
        def of(student, device, part):
            asked.append((kind, part))
            if states is not None:
                return states[kind, part]
            return Reading.measured(len(part) + 100 * (kind == "latency"), 0.1, "mJ", "nvml")

        return of

    task = SimpleNamespace(
        anchor=trial.Anchor(POINTS, (29.0, 33.0)),
        objectives=objectives,
        lmbdas=(0.01, 0.02, 0.03, 0.04),
        device="cpu",
        measures={kind: measure(kind) for kind in MEASURED},
    )
    rate, quality = ([[value] for value in axis] for axis in (curve.bpp, curve.psnr_db))
    codec = Student(prim(8, 16))
    measured = Measured("bpp_est", rate, quality, ["a"], "f")
    cost = count(codec, (1, 3, 64, 64))
    return trial._score(task, codec, cost, measured, {}), cost, asked


def test_the_table_knows_every_objective_that_settings_allow():
    assert tuple(TABLE) == KNOWN_OBJECTIVES
    assert set(of_kind(KNOWN_OBJECTIVES, "quality")) == set(QUALITY)
    assert set(OF_KIND) == set(MEASURED) == set(UNREAD)


SIMILAR_DB = RDCurve(POINTS.bpp, (8.0, 10.0, 12.0, 14.0))


def by_similarity(rates, similar_db, *objectives):
    """What a trial makes of MS-SSIM in dB at these rates; by PSNR it is the teacher."""
    raw = [[1 - 10 ** (-db / 10)] for db in similar_db]
    psnr_db = [[db] for db in POINTS.psnr_db]
    measured = Measured("bpp_est", [[r] for r in rates], psnr_db, ["a"], "f", raw)
    anchor = trial.Anchor(POINTS, (29.0, 33.0), similar=trial.Anchor(SIMILAR_DB, (9.0, 13.0)))
    task = SimpleNamespace(anchor=anchor, objectives=objectives, lmbdas=(0.01, 0.02, 0.03, 0.04))
    codec = Student(prim(8, 16))
    return trial._score(task, codec, count(codec, (1, 3, 64, 64)), measured, {})


def test_bd_rate_by_ms_ssim_is_that_of_its_decibels():
    rates = [1.25 * rate for rate in POINTS.bpp]
    outcome = by_similarity(rates, SIMILAR_DB.psnr_db, "bd_rate:ms-ssim", "bd_rate")
    assert outcome.values == pytest.approx([25.0, 25.0])
    better = by_similarity(POINTS.bpp, (9.0, 11.0, 13.0, 15.0), "bd_rate", "bd_rate:ms-ssim")
    assert better.values == pytest.approx([0.0, 100 * (2**-0.5 - 1)])


def test_a_student_that_misses_the_decibels_of_ms_ssim_has_no_values():
    outcome = by_similarity(POINTS.bpp, (4.0, 5.0, 6.0, 7.0), "bd_rate:ms-ssim", "flops")
    assert (outcome.values, outcome.reason) == (None, "no_overlap")
    assert outcome.uncovered_db == pytest.approx(6.0)
    alone = by_similarity(POINTS.bpp, (4.0, 5.0, 6.0, 7.0), "bd_rate")
    assert alone.values == pytest.approx([0.0])


def test_what_ms_ssim_is_against_is_the_teachers_middle_and_needs_large_pictures():
    rates, quality = [[r] for r in POINTS.bpp], [[db] for db in POINTS.psnr_db]
    raw = [[1 - 10 ** (-db / 10)] for db in SIMILAR_DB.psnr_db]
    measured = Measured("bpp_est", rates, quality, ["a"], "f", raw)
    found = _by_similarity(measured)
    assert found.interval_db == pytest.approx((9.5, 12.5))
    assert found.curve.psnr_db == pytest.approx(SIMILAR_DB.psnr_db)
    assert found.per_image == (found.curve,)
    with pytest.raises(UsageError, match="under 161 px on a side"):
        _by_similarity(replace(measured, ms_ssim=[[None]] * 4))


def test_ms_ssim_against_a_classical_codec_is_refused_before_anything_is_done(tmp_path):
    asked = Settings("s", "demo", objectives=("bd_rate:ms-ssim",), anchor="jpeg")
    with pytest.raises(UsageError, match="it is against the teacher alone"):
        require_clear([asked], root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_parts_are_measured_apart_and_each_is_kept_under_its_name():
    names = ("energy:decoder", "energy:encoder", "latency", "latency:decoder")
    outcome, _, asked = score("bd_rate", *names)
    assert outcome.values[1:] == [7, 7, 104, 107]
    wanted = [
        ("energy", "decoder"),
        ("energy", "encoder"),
        ("latency", "both"),
        ("latency", "decoder"),
    ]
    assert asked == wanted
    assert [outcome.attrs[name]["value"] for name in names] == outcome.values[1:]


def test_parameters_and_the_decoders_macs_are_counted():
    outcome, cost, asked = score("rd_cost", "params", "flops:decoder", "flops")
    assert outcome.values[1:] == [cost.parameters, cost.decoder_macs, cost.macs]
    assert asked == []


def test_a_missing_part_leaves_a_trial_without_values():
    states = {("latency", "decoder"): Reading.rejected("rounds differ")}
    outcome, *_ = score("rd_cost", "latency:decoder", states=states)
    assert (outcome.values, outcome.reason) == (None, "latency: rounds differ")


def test_a_student_without_a_bd_rate_is_not_measured():
    worse = RDCurve(POINTS.bpp, tuple(db - 10 for db in POINTS.psnr_db))
    outcome, _, asked = score("bd_rate", "energy", curve=worse)
    assert (outcome.values, asked) == (None, [])


def test_an_objective_of_energy_needs_a_meter_whatever_its_part(monkeypatch):
    def none(device):
        return Reading.unavailable("no meter here")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(meters, "find_meter", none)
    with pytest.raises(MeterError, match="take it out: --objectives bd_rate,latency$"):
        require_likely_meter(("bd_rate", "latency", "energy"))
    with pytest.raises(MeterError, match="no meter here"):
        require_likely_meter(("bd_rate", "energy:decoder"))
    require_likely_meter(("bd_rate", "latency:decoder", "params", "flops:decoder"))


def test_settings_take_parts():
    names = ("bd_rate", "flops:decoder", "energy:decoder")
    assert Settings("s", "demo", objectives=names).objectives == names


@pytest.mark.thorough
def test_a_study_of_parts_has_its_models_and_its_panes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(
        Settings("s", "demo", "mini", ("bd_rate", "flops", "energy:decoder"), sampler="random")
    )
    for i, width in enumerate((16, 24, 32, 48, 64, 80, 96, 128, 160)):
        number, _ = study.ask(9)
        work = {"macs": width * 10**8, "bytes": 10**8 + i % 3, "kernels": 50 + i}
        reading = Reading.measured(2.0 * width, 0.1, "mJ", "nvml", {"work": work}).to_json()
        attrs = {"energy:decoder": reading}
        study.tell(number, Outcome([30.0 - i, width * 1e8, 2.0 * width], attrs=attrs))
    models = _energy_models(study)
    assert set(models) == {"energy:decoder"}
    assert models["energy:decoder"]["error_percent"] < 1
    assert [pane.reason for pane in panes(study)] == [None] * 3
    lasts = history_of(study.trials, study.space, 0).costs["energy:decoder"].values()
    assert sorted(lasts)[0] == 32.0
