"""The paper's tables: what is counted equals its printed digits, what is not measured is absent."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nas_kd.cli.main import main
from nas_kd.codec.arch import prim
from nas_kd.codec.checkpoint import save_student
from nas_kd.codec.student import Student
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.measurement.reading import Reading
from nas_kd.report.paper import (
    DIGITS,
    PAPER,
    TABLES,
    TEACHER,
    Row,
    difference,
    frames_per_second,
    rows,
    tables,
    to_teacher_percent,
)
from nas_kd.study.record import Outcome
from nas_kd.study.study import Settings, Study

FILE = Path(__file__).parents[2] / "studies" / "prim-channels.toml"


def _run(*words: str) -> tuple[object, str]:
    """The command in this process: its exit code, and what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nas-kd", "paper", *words])
        with redirect_stdout(printed), redirect_stderr(printed), pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code, printed.getvalue()


@pytest.fixture(scope="module")
def printed() -> dict[str, Any]:
    """What the command prints without a study; made once, for it counts six models."""
    code, text = _run(str(FILE), "--untrained", "--no-measure", "--json")
    assert code == 0
    return json.loads(text)


@pytest.fixture(scope="module")
def figures(printed: dict[str, Any]) -> dict[int, dict[str, Reading]]:
    found: dict[int, dict[str, Reading]] = {N: {} for N in PAPER}
    for row in [row for table in printed["tables"].values() for row in table]:
        for name, figure in row["figures"].items():
            found[row["N"]][name] = Reading.from_json(figure["ours"])
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[Study]:
    """A finished trial of N = 16 at another lambda than the paper's, and one of N = 32 at the paper's."""
    asked = {"objectives": ("rd_cost", "flops"), "steps": 7, "kd_y": 0.0, "kd_z": 0.2}
    settings = Settings("s", "prim", grid={"N": [16, 32]}, **asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        study = Study(settings)
        for lmbda in (0.0018, 0.025):
            number, arch = study.ask(2)
            attrs = {"rd": Measured("bpp_est", [[0.5]], [[31.0]], ["a"], "f").to_json()}
            study.tell(number, Outcome([1.0, 2.0], attrs=attrs))
            save_student(Student(arch, (lmbda,)), study.student_folder(study.trials[number]))
        yield study


def test_counts_equal_the_papers_last_printed_digit(figures: dict[int, dict[str, Reading]]):
    assert list(figures) == [128, 112, 96, 64, 32, 16]
    for N, ours in figures.items():
        for name in ("parameters_m", "gmac"):
            assert round(ours[name].value, DIGITS) == PAPER[N][name], (N, name)
    # More digits, as fvcore counts CompressAI's own model.
    macs = [34.2421, 26.7039, 20.0965, 9.6743, 2.9755, 1.0223]
    assert [round(ours["gmac"].value, 4) for ours in figures.values()] == macs


def test_memory_equals_the_papers_but_for_its_teachers_coding_tables(
    figures: dict[int, dict[str, Reading]],
):
    off = {N: difference(N, "memory_mib", ours["memory_mib"]) for N, ours in figures.items()}
    # 64 x 3133 quantised Gaussians (0.77 MiB) and the tables of z, which depend on the weights.
    assert off == {128: pytest.approx(-0.82), 112: 0, 96: 0, 64: 0, 32: 0, 16: 0}


def test_what_is_not_measured_is_absent_with_its_reason(printed: dict[str, Any]):
    assert set(printed["tables"]) == {"size", "compute", "energy"}
    for table, names in TABLES.items():
        assert [row["N"] for row in printed["tables"][table]] == list(PAPER)
        for row in printed["tables"][table]:
            for name in names:
                figure = row["figures"][name]
                absent = name in ("fps", "energy_mj", "psnr_db", "bpp_est")
                assert figure["paper"] == PAPER[row["N"]][name]
                assert (figure["ours"]["value"] is None) == absent
                assert (figure["difference"] is None) == absent
                assert not absent or figure["ours"]["reason"]
                assert absent or name == "memory_mib" or figure["difference"] == 0


def test_throughput_is_measured_on_this_machine():
    reading = frames_per_second(Student(prim(16), (0.025,)).eval(), "cpu", runs=2)
    times_s = reading.details["runs_s"]
    assert reading.state == "measured"
    assert reading.value == pytest.approx(2 / sum(times_s))
    assert reading.details["device"]


def test_changes_against_the_teacher_are_the_papers_own():
    unavailable = Reading.unavailable("no meter")
    fps = {N: Reading.measured(2.0 if N == 64 else 1.0, 0.1, "frames/s", "clock") for N in PAPER}
    found = [Row(N, {"fps": fps[N], "energy_mj": unavailable}) for N in PAPER]
    # Table 3 and Table 4 print +26.2 and -34.2 % for N = 64.
    assert to_teacher_percent(found, found[3], "fps") == {"paper": 26.2, "ours": 100.0}
    assert to_teacher_percent(found, found[3], "energy_mj") == {"paper": -34.1, "ours": None}


def test_quality_comes_from_the_trial_of_that_width_and_lambda(
    study: Study, figures: dict[int, dict[str, Reading]]
):
    found = {row.N: row for row in rows(figures, [study])}
    assert found[32].ours["psnr_db"].value == 31.0
    assert found[32].ours["bpp_est"].value == 0.5
    assert found[32].about["steps"] == 7
    assert found[32].about["data"] == "builtin"
    assert found[32].about["loss"] == "kd x 0 y 0 z 0.2"
    for N in (128, 16, 64):  # no teacher of the paper's, another lambda, never tried
        assert found[N].ours["psnr_db"].state == "unavailable"
        assert found[N].about == {}


def test_every_study_has_its_own_row(study: Study, figures: dict[int, dict[str, Reading]]):
    assert [row.N for row in rows(figures, [study, study])] == [128, 112, 96, 64, 32, 32, 16]


def test_the_tables_show_paper_ours_and_difference(
    study: Study, figures: dict[int, dict[str, Reading]]
):
    console = Console(width=240, record=True, file=io.StringIO())
    for table in tables(rows(figures, [study]), "cpu"):
        console.print(table)
    text = console.export_text()
    cells = ("6.46, 6.46 (+0.00)", "9.67, 9.67 (+0.00)", "20.18, 19.36 (-0.82)", "1164.17, absent")
    for cell in (
        *cells,
        "+26.2, absent",
        "32.71, 31.00 (-1.71)",
        "32 [1]",
        "[1] s: 7 steps, loss kd",
    ):
        assert cell in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "name a study, or take --untrained"),
        (("absent",), "study 'absent'"),
        (("absent.toml",), "absent.toml: there is no such file"),
        (("f.toml",), "none of its studies is begun; run nas-kd search f.toml"),
    ],
)
def test_a_table_that_cannot_be_made_says_why(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.toml").write_text('space = "prim"\n')
    code, text = _run(*words)
    assert (code, text.count("\n")) == (2, 1)
    assert says in text


def test_the_teachers_row_is_the_studys_own_anchor(
    study: Study, figures: dict[int, dict[str, Reading]]
):
    curve = {"bpp": [0.66], "psnr_db": [34.6]}
    anchor = {"teacher": f"{TEACHER}, z of x:1", "curve": curve, "interval_db": None}
    study.optuna.set_user_attr("anchor", anchor)
    teacher = rows(figures, [study])[0]
    assert (teacher.N, teacher.ours["psnr_db"].value) == (128, 34.6)


def test_another_teacher_of_that_name_is_not_the_papers(
    study: Study, figures: dict[int, dict[str, Reading]]
):
    """A narrower one has no row; one of the paper's width has, and is not said to be CompressAI's."""
    curve = {"bpp": [0.9], "psnr_db": [30.0]}
    anchor = {"teacher": TEACHER, "curve": curve, "interval_db": None}
    anchor["teacher_fingerprint"] = "0123abcd"
    study.optuna.set_user_attr("anchor", anchor | {"latent_widths": [192, 64]})
    found = {row.N: row for row in rows(figures, [study])}
    assert found[128].about == {}
    assert found[32].about["teacher"] == f"{TEACHER} of N = 64, 30.00 dB at 0.90 bpp"
    study.optuna.set_user_attr("anchor", anchor | {"latent_widths": [192, 128]})
    teacher = rows(figures, [study])[0]
    assert teacher.ours["psnr_db"].value == 30.0
    assert teacher.about["data"] == "see the card beside its file"
