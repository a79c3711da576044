"""A trial's drawings beside its student: the R-D plot and crops."""

from __future__ import annotations

from pathlib import Path

from nas_kd.codec.checkpoint import load_student
from nas_kd.data.images import ImageSet
from nas_kd.errors import NasKdError
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.evaluation.rate_distortion import StudentCodec
from nas_kd.files import replacing
from nas_kd.report.crops import crops, sheet, shots, spread
from nas_kd.report.rd_plot import Line, draw
from nas_kd.study.anchor import Anchor
from nas_kd.study.record import Outcome
from nas_kd.study.trial_artifacts import CROPS, PLOT
from nas_kd.turns import TURNS


def illustrate(anchor: Anchor, images: ImageSet, folder: Path, outcome: Outcome) -> None:
    """Draw a trial's R-D plot and crops into its student's folder, where there is a student.

    Drawings that fail are noted in the outcome: they must not cost the trial.
    """
    rd = outcome.record.rd
    if rd is None:
        return
    try:
        _plot(anchor, rd.curve(), folder / PLOT)
        _crops(images, folder)
    except (OSError, NasKdError) as error:
        outcome.attrs["drawings"] = f"failed: {error}"


def _crops(images: ImageSet, folder: Path) -> None:
    originals = crops(images, 2)
    if originals:
        with TURNS:  # a student is made of noise before it has its weights
            student = load_student(folder)
        codec = StudentCodec(student)
        drawn = sheet(originals, shots(codec, originals, spread(codec.levels, 3)))
        with replacing(folder / CROPS) as temporary:
            drawn.save(temporary)


def _plot(anchor: Anchor, curve: RDCurve, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    if anchor.interval_db is not None:
        axes.axhspan(*anchor.interval_db, color="0.93", label="compared interval")
    lines = [Line(anchor.name, anchor.curve, "teacher"), Line("student", curve, "student")]
    draw(axes, [*lines, *(Line(n, one, "classical") for n, one in anchor.baselines.items())])
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=100)
