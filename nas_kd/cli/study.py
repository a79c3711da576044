"""Commands about a study that is there: front, export, paper, report, dashboard."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nas_kd.cli.common import AsJson, Storage, StudyName, say
from nas_kd.errors import UsageError

app = typer.Typer()


@app.command()
def front(
    study: StudyName,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="write a plot (.png, .svg, .pdf, .pgf)")] = None,
    frontier: Annotated[
        Path | None, typer.Option(help="write BD-rate against decoder's cost, beside other codecs")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="BD-rates against classical codecs beside")
    ] = False,
    versus: Annotated[
        str, typer.Option(help="against these codecs, by comma; on Kodak published ones too")
    ] = "",
    storage: Storage = None,
) -> None:
    """The Pareto front: table, JSON or plot.

    Example: nas-kd front demo-mini --plot front.png
    """
    from nas_kd.report.plot_files import require_plot

    for option, file in (("--plot", plot), ("--frontier", frontier)):
        if file is not None:
            require_plot(file, option)

    from nas_kd.evaluation.classical import CODECS
    from nas_kd.report.plots import plot_front, plot_frontier
    from nas_kd.report.tables import front_against, front_json, front_table
    from nas_kd.study.study import open_study

    opened = open_study(study, storage)
    for file, draw in ((plot, plot_front), (frontier, plot_frontier)):
        if file is not None:
            draw(opened, file)
    names = [*(CODECS if baselines else ()), *([versus] if versus else ())]
    classical = front_against(opened, ",".join(names)) if names else None
    if as_json:
        print(json.dumps(front_json(opened, classical)))
    else:
        say(front_table(opened, baselines=classical))


@app.command()
def export(
    study: StudyName,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("export"),
    onnx: Annotated[
        bool, typer.Option("--onnx", help="also encoder.onnx and decoder.onnx")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="of a student's folder: ONNX files in int8, too")
    ] = False,
    storage: Storage = None,
) -> None:
    """Write the front's students, each verified with real bitstreams; a student's folder gives ONNX alone.

    Example: nas-kd export demo-mini --out students --onnx
    """
    from nas_kd.data.picture_files import require_writable
    from nas_kd.report.export import export_front, export_student_int8, export_student_onnx
    from nas_kd.study.study import open_study

    require_writable(out, "--out", folder=True)
    if int8 and not (Path(study) / "arch.json").is_file():
        raise UsageError(
            f"--int8 {study}: takes a student's folder; export the study first, then its students"
        )
    if int8:
        written, rate, (plain_ms, int8_ms) = export_student_int8(
            Path(study), out, lambda line: print(line, file=sys.stderr, flush=True)
        )
        print("\n".join(map(str, written)))
        lost = f"absent ({rate})" if isinstance(rate, str) else f"{rate:+.2f} %"
        print(f"BD-rate of int8 against float32, built-in photographs: {lost}")
        print(f"Decoder, 768x512 on one thread: {int8_ms:.0f} ms, in float32 {plain_ms:.0f} ms")
        return
    if onnx and (Path(study) / "arch.json").is_file():
        for path in export_student_onnx(Path(study), out):
            print(path)
        return
    opened = open_study(study, storage)
    export_front(opened, out, lambda trial, folder: print(folder, flush=True), onnx)


@app.command()
def paper(
    study: Annotated[
        str | None, typer.Argument(help="a study's name, or a study file for all it holds")
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="what needs no training; no study is opened")
    ] = False,
    measure: Annotated[bool, typer.Option(help="throughput and energy of this machine")] = True,
    as_json: AsJson = False,
) -> None:
    """The paper's tables (arXiv 2509.10366) with our figures beside: size, compute, energy.

    Example: nas-kd paper studies/prim-channels.toml --untrained --json
    """
    from nas_kd.device import best_device
    from nas_kd.report.paper import PAPER, rows, tables, to_json, untrained_figures

    if study is None and not untrained:
        raise UsageError("paper: name a study, or take --untrained for what needs no training")
    device = best_device()
    studies = _studies(study, untrained)
    found = rows({N: untrained_figures(N, device, measure) for N in PAPER}, studies)
    if as_json:
        print(json.dumps(to_json(found, device)))
        return
    for one in tables(found, device):
        say(one)


def _studies(spec: str | None, untrained: bool) -> list[Any]:
    """The studies that are there, of a name or of a file; none where nothing trained is asked for."""
    from nas_kd.errors import StudyError
    from nas_kd.study.settings import load_studies
    from nas_kd.study.study import open_study

    if spec is None:
        return []
    if not spec.endswith(".toml"):
        return [] if untrained else [open_study(spec)]
    settings = load_studies(Path(spec))
    if untrained:
        return []
    begun = [open_study(s.name) for s in settings if (s.folder / "study.db").is_file()]
    if not begun:
        raise StudyError(f"{spec}: none of its studies is begun; run nas-kd search {spec}")
    return begun


@app.command()
def report(
    study: StudyName,
    out: Annotated[Path, typer.Option(help="the file to write")] = Path("report.html"),
    storage: Storage = None,
) -> None:
    """Write the report of a study: one HTML file that needs no network.

    Example: nas-kd report demo-mini --out report.html
    """
    if out.suffix != ".html":
        raise UsageError(f"--out {out}: must end in .html")

    from nas_kd.data.picture_files import require_writable
    from nas_kd.report.html import write_report
    from nas_kd.study.study import open_study

    there = out.parent.is_dir()  # else it is made
    require_writable(out if there else out.parent, "--out", folder=not there)
    write_report(open_study(study, storage), out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def dashboard(
    study: StudyName,
    port: Annotated[int, typer.Option(help="port; 0: a free one")] = 8080,
    storage: Storage = None,
) -> None:
    """Browse a study in the Optuna dashboard, on 127.0.0.1; also while a search runs.

    Example: nas-kd dashboard demo-mini
    """
    from nas_kd.report.dashboard import serve
    from nas_kd.study.study import open_study

    serve(open_study(study, storage), port)
