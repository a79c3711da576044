import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume
from PIL import Image
from scipy.stats import bootstrap
from small import NAME

from nas_kd.data.images import ImageSet, open_images
from nas_kd.errors import UsageError
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.evaluation.classical import to_file
from nas_kd.evaluation.published import SHOWN
from nas_kd.report import seen as pages
from nas_kd.report.crops import spread, whole
from nas_kd.report.figures import MIN_FOR_IMPORTANCE, importances, panes, volumes
from nas_kd.report.html import build, write_report
from nas_kd.report.plots import plot_front
from nas_kd.report.rd_plot import COLOURS, figure, lines_of
from nas_kd.report.seen import Seen, best_first, look
from nas_kd.study.record import Outcome
from nas_kd.study.study import Settings, Study, open_study
from nas_kd.study.told_apart import alike, notes
from nas_kd.study.uncertainty import uncertainty_of


@pytest.fixture(scope="module")
def page(small_folder):
    """The small study's report and the data in it."""
    before = os.getcwd()
    os.chdir(small_folder)
    try:
        study = open_study(NAME)
        text = build(study, look(study))
    finally:
        os.chdir(before)
    return text, json.loads(embedded(text))


def embedded(text):
    return re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]


def test_it_loads_nothing(page):
    class Loads(HTMLParser):
        found = []

        def handle_starttag(self, tag, attrs):
            named = dict(attrs)
            sources = [named.get("src"), named.get("href")]
            self.found += [s for s in sources if s and not s.startswith(("#", "data:"))]

    reader = Loads()
    reader.feed(page[0])
    assert reader.found == []
    assert len(page[0]) < 8e6


def test_no_text_of_a_study_can_end_its_script(page):
    assert "</script><b>out of memory" not in page[0]
    crashed = page[1]["trials"][4]
    assert ["reason", "crash: </script><b>out of memory"] in crashed["facts"]


def test_every_trial_is_in_the_table_with_its_values(page):
    names = [column["name"] for column in page[1]["columns"]]
    rows = [dict(zip(names, trial["row"], strict=True)) for trial in page[1]["trials"]]
    assert [r["state"] for r in rows] == ["complete"] * 3 + ["infeasible", "failed"]
    assert [r["BD-rate %"] for r in rows] == [40.0, 30.0, 60.0, None, None]
    assert rows[1]["GMAC (768x512)"] == 5.0
    assert rows[3]["reason"] == "partial_overlap"
    assert [t["number"] for t in page[1]["trials"] if t["front"]] == [0, 1]


def test_the_table_and_the_csv_have_a_column_for_each_dimension(page, small):
    names = [column["name"] for column in page[1]["columns"]]
    row = dict(zip(names, page[1]["trials"][1]["row"], strict=True))
    assert {d: row[d] for d in small.space.vary} == small.trials[1].params
    assert [c["name"] for c in page[1]["columns"] if c.get("hidden")] == ["arch"]


def test_baselines_that_the_study_kept_are_not_measured_again(small):
    anchor = small.optuna.user_attrs["anchor"]
    curve = RDCurve((0.1, 0.2), (20.0, 30.0))
    kept = anchor | {"baselines": {"JPEG": curve.to_json()}}
    try:
        small.optuna.set_user_attr("anchor", kept)
        assert look(small).baselines == {"JPEG": curve}
    finally:
        small.optuna.set_user_attr("anchor", anchor)


def test_parts_add_up_to_the_whole(page):
    for trial in page[1]["trials"][:4]:
        assert sum(share for _, _, share in trial["parts"]) == pytest.approx(1.0)


def test_there_is_a_crop_of_every_front_member_and_its_original(page):
    assert {shot["trial"] for shot in page[1]["shots"]} == {0, 1}
    assert {shot["picture"] for shot in page[1]["shots"]} == set(page[1]["originals"])


def test_every_coded_picture_has_a_webp_file_of_its_size_or_webps_smallest(page, small):
    waves = open_images(small.settings.eval_data, "eval").images[0]
    smallest = len(to_file(waves[:128, :192], "WEBP", {"quality": 0, "method": 6}))
    for shot in page[1]["shots"]:
        own, webp = (
            int(said.split(" bytes")[0].replace(",", ""))
            for said in (shot["said"], shot["webp"]["said"])
        )
        assert abs(webp - own) <= 0.1 * own or webp == smallest > own


def test_pictures_larger_than_their_crop_are_there_whole():
    rng = np.random.default_rng(0)
    pixels = [
        rng.integers(255, size=(*size, 3), dtype=np.uint8)
        for size in ((256, 300), (300, 400), (300, 1000))
    ]
    sizes = tuple(one.shape[:2] for one in pixels)
    images = ImageSet("set", pixels, ("a", "b", "c"), sizes, "f")
    assert {name: image.shape[:2] for name, image in whole(images, 2).items()} == {
        "b, whole": (300, 400),
        "c, 768x300 of it": (300, 768),
    }


def test_it_opens_with_the_best_bd_rate_and_a_middle_level(page):
    assert page[1]["opens"] == {"trial": 1, "level": 4}
    assert {shot["level"] for shot in page[1]["shots"]} == {1, 4}


