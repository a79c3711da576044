from matplotlib.figure import Figure

from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.report.rd_plot import Line, draw, figure, limits, lines_of

OWN = RDCurve((0.1, 0.4), (20.0, 30.0))
LINES = [
    Line("teacher mini", OWN, "teacher"),
    Line("JPEG", RDCurve((0.001, 90.0), (1.0, 99.0)), "classical"),
    Line("vtm", RDCurve((0.1, 0.4), (25.0, 35.0)), "published"),
    Line("trial 3", RDCurve((0.1, 0.5), (19.0, 31.0)), "student", 3),
]


def test_the_learned_codecs_fill_the_picture_in_files_and_on_pages():
    assert limits(LINES) == ((0.0, 0.525), (17.8, 32.2)) == limits([LINES[0], LINES[3]])
    axes = Figure().add_subplot()
    draw(axes, LINES)
    axis = figure(LINES)["layout"]
    assert axes.get_xlim() == (0.0, 0.525) == tuple(axis["xaxis"]["range"])
    assert axes.get_ylim() == (17.8, 32.2) == tuple(axis["yaxis"]["range"])


def test_both_forms_have_the_same_curves_under_the_same_names():
    axes = Figure().add_subplot()
    draw(axes, LINES)
    drawn = [(line.get_label(), list(line.get_xdata())) for line in axes.lines]
    assert drawn == [(trace["name"], trace["x"]) for trace in figure(LINES)["data"]]
    assert [trace.get("customdata") for trace in figure(LINES)["data"]][3] == [3, 3]


def test_a_studys_lines_are_its_teacher_others_and_its_front(small):
    lines = lines_of(small, {"JPEG": OWN}, {"vtm": OWN})
    said = [(line.name, line.kind) for line in lines]
    assert said[:3] == [("teacher mini", "teacher"), ("JPEG", "classical"), ("vtm", "published")]
    assert said[3] == ("paper, lambda 0.025", "mark")
    assert sorted(said[4:]) == [("trial 0", "student"), ("trial 1", "student")]
    assert "paper, N = 128" in figure(lines)["data"][3]["text"]
