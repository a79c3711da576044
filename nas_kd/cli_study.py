"""Commands about a study: search, front, export, dashboard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from nas_kd.errors import UsageError

StudyName = Annotated[str, typer.Argument(help="a study's name, as in studies/NAME")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

app = typer.Typer()


@app.command()
def search(
    file: Annotated[
        Path | None, typer.Argument(help="a study file (TOML), instead of options")
    ] = None,
    space: Annotated[str, typer.Option(help="search space: a name or a .toml file")] = "demo",
    teacher: Annotated[str, typer.Option(help="mini, a zoo name, or a codec's folder")] = "mini",
    budget: Annotated[int, typer.Option(help="trials the study shall have in the end")] = 20,
    name: Annotated[str | None, typer.Option(help="the study's name")] = None,
    objectives: Annotated[str, typer.Option(help="comma-separated")] = "bd_rate,flops,energy",
    steps: Annotated[int, typer.Option(help="training steps per trial")] = 2000,
    init: Annotated[str, typer.Option(help="where students start: shared, scratch")] = "shared",
    warmup: Annotated[int, typer.Option(help="steps of the shared weights' warm-up")] = 1000,
    crops: Annotated[int, typer.Option(help="crops in the training pool")] = 256,
    data: Annotated[str, typer.Option(help="training pictures: builtin or a folder")] = "builtin",
    eval_data: Annotated[str, typer.Option(help="pictures to judge by")] = "builtin",
    kd_x: Annotated[float, typer.Option(help="weight of the teacher's output, 0 to 1")] = 0.5,
    kd_y: Annotated[float, typer.Option(help="weight of the teacher's latents")] = 0.05,
    max_gmac: Annotated[float | None, typer.Option(help="never train an arch above this")] = None,
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
    workers: Annotated[int | None, typer.Option(help="trials at once [default: cores]")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing but errors")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object per event")] = False,
) -> None:
    """Search; the same command again resumes.

    Example: nas-kd search --space demo --teacher mini --budget 8 --objectives bd_rate,flops
    """
    from nas_kd.study import Settings, load_settings

    if budget < 1:
        raise UsageError(f"budget = {budget}: must be at least 1")
    if file is not None:
        settings = load_settings(file, name)
    else:
        settings = Settings(
            name=name or f"{Path(space).stem}-{Path(teacher.replace(':', '-')).name}",
            space=space,
            teacher=teacher,
            objectives=tuple(objectives.split(",")),
            steps=steps,
            init=init,
            warmup=warmup,
            crops=crops,
            data=data,
            eval_data=eval_data,
            kd_x=kd_x,
            kd_y=kd_y,
            max_gmac=max_gmac,
            seed=seed,
        )
    _search(settings, budget, workers or os.cpu_count() or 1, quiet, as_json)


def _search(settings: Any, budget: int, workers: int, quiet: bool, as_json: bool) -> None:
    _require_meter(settings.objectives)
    from nas_kd.dashboard import publish
    from nas_kd.errors import Stopped
    from nas_kd.launch import search as launch
    from nas_kd.live import mode_of, say_end, watching

    mode = mode_of(quiet, as_json)
    try:
        with watching(settings.name, budget, mode) as listen:
            study = launch(settings, budget, workers, listen)
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped; study '{settings.name}' keeps what is finished, the same command again goes on"
        ) from None
    publish(study)
    say_end(study, mode)


def _require_meter(objectives: tuple[str, ...]) -> None:
    if "energy" not in objectives:
        return
    import torch

    from nas_kd.energy import find_meter
    from nas_kd.errors import MeterError
    from nas_kd.reading import Reading

    meter = find_meter("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(meter, Reading):
        raise MeterError(
            f"energy cannot be measured here ({meter.reason}); run on a machine with a meter, or take it "
            "out: --objectives bd_rate,flops"
        )


@app.command()
def front(
    study: StudyName,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="write a plot (.png, .svg, .pdf)")] = None,
) -> None:
    """The Pareto front: table, JSON or plot.

    Example: nas-kd front demo-mini --plot front.png
    """
    from nas_kd.report import front_json, front_table, plot_front
    from nas_kd.study import open_study

    opened = open_study(study)
    if plot is not None:
        if plot.suffix not in (".png", ".svg", ".pdf"):
            raise UsageError(f"--plot {plot}: must end in .png, .svg or .pdf")
        plot_front(opened, plot)
    if as_json:
        print(json.dumps(front_json(opened)))
    else:
        _say(front_table(opened))


@app.command()
def export(
    study: StudyName,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("export"),
) -> None:
    """Write the front's students, each verified with real bitstreams.

    Example: nas-kd export demo-mini --out students
    """
    from nas_kd.export import export_front
    from nas_kd.study import open_study

    export_front(open_study(study), out, lambda trial, folder: print(folder, flush=True))


@app.command()
def report(
    study: StudyName,
    out: Annotated[Path, typer.Option(help="the file to write")] = Path("report.html"),
) -> None:
    """Write the report of a study: one HTML file that needs no network.

    Example: nas-kd report demo-mini --out report.html
    """
    from nas_kd.page import write_report
    from nas_kd.study import open_study

    if out.suffix != ".html":
        raise UsageError(f"--out {out}: must end in .html")
    write_report(open_study(study), out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def dashboard(
    study: StudyName, port: Annotated[int, typer.Option(help="port; 0: a free one")] = 8080
) -> None:
    """Browse a study in the Optuna dashboard, on 127.0.0.1; also while a search runs.

    Example: nas-kd dashboard demo-mini
    """
    from nas_kd.dashboard import serve
    from nas_kd.study import open_study

    serve(open_study(study), port)


def _say(text: Any) -> None:
    from rich.console import Console

    Console(soft_wrap=False).print(text)