def test_the_best_is_by_bd_rate_whatever_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(Settings("costs", "demo", objectives=("flops", "bd_rate")))
    for macs, value in ((1e9, 50.0), (3e9, 20.0), (2e9, 30.0)):
        number, _ = study.ask(3)
        study.tell(number, Outcome([macs, value]))
    assert [t.number for t in best_first(study)] == [1, 2, 0]


def test_what_is_absent_has_its_reason(page):
    text = page[0]
    shown = "Absent: BD-rate % against mJ per frame; mJ per frame against GMAC (768x512). Energy was not"
    assert shown in text
    assert "fewer than 160 say nothing" in text


def test_baselines_stand_beside_teacher_and_front(page):
    names = [trace["name"] for trace in page[1]["figures"]["curves"]["data"]]
    assert names[:4] == ["teacher mini", "JPEG", "WebP", "AVIF"]
    assert len(names) == 6


def test_other_evaluation_pictures_are_refused(small, tmp_path):
    Image.new("RGB", (128, 128), "red").save(tmp_path / "red.png")
    small.settings = replace(small.settings, eval_data=str(tmp_path))
    seen = look(small)
    assert (seen.baselines, seen.shots) == ({}, [])
    assert "not those that the study was judged by" in seen.missing


def test_a_study_without_trials_is_an_error_of_usage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(Settings("empty", "demo", objectives=("bd_rate", "flops")))
    with pytest.raises(UsageError, match="no trials"):
        write_report(study, tmp_path / "r.html")


def test_a_pane_has_bars_where_an_uncertainty_was_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(Settings("three", "demo"))
    for values in ([40.0, 3e9, 5.0], [30.0, 5e9, 6.0]):
        reading = {"state": "measured", "value": values[2], "uncertainty": 0.25}
        about = {"unit": "mJ", "source": "counter"}
        number, arch = study.ask(5)
        study.tell(number, Outcome(values, attrs={"energy": reading | about}))
    shown = {pane.key: pane.figure for pane in panes(study)}
    assert shown["energy-bd_rate"]["data"][1]["error_x"]["array"] == [0.25, 0.25]
    assert shown["flops-energy"]["data"][1]["error_y"]["array"] == [0.25, 0.25]
    assert "error_y" not in shown["energy-bd_rate"]["data"][1]


def curve_of(rates):
    return {"bpp": rates, "psnr_db": [30.0, 32.0, 34.0, 36.0, 38.0]}


def test_a_bd_rates_bar_is_half_the_interval_over_the_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(Settings("bars", "demo", objectives=("bd_rate", "flops")))
    rates = [0.1, 0.2, 0.4, 0.8, 1.6]
    teacher = curve_of(rates)
    anchor = {"teacher": "t", "curve": teacher, "interval_db": [32.0, 36.0]}
    study.optuna.set_user_attr("anchor", anchor | {"per_image": [teacher] * 4})
    # Ten and thirty per cent more bits for equal quality, on two pictures each.
    per_image = [[r * f for f in (1.1, 1.1, 1.3, 1.3)] for r in rates]
    quality = [[db] * 4 for db in teacher["psnr_db"]]
    rd = {"per_image_bpp_est": per_image, "per_image_psnr_db": quality}
    rd |= {"images": ["a"] * 4, "data_fingerprint": "0" * 64}
    for attrs in ({"rd": rd}, {}):
        number, _ = study.ask(5)
        study.tell(number, Outcome([20.0, 3e9], attrs=attrs))
    bar = uncertainty_of(study, study.trials[0], "bd_rate")
    rng, each = np.random.default_rng(0), ([10.0, 10.0, 30.0, 30.0],)
    low, high = bootstrap(each, np.mean, n_resamples=1000, rng=rng).confidence_interval
    assert bar == pytest.approx((high - low) / 2)
    assert uncertainty_of(study, study.trials[1], "bd_rate") is None
    study.optuna.set_user_attr("anchor", anchor)
    assert uncertainty_of(study, study.trials[0], "bd_rate") is None


def doubtful(name, *values, bars=0.0):
    """A study whose trials have these BD-rates, each by four pictures so far off it, neighbours by others."""
    study = Study(Settings(name, "demo", objectives=("bd_rate", "flops")))
    rates = [0.1, 0.2, 0.4, 0.8, 1.6]
    teacher = curve_of(rates)
    anchor = {"teacher": "t", "curve": teacher, "interval_db": [32.0, 36.0]}
    grey = RDCurve((0.1, 0.2, 0.4), (25.0, 28.0, 31.0)).to_json()
    anchor |= {"baselines": {"JPEG": grey, "WebP": grey, "AVIF": grey}}
    study.optuna.set_user_attr("anchor", anchor | {"per_image": [teacher] * 4})
    for macs, value in enumerate(values, start=1):
        signs = (-1, 1, -1, 1) if macs % 2 else (-1, -1, 1, 1)
        factors = [1 + (value + sign * bars) / 100 for sign in signs]
        rd = {"per_image_bpp_est": [[r * f for f in factors] for r in rates]}
        rd["per_image_psnr_db"] = [[db] * 4 for db in teacher["psnr_db"]]
        rd |= {
            "bpp_est": rates,
            "psnr_db": teacher["psnr_db"],
            "images": ["a"],
            "data_fingerprint": "0" * 64,
        }
        number, _ = study.ask(len(values))
        study.tell(number, Outcome([value, macs * 1e9], attrs={"rd": rd}))
    return study


