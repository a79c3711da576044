import io
import json
import os
import re
from dataclasses import replace

import pytest
from rich.console import Console

from nas_kd.codec.arch import Arch
from nas_kd.codec.search_space import SearchSpace, load_space
from nas_kd.report.live import (
    Foretold,
    JsonLines,
    Lines,
    Quiet,
    Screen,
    Watch,
    _bar,
    mode_of,
    say_end,
    say_stopped,
    sparkline,
)
from nas_kd.report.tables import Brief, front_table
from nas_kd.study.events import TrialEvent
from nas_kd.study.progress import Follow


def played(small, show):
    """The events of a search whose trials are those of the small study."""
    watch = Watch(6, show)
    watch.listen("preparing", "teacher's outputs: 1 of 2 crops")
    watch.listen("reaped", 1)
    for kind, number in (("started", 0), ("trial", 0), ("trial", 3), ("trial", 4)):
        watch.listen(kind, TrialEvent(small, number))
    return watch


def test_the_study_that_the_driver_holds_is_not_opened_again(small, monkeypatch):
    monkeypatch.setattr("nas_kd.study.study.open_storage", lambda url: pytest.fail(url))
    assert played(small, Screen()).progress(small).counted == 4


def test_progress_counts_and_foretells(small):
    watch = played(small, Quiet())
    p = watch.progress(small)
    assert (p.complete, p.infeasible, p.failed, p.counted, p.front) == (3, 1, 1, 4, 2)
    # Trials 0 and 3 took 1.5 s each, one at a time; 4, which crashed, is not timed.
    assert p.per_trial_s == pytest.approx(1.5)
    assert p.left_s == pytest.approx(2 * 1.5)


