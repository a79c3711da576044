"""What travels from the driver to its workers, and what a trial's attributes say."""

import json
from dataclasses import replace
from pathlib import Path

from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from nas_kd.codec.arch import prim
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.study.anchor import Anchor, TeacherRecord
from nas_kd.study.prepared import Prepared, WayHome, in_full, read_by_trials
from nas_kd.study.record import Outcome, record
from nas_kd.study.settings import Settings

CURVE = RDCurve((0.1, 0.2, 0.4, 0.8), (26.0, 29.0, 32.0, 35.0))


def test_what_is_prepared_is_the_same_after_its_way_as_json():
    teacher = TeacherRecord("mini", "bpp_est", "f" * 64, (256, 64), CURVE)
    anchor = Anchor(CURVE, (28.0, 33.0), {"JPEG": CURVE}, "jpeg", (CURVE, CURVE), teacher)
    settings = Settings("s", "prim", objectives=("rd_cost", "flops"), grid={"N": [8, 16]})
    places = (Path("/pool"), None, anchor, Path("/s/students"), WayHome("word", "actor"))
    prepared = Prepared(settings, (0.01, 0.02), *places)
    prepared = replace(prepared, large=Path("/large"))
    assert Prepared.from_json(json.loads(json.dumps(prepared.to_json()))) == prepared


def test_what_a_trial_opens_has_its_whole_path_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings("s", "mine.toml", eval_data="pictures", data="others")
    full = in_full(settings)
    assert (full.space, full.eval_data) == (f"{tmp_path}/mine.toml", f"{tmp_path}/pictures")
    assert full.data == f"{tmp_path}/others"
    assert in_full(full) == full
    builtin = Settings("s", "demo")
    assert (in_full(builtin), read_by_trials(builtin)) == (builtin, [])


def test_pictures_are_lent_where_the_folder_of_lessons_does_not_hold_them(tmp_path):
    pool, own = tmp_path / "pool", Settings("s", "demo", data=str(tmp_path / "photographs"))
    pool.mkdir()
    prepared = Prepared(own, (0.01,), pool, None, None, tmp_path)
    assert prepared.lent == [pool]  # a pool of stored outputs
    (pool / "pool.json").write_text('{"anew": true}')
    assert prepared.lent == [pool, tmp_path / "photographs"]
    copied = {pool: Path("/copies/pool"), tmp_path / "photographs": Path("/copies/photographs")}
    moved = prepared.moved(copied, Path("/students"))
    assert (moved.pool, moved.settings.data) == (Path("/copies/pool"), "/copies/photographs")
    (pool / "pictures.npy").touch()
    assert prepared.lent == [pool]


def trial(**attrs):
    return create_trial(
        state=TrialState.PRUNED,
        params={"N": 8},
        distributions={"N": IntDistribution(8, 16)},
        user_attrs=attrs,
    )


def test_of_a_trial_that_came_to_nothing_nothing_is_known():
    known = record(trial())
    assert (known.begun, known.deaths, known.seconds, known.readings) == (False, 0, {}, {})
    for name in ("arch_key", "driver", "retry_of", "same_as", "reason", "message", "cost", "rd"):
        assert getattr(known, name) is None


def test_a_trials_attributes_have_their_types():
    reading = {"state": "unavailable", "value": None, "reason": "no meter"}
    known = record(
        trial(
            arch=prim(8, 16).to_json(),
            reason="energy: no meter",
            constraints=[2.5, 0.0],
            energy=reading,
            rungs={"10": [1.5, 3e9]},
        )
    )
    assert (known.arch, known.short_db) == (prim(8, 16), 2.5)
    assert (known.reason, known.said) == ("energy", "energy: no meter")
    assert known.readings["energy"].to_json() == reading
    assert known.rungs["10"] == [1.5, 3e9]


def test_an_outcome_is_read_as_the_trial_that_it_becomes():
    outcome = Outcome(None, "crash", attrs={"arch_key": "k", "over": 0.5, "seconds": {"a": 1.0}})
    assert (outcome.record.arch_key, outcome.record.over) == ("k", 0.5)
    assert record(trial(**outcome.attrs)).seconds == outcome.record.seconds
