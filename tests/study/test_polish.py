"""The front trained on, through a real Ray, and what is exported then."""

import warnings
from dataclasses import replace

import pytest

from nas_kd.cluster.launch import Machine, search
from nas_kd.cluster.tune import start_ray
from nas_kd.codec.checkpoint import load_student, weights_digest
from nas_kd.errors import NasKdError
from nas_kd.report.export import export_front
from nas_kd.report.tables import front_json
from nas_kd.study.polish import (
    best_folder,
    gained,
    keep,
    polish_front,
    polished_key,
    unpolished,
)
from nas_kd.study.record import Lost
from nas_kd.study.study import Settings, open_study


def said(record):
    return {**record, "rd": {"bpp_est": [], "psnr_db": []}}


def test_only_the_front_is_polished_and_each_member_once(small):
    small.settings = replace(small.settings, polish=7)
    first, second = unpolished(small)
    assert [first.number, second.number] == [1, 0]
    keep(small, first, said({"steps": 7, "bd_rate": 20.0, "rd_cost": 1.0}))
    assert [t.number for t in unpolished(small)] == [0]
    small.settings = replace(small.settings, polish=9)  # more steps: again
    assert [t.number for t in unpolished(small)] == [1, 0]
    small.settings = replace(small.settings, polish=0)
    assert unpolished(small) == []


def test_the_better_of_the_two_students_is_taken(small):
    better, worse = small.front()
    keep(small, better, said({"steps": 7, "bd_rate": better.values[0] - 1, "rd_cost": 1.0}))
    keep(small, worse, said({"steps": 7, "bd_rate": worse.values[0] + 1, "rd_cost": 1.0}))
    assert gained(small, better)["steps"] == 7
    assert gained(small, worse) is None
    assert best_folder(small, better).name == polished_key(better.user_attrs["arch_key"])
    assert best_folder(small, worse) == small.student_folder(worse)
    members = front_json(small)["front"]
    assert [m["polished"]["steps"] for m in members] == [7, 7]
    assert members[0]["values"]["bd_rate"] == better.values[0]
    keep(small, better, said({"steps": 7, "bd_rate": None, "rd_cost": 1.0}))
    assert gained(small, better) is None


def test_a_student_that_cannot_be_polished_stays_as_it_was_and_the_others_are_kept(small):
    small.settings, heard = replace(small.settings, polish=11), []
    better, worse = small.front()
    nan = Lost("nan", "loss is nan at step 2")
    gain = said({"steps": 11, "bd_rate": worse.values[0] - 1, "rd_cost": 1.0})
    polish_front(small, lambda keys: iter([nan, gain]), lambda *words: heard.append(words[1]))
    assert heard[0].endswith("trial 1 keeps its unpolished student (nan: loss is nan at step 2)")
    assert (gained(small, better), gained(small, worse)) == (None, gain)
    assert best_folder(small, better) == small.student_folder(better)
    assert unpolished(small) == []  # the same seeds would give the same


def test_a_student_whose_polish_was_interrupted_is_tried_again_and_the_others_are_kept(small):
    small.settings = replace(small.settings, polish=12)
    full = Lost("interrupted", "No space left on device")
    gain = said({"steps": 12, "bd_rate": 1.0, "rd_cost": 1.0})
    with pytest.raises(NasKdError, match="1 of 2 .* interrupted .No space left on device.; mend"):
        polish_front(small, lambda keys: iter([full, gain]))
    assert [t.number for t in unpolished(small)] == [1]


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_search_polishes_its_front_and_exports_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        "p", "demo", objectives=("rd_cost", "flops"), steps=0, crops=16, crop_size=64, batch=1
    )
    heard = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start_ray(1)
        search(settings, 2, Machine(1), lambda *words: heard.append(words))
        before = {t.number: t.values for t in open_study("p").front()}
        search(replace(settings, polish=3), 2, Machine(1), lambda *words: heard.append(words))
    study = open_study("p")
    assert {t.number: t.values for t in study.front()} == before
    assert set(study.polished) == set(before)
    assert ("preparing", f"polished: {len(before)} of {len(before)} students of the front") in heard
    for trial in study.front():
        own = study.student_folder(trial)
        polished = load_student(own.with_name(polished_key(own.name)))
        assert weights_digest(polished) != weights_digest(load_student(own))
        assert not list(own.with_name(polished_key(own.name)).glob("*.pt"))
    folders = export_front(study, tmp_path / "out")
    for trial, folder in zip(study.front(), folders, strict=True):
        taken = load_student(best_folder(study, trial))
        assert weights_digest(load_student(folder)) == weights_digest(taken)