def test_members_that_cannot_be_told_apart_are_noted_as_one_and_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = doubtful("two", 60.0, 25.0, 20.0, bars=10.0)
    assert len(study.front()) == 3
    assert alike(study) == {"bd_rate": [[2, 1]]}
    said = "by BD-rate on these pictures trials 2 and 1 count as one: the difference lies within its uncertainty"
    assert notes(study) == [said]
    page = build(study, Seen({}, {}, [], "none"))
    assert said[1:] in page
    assert alike(doubtful("sure", 60.0, 25.0, 20.0, bars=1.0)) == {}


def test_the_plot_has_bars_numbers_stairs_and_classical_codecs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = doubtful("plot", 60.0, 25.0, 40.0, bars=10.0)
    plot_front(study, tmp_path / "front.svg")
    drawn = re.findall(r"<!-- (.*?) -->", (tmp_path / "front.svg").read_text())
    for said in ("JPEG", "WebP", "AVIF", "teacher t", "trial 0", "dominated", "front", "2"):
        assert said in drawn
    assert any("count as one" in text for text in drawn) == bool(notes(study))
    text = (tmp_path / "front.svg").read_text()
    assert text.count('id="LineCollection_') == 2  # a bar for each of the front's two


@pytest.mark.thorough
def test_importances_are_absent_under_the_stated_number_and_of_what_is_exact(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = doubtful("few", 60.0, 25.0, 20.0)
    assert importances(study).reason == (
        f"3 complete trials: fewer than {MIN_FOR_IMPORTANCE} say nothing about it"
    )
    monkeypatch.setattr("nas_kd.report.figures.MIN_FOR_IMPORTANCE", 12)
    shown = importances(doubtful("many", *range(20, 32))).figure
    assert [bar["name"] for bar in shown["data"]] == ["BD-rate %"]


def test_where_all_is_computed_exactly_there_are_no_importances(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nas_kd.report.figures.MIN_FOR_IMPORTANCE", 2)
    study = Study(Settings("exact", "demo", objectives=("flops",), sampler="random"))
    for macs in (1e9, 2e9, 3e9):
        number, _ = study.ask(3)
        study.tell(number, Outcome([macs]))
    assert importances(study).reason == "every objective is computed from the arch exactly"


def test_a_retried_trial_names_the_one_that_took_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(Settings("again", "demo", objectives=("bd_rate", "flops")))
    number, _ = study.ask(5)
    study.tell(number, Outcome(None, "interrupted"))
    again = study.ask(5)[0]
    data = json.loads(embedded(build(study, Seen({}, {}, [], "none"))))
    assert again == 1
    place = [column["name"] for column in data["columns"]].index("reason")
    assert data["trials"][0]["row"][place] == "interrupted, again as trial 1"


@pytest.mark.parametrize("kodak", [True, False])
def test_others_curves_and_the_papers_points_stand_only_beside_curves_on_kodak(
    small, kodak, monkeypatch
):
    monkeypatch.setattr(pages, "is_kodak", lambda images: kodak)
    seen = look(small)
    drawn = {trace["name"]: trace for trace in figure(lines_of(small, {}, seen.published))["data"]}
    assert (drawn.keys() >= set(SHOWN)) is kodak
    papers = [(t["x"][-1], t["y"][-1]) for name, t in drawn.items() if "paper" in name]
    assert papers == [(0.67, 34.53)] * kodak
    told = build(small, seen)
    assert ("figures of the paper" in told) is not kodak
    assert ("vtm, cheng2020-anchor, bmshj2018-hyperprior: published on" in told) is kodak


def test_kodaks_names_alone_bring_no_curves(small, monkeypatch):
    trials = small.trials
    for trial in trials:
        if "rd" in trial.user_attrs:
            trial.user_attrs["rd"]["images"] = [f"kodim{i:02d}.png" for i in range(1, 25)]
    monkeypatch.setattr(Study, "trials", trials)
    assert look(small).published == {}


def test_the_hypervolumes_history_ends_at_optunas_and_never_falls():
    points = [(3.0, 1.0, 5.0), (2.0, 2.0, 4.0), (9.0, 9.0, 9.0), (1.0, 3.0, 3.0), (2.0, 1.0, 6.0)]
    history = volumes(points)
    assert history == sorted(history)
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    corner = high + 0.1 * (high - low)
    scaled = (np.asarray(points) - low) / (corner - low)
    assert history[-1] == pytest.approx(compute_hypervolume(scaled, np.ones(3)))


def test_levels_are_spread_with_both_ends():
    assert spread(6, 3) == [1, 4, 6]
    assert spread(2, 5) == [1, 2]


def test_colours_are_distinct():
    assert len(set(COLOURS)) == len(COLOURS)
