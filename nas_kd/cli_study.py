"""Commands about a study: search, front, export, dashboard."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nas_kd.errors import UsageError

StudyName = Annotated[str, typer.Argument(help="a study's name, as in studies/NAME")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

app = typer.Typer()


@app.command()
def search(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="a study file (TOML); options given replace its keys")
    ] = None,
    space: Annotated[str, typer.Option(help="search space: a name or a .toml file")] = "demo",
    teacher: Annotated[
        str, typer.Option(help="mini, a zoo name, a codec's folder, or a CompressAI checkpoint")
    ] = "mini",
    weights: Annotated[
        str | None, typer.Option(help="folder of CompressAI's zoo files [default: torch hub's]")
    ] = None,
    lmbda: Annotated[
        float | None, typer.Option("--lambda", help="of the students of a one-quality teacher")
    ] = None,
    teacher_z: Annotated[
        str | None, typer.Option(help="a second teacher, for the hyper-latents")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="trials in the end [default: 20, or the whole grid]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="the study's name")] = None,
    objectives: Annotated[str, typer.Option(help="comma-separated")] = "bd_rate,flops,energy",
    steps: Annotated[int, typer.Option(help="training steps per trial")] = 2000,
    batch: Annotated[int, typer.Option(help="crops per step")] = 8,
    crops: Annotated[int, typer.Option(help="crops in the training pool")] = 256,
    data: Annotated[str, typer.Option(help="training pictures: builtin or a folder")] = "builtin",
    eval_data: Annotated[str, typer.Option(help="pictures to judge by")] = "builtin",
    kd_x: Annotated[float, typer.Option(help="weight of the teacher's output, 0 to 1")] = 0.5,
    kd_y: Annotated[float, typer.Option(help="weight of the teacher's latents")] = 0.05,
    kd_z: Annotated[float, typer.Option(help="weight of the teacher's hyper-latents")] = 0.0,
    form: Annotated[str, typer.Option(help="of the loss: kd, paper or paper-kld")] = "kd",
    max_gmac: Annotated[float | None, typer.Option(help="never train an arch above this")] = None,
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
    workers: Annotated[int | None, typer.Option(help="trials at once [default: cores]")] = None,
) -> None:
    """Search; the same command again resumes.

    Example: nas-kd search --space demo --teacher mini --budget 8 --objectives bd_rate,flops
    """
    from nas_kd.study import Settings, load_studies

    if budget is not None and budget < 1:
        raise UsageError(f"budget = {budget}: must be at least 1")
    settings = {
        k: v for k, v in ctx.params.items() if k not in ("file", "budget", "name", "workers")
    }
    settings["objectives"] = tuple(objectives.split(","))
    if file is not None:
        studies = load_studies(file, name, {k: v for k, v in settings.items() if _given(ctx, k)})
    else:
        name = name or f"{Path(space).stem}-{Path(teacher.replace(':', '-')).name}"
        studies = [Settings(name=name, **settings)]
    for study in studies:
        if len(studies) > 1:
            print(f"study {study.name}:", flush=True)
        _search(study, budget, workers or os.cpu_count() or 1)


def _given(ctx: typer.Context, option: str) -> bool:
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _search(settings: Any, budget: int | None, workers: int) -> None:
    _require_meter(settings.objectives)
    from nas_kd.launch import search as launch
    from nas_kd.report import front_table
    from nas_kd.study import open_study

    started, seen = time.monotonic(), [0]

    def listen(kind: str, detail: Any) -> None:
        if kind == "trial":
            seen[0] += 1
            study = open_study(settings.name)
            whole = study.affordable(budget)
            left = (whole - study.counted()) * (time.monotonic() - started) / seen[0]
            print(_trial_line(study, detail, whole, max(0.0, left)), flush=True)
        elif kind == "reaped":
            print(f"resuming: {detail} interrupted trials are lined up again", flush=True)
        else:
            print(f"{kind}: {detail}", flush=True)

    study = launch(settings, budget, workers, listen)
    _say(front_table(study))


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


def _trial_line(study: Any, number: int, budget: int, left_s: float) -> str:
    trial = study.trials[number]
    if trial.values:
        named = zip(study.settings.objectives, trial.values, strict=True)
        what = ", ".join(
            f"{n} {v / 1e9:.3f} GMAC" if n == "flops" else f"{n} {v:+.1f}" for n, v in named
        )
    else:
        what = f"{trial.state.name.lower()}: {trial.user_attrs.get('reason')}"
    front = len(study.front())
    done = f"[{study.counted()}/{budget}] trial {number}: {what}"
    return f"{done} | front {front} | about {left_s / 60:.1f} min left"


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
def table(
    study: Annotated[
        str | None, typer.Argument(help="a study's name, or a study file for all it holds")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="the paper's three tables")] = False,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="what needs no training; no study is opened")
    ] = False,
    measure: Annotated[bool, typer.Option(help="throughput and energy of this machine")] = True,
    as_json: AsJson = False,
) -> None:
    """The paper's tables (arXiv 2509.10366) with our figures beside: size, compute, energy.

    Example: nas-kd table studies/prim-channels.toml --paper --untrained --json
    """
    import torch

    from nas_kd.paper import PAPER, rows, tables, to_json, untrained_figures

    if not paper:
        raise UsageError("table: say which: --paper has the seed paper's tables")
    if study is None and not untrained:
        raise UsageError("table: name a study, or take --untrained for what needs no training")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    studies = _studies(study, untrained)
    found = rows({N: untrained_figures(N, device, measure) for N in PAPER}, studies)
    if as_json:
        print(json.dumps(to_json(found, device)))
        return
    for one in tables(found, device):
        _say(one)


def _studies(spec: str | None, untrained: bool) -> list[Any]:
    """The studies that are there, of a name or of a file; none where nothing trained is asked for."""
    from nas_kd.errors import StudyError
    from nas_kd.study import load_studies, open_study

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
def dashboard(study: StudyName, port: Annotated[int, typer.Option(help="port")] = 8080) -> None:
    """Browse a study in the Optuna dashboard, on 127.0.0.1.

    Example: nas-kd dashboard demo-mini
    """
    from optuna_dashboard import run_server

    from nas_kd.study import open_study, storage_url

    run_server(storage_url(open_study(study).folder), host="127.0.0.1", port=port)


def _say(text: Any) -> None:
    from rich.console import Console

    Console(soft_wrap=False).print(text)
