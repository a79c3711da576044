import json
import re
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from nas_kd.codec.cost import Cost
from nas_kd.errors import UsageError
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.evaluation.published import against_anchor, decoders, published
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.report.frontier import (
    MACS,
    TIME,
    Frontier,
    Spot,
    draw_frontier,
    frontier_panes,
    frontiers,
    place_names,
)
from nas_kd.report.plot_files import require_plot
from nas_kd.report.plots import plot_frontier
from nas_kd.study.record import Outcome
from nas_kd.study.study import Settings, Study

RATES = [0.1, 0.2, 0.4, 0.8, 1.6]
TEACHER = {"bpp": RATES, "psnr_db": [30.0, 32.0, 34.0, 36.0, 38.0]}


def made(*objectives):
    """Two trials at 10 and 30 % over the teacher, decoders of 2 and 1 kMAC per pixel; JPEG needs twice the rate."""
    study = Study(
        Settings("made", "demo", objectives=("bd_rate", "flops", *objectives), sampler="random")
    )
    jpeg = {"bpp": [2 * rate for rate in RATES], "psnr_db": TEACHER["psnr_db"]}
    anchor = {"teacher": "t", "curve": TEACHER, "interval_db": [32.0, 36.0]}
    study.optuna.set_user_attr("anchor", anchor | {"baselines": {"JPEG": jpeg}})
    for factor, macs in ((1.1, 2), (1.3, 1)):
        points = [[factor * rate] for rate in RATES], [[db] for db in TEACHER["psnr_db"]]
        measured = Measured("bpp_est", *points, ["a"], "f")
        cost = Cost(1, 2 * macs * 10**5, 0, macs * 10**5, {}, (1, 3, 10, 10), "by hand").to_json()
        number, _ = study.ask(2)
        values = [100 * (factor - 1), macs * 1e5, *(5.0 * macs for _ in objectives)]
        study.tell(number, Outcome(values, attrs={"rd": measured.to_json(), "cost": cost}))
    return study


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_elsewhere_ours_stand_beside_classical_codecs_alone(elsewhere):
    macs, ms = frontiers(made(), kodak=False)
    assert [(s.cost, round(s.bd_rate, 6)) for s in macs.spots] == [(1.0, 30.0), (2.0, 10.0)]
    assert macs.levels == {"JPEG": pytest.approx(100.0)}
    assert macs.notes[0].startswith("published codecs are left out: their figures are on Kodak")
    assert ms.missing.startswith("latency:decoder was not an objective")


def test_times_are_those_that_trials_measured(elsewhere):
    _, ms = frontiers(made("latency:decoder"), kodak=False)
    assert [(s.cost, s.trial) for s in ms.spots] == [(5.0, 1), (10.0, 0)]


def test_on_kodak_all_stand_against_one_codec(elsewhere):
    macs, _ = frontiers(made(), kodak=True)
    own = {s.trial: s.bd_rate for s in macs.spots if s.trial is not None}
    curve = RDCurve([1.1 * rate for rate in RATES], TEACHER["psnr_db"])
    assert own[0] == pytest.approx(against_anchor(curve))
    others = {s.name: (s.cost, s.bd_rate, s.kind) for s in macs.spots if s.trial is None}
    assert others["pulse-s"] == (2.8, 4.7, "converted")
    assert others["shallow-ntc"][:2] == (20.5, against_anchor(published()["shallow-ntc"].curve))
    assert others["bmshj2018-hyperprior"][1] == pytest.approx(0.0, abs=1e-9)
    assert macs.against == "bmshj2018-hyperprior"


def test_pictures_that_are_not_kodak_bring_no_published_point(small):
    assert not any(spot.trial is None for one in frontiers(small) for spot in one.spots)


def test_the_docs_have_the_published_decoders():
    table = (Path(__file__).parents[2] / "docs" / "published.md").read_text()
    for name, one in decoders().items():
        assert f"| {name} | {one.bd_rate:+.1f} | {one.kmac_px:g} | {one.source} |" in table


@pytest.mark.thorough
def test_both_forms_have_the_same_points_and_lines(elsewhere, tmp_path):
    study = made()
    shown = frontier_panes(frontiers(study, kodak=False))
    assert [pane.figure is None for pane in shown] == [False, True]
    line, front = shown[0].figure["data"]
    assert (line["name"], line["y"]) == ("JPEG", pytest.approx([100.0, 100.0]))
    assert front["customdata"] == [1, 0]
    json.dumps(shown[0].figure, allow_nan=False)
    plot_frontier(study, tmp_path / "frontier.svg")
    drawn = re.findall(r"<!-- (.*?) -->", (tmp_path / "frontier.svg").read_text())
    assert {"JPEG", "front", MACS, TIME} <= set(drawn)
    axes = Figure().add_subplot()
    draw_frontier(axes, frontiers(study, kodak=False)[0])
    assert axes.get_xscale() == "log"


def test_names_in_a_file_are_inside_and_cover_no_other():
    axes = Figure(figsize=(6, 5.5), layout="constrained").add_subplot()
    others = [Spot(n, d.kmac_px, d.bd_rate, "published") for n, d in decoders().items()]
    draw_frontier(
        axes, Frontier(MACS, "a", [*others, Spot("trial 1", 2.0, -10.0, "front", trial=1)])
    )
    axes.figure.draw_without_rendering()
    place_names(axes)
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == len(decoders()) + 1
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_a_pgf_needs_no_latex_and_has_every_text(elsewhere, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    file = tmp_path / "frontier.pgf"
    require_plot(file, "--frontier")
    plot_frontier(made(), file)
    text = file.read_text()
    assert text.rstrip().endswith(r"\endgroup%")
    drawn = re.findall(r"\\pgftext\[.*?\]\{(.*)\}", text)
    for said in ("JPEG", "front", MACS, "BD-rate % against teacher mini"):
        assert any(one.endswith(f"{said}}}") for one in drawn), said
    assert any(r"objectives: bd\_rate,flops" in one for one in drawn)
    assert not any(re.search(r"(?<!\\)[_#&]", one.rpartition("%{\\%}")[2]) for one in drawn)


def test_plots_are_refused_in_other_formats(tmp_path):
    with pytest.raises(
        UsageError, match="^--frontier .*x.gif: must end in .png, .svg, .pdf or .pgf$"
    ):
        require_plot(tmp_path / "x.gif", "--frontier")
    require_plot(tmp_path / "x.pdf", "--plot")
