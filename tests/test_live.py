import io
import json

import pytest
from rich.console import Console

from nas_kd.live import Screen, Watch, mode_of, say_end, say_json, say_line, say_nothing, sparkline


class Clock:
    """Ten seconds later at every look."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        self.now_s += 10.0
        return self.now_s


def played(small, show):
    """The events of a search whose trials are those of the small study."""
    watch = Watch(small.settings.name, 6, show, clock=Clock())
    watch.listen("preparing", "teacher's outputs: 1 of 2 crops")
    watch.listen("reaped", 1)
    for kind, number in (("started", 0), ("trial", 0), ("trial", 3), ("trial", 4)):
        watch.listen(kind, number)
    return watch


def test_progress_counts_and_foretells(small):
    watch = played(small, say_nothing)
    p = watch.progress(small)
    assert (p.complete, p.infeasible, p.failed, p.counted, p.front) == (3, 1, 1, 4, 2)
    # Begun at the first event, 10 s per look: 4 looks later 3 trials had ended.
    assert p.per_trial_s == pytest.approx(40 / 3)
    assert p.left_s == pytest.approx(2 * 40 / 3)


def test_lines_say_values_and_reasons(small, capsys):
    played(small, say_line)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "preparing: teacher's outputs: 1 of 2 crops"
    assert lines[1].startswith("resuming: 1 ")
    assert lines[2].startswith("trial 0 started: enc [")
    assert "trial 0: 40.00 BD-rate %, 3.00 GMAC (768x512) | front 2" in lines[3]
    assert "trial 3: pruned: partial_overlap" in lines[4]


def test_every_json_line_is_an_object_with_its_event(small, capsys):
    played(small, say_json)
    say_end(small, "json")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = ["preparing", "reaped", "started", "trial", "trial", "trial", "done"]
    assert [e["event"] for e in events] == kinds
    assert events[3]["values"] == {"bd_rate": 40.0, "flops": 3e9}
    assert (events[4]["values"], events[4]["reason"]) == (None, "partial_overlap")
    assert {m["trial"] for m in events[-1]["front"]} == {0, 1}


def test_quiet_says_nothing(small, capsys):
    played(small, say_nothing)
    say_end(small, "quiet")
    assert capsys.readouterr().out == ""


def test_the_screen_shows_what_runs_and_the_front(small):
    screen = Screen()
    watch = Watch(small.settings.name, 6, screen, clock=Clock())
    watch.listen("started", 2)
    assert "running arch" in text(screen)
    watch.listen("trial", 2)
    shown = text(screen)
    assert "running arch" not in shown
    assert "4 of 6 trials: 3 complete, 1 infeasible; 1 failed, 0 running" in shown
    assert "last: trial 2, 60.00 BD-rate %" in shown
    assert "front of 4 trials" in shown


def text(screen):
    console = Console(file=io.StringIO(), width=120)
    console.print(screen.render())
    return console.file.getvalue()


def test_a_pipe_gets_lines_unless_asked_otherwise(capsys):
    assert mode_of(False, False) == "lines"
    assert (mode_of(True, False), mode_of(False, True)) == ("quiet", "json")


def test_a_sparkline_goes_from_the_lowest_bar_to_the_highest():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█ 1.000"