def test_the_time_left_has_the_energy_of_trials_and_the_polish_of_the_front(small, monkeypatch):
    watch = played(small, Quiet())
    seconds = {"distil": 4.0, "evaluate": 1.0, "rest": 5.0}  # a reading of energy is in the rest
    small.trials[0].user_attrs["seconds"] = seconds
    watch.spent_s, watch.distil_s = [sum(seconds.values())], [seconds["distil"]]
    assert watch.progress(small).left_s == pytest.approx(2 * 10)
    polished = replace(small.settings, polish=small.settings.steps // 2)
    monkeypatch.setattr(small, "settings", polished)
    assert watch.progress(small).left_s == pytest.approx(2 * 10 + 2 * 4 / 2)


def test_two_trials_at_once_take_half_the_time_each(small):
    watch = played(small, Quiet())
    watch.at_once = 2
    assert watch.progress(small).per_trial_s == pytest.approx(0.75)


def test_the_first_trial_of_each_worker_is_not_what_the_others_will_take(small):
    watch = played(small, Quiet())
    watch.at_once, watch.spent_s = 2, [60.0, 64.0, 2.0, 4.0]
    assert watch.progress(small).per_trial_s == pytest.approx(1.5)


def test_lines_say_values_and_reasons(small, capsys):
    played(small, Lines())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "preparing: teacher's outputs: 1 of 2 crops"
    assert lines[1].startswith("resuming: 1 ")
    assert lines[2].startswith("trial 0 started: enc [")
    assert "trial 0: 40.00 BD-rate %, 3.00 GMAC (768x512) | front 2" in lines[3]
    assert "trial 3: pruned: partial_overlap" in lines[4]


def test_every_json_line_is_an_object_with_its_event(small, capsys):
    played(small, JsonLines())
    say_end(small, "json")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = ["preparing", "reaped", "started", "trial", "trial", "trial", "done"]
    assert [e["event"] for e in events] == kinds
    assert events[3]["values"] == {"bd_rate": 40.0, "flops": 3e9}
    assert (events[4]["values"], events[4]["reason"]) == (None, "partial_overlap")
    assert {m["trial"] for m in events[-1]["front"]} == {0, 1}


def test_an_arch_is_said_in_the_words_that_vary_in_its_space(small):
    arch = Arch.from_json(small.trials[0].user_attrs["arch"])
    said = Brief(small.space)(arch)
    assert said.split(" | ")[2] == f"M{arch.M} h{arch.hyper}"
    assert not set(said.split()) & {"leaky_relu", "k3", "+linear"}
    one = SearchSpace("one", {"N": (8,)}, load_space("prim").template | {"M": 192})
    assert Brief(one)(one.draw(0)) == str(one.draw(0))


def test_the_bar_fits_a_narrow_terminal(small):
    watch = played(small, Quiet())
    for width in (60, 80, 140):
        console = Console(file=io.StringIO(), width=width)
        console.print(_bar(watch.progress(small), width))
        assert len(console.file.getvalue().splitlines()) == 1


def test_quiet_says_nothing(small, capsys):
    played(small, Quiet())
    say_end(small, "quiet")
    assert capsys.readouterr().out == ""


def test_the_first_trial_foretells_by_its_steps(small, tmp_path, capsys):
    """Ten steps in five seconds, twenty to go, and two trials of forty after it: 10 + 2 * 20 s."""
    clock = [100.0]
    lines = Lines(Foretold(lambda: clock[0]))
    watch = Watch(small.counted() + 3, lines)
    watch.listen("started", TrialEvent(small, 2))
    follow = Follow(2, small.student_folder(small.trials[2]), tmp_path, 40)
    said = []
    for step, at_s in ((0, 101.0), (10, 110.0), (20, 115.0)):
        clock[0] = at_s
        if step:
            follow.step(step, {"loss": 1.5})
        said.append(lines.foretold.left_s())
    lines.tick()
    follow.close()
    assert said[:2] == [None, None]
    assert said[2] == pytest.approx(0.5 * (20 + 2 * 40))
    assert "no trial has ended yet: about 0.8 min of training left" in capsys.readouterr().out
    watch.listen("trial", TrialEvent(small, 2))
    assert lines.foretold.left_s() is None  # its time is known now


def test_what_is_known_after_ctrl_c_stays_on_the_screen(small, capsys, tmp_path, monkeypatch):
    say_stopped(small.settings.name, None, "lines")
    assert "front of 4 trials" in capsys.readouterr().out
    say_stopped(small.settings.name, None, "json")
    stopped = json.loads(capsys.readouterr().out)
    assert (stopped["event"], len(stopped["front"])) == ("stopped", 2)
    say_stopped(small.settings.name, None, "quiet")
    monkeypatch.chdir(tmp_path)
    say_stopped("not-begun", None, "lines")
    assert capsys.readouterr().out == ""


def test_the_screen_shows_what_runs_and_the_front(small, tmp_path):
    screen = Screen()
    watch = Watch(6, screen)
    assert "starting" in text(screen)
    watch.listen("started", TrialEvent(small, 2))
    assert "wait for a worker" in text(screen)
    follow = Follow(2, small.student_folder(small.trials[2]), tmp_path, 40)
    follow.step(20, {"loss": 1.5})
    shown = text(screen)
    assert re.search(
        rf"{os.getpid()} +2 +\d+ +distil, step 20 of 40, loss 1.500 +\d+-\d+.* \| ", shown
    )
    follow.close()
    watch.listen("trial", TrialEvent(small, 2))
    shown = text(screen)
    assert "doing" not in shown
    assert re.search(r"4 of 6 trials ━+.* 1.5 s per trial, about 0.1 min left", shown)
    assert "3 complete, 1 infeasible, 1 failed, 0 running" in shown
    assert re.search(r"hypervolume .+ after 3 archs \(bd_rate, flops", shown)
    assert "last: trial 2, 60.00 BD-rate %" in shown
    assert "front of 4 trials" in shown


@pytest.mark.parametrize("height", [6, 12, 14, 40])
def test_the_screen_keeps_to_the_terminal_and_its_last_line(small, height):
    screen = Screen()
    watch = Watch(6, screen)
    for number in (0, 1, 2):
        watch.listen("started", TrialEvent(small, number))
    watch.listen("trial", TrialEvent(small, 2))
    lines = text(screen, height).splitlines()
    assert len(lines) <= max(height, 8)
    assert lines[-1].startswith("last: trial 2")
    assert all(len(line) <= 100 for line in lines)


def test_a_cut_front_says_how_much_is_left_out(small):
    assert "and 1 more: nas-kd front small" in text(front_table(small, 1))
    assert "more" not in text(front_table(small, 2))


@pytest.mark.parametrize("width", [60, 80])
def test_the_fronts_table_breaks_no_word_in_a_narrow_terminal(small, width):
    shown = text(front_table(small), width=width)
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())
    assert "…" not in shown
    brief = Brief(small.space)
    for trial in small.front():
        said = brief(Arch.from_json(trial.user_attrs["arch"]))
        assert set(said.split()) <= set(shown.split())
    assert {"40.00", "3.00", "30.00", "5.00"} <= set(shown.split())
    assert len(shown.splitlines()) <= 10 + 5 * len(small.front())


def test_beside_classical_codecs_the_table_fits_80_columns(small):
    found = {"bd_rate": -12.3, "reason": None, "common": None}
    beside = {name: {0: found, 1: found} for name in ("jpeg", "jpeg2000", "webp", "avif", "jpegxl")}
    shown = text(front_table(small, baselines=beside), width=80)
    assert all(len(line.rstrip()) <= 80 for line in shown.splitlines())
    assert shown.split().count("-12.3") == 10
    assert {"jpeg2000", "jpegxl"} <= set(shown.split())


def text(shown, height=40, width=100):
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(shown)
    return console.file.getvalue()


def test_a_pipe_gets_lines_unless_asked_otherwise(capsys):
    assert mode_of(False, False) == "lines"
    assert (mode_of(True, False), mode_of(False, True)) == ("quiet", "json")


def test_a_sparkline_goes_from_the_lowest_bar_to_the_highest():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█ 1.000"
