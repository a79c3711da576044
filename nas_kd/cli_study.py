"""Commands about a study: search, front, export, dashboard."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nas_kd.errors import UsageError

Storage = Annotated[
    str | None,
    typer.Option(
        envvar="NAS_KD_STORAGE",
        help="database URL that drivers share [default: SQLite in studies/NAME]",
    ),
]
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
    crops: Annotated[int, typer.Option(help="crops in the training pool")] = 256,
    data: Annotated[str, typer.Option(help="training pictures: builtin or a folder")] = "builtin",
    eval_data: Annotated[str, typer.Option(help="pictures to judge by")] = "builtin",
    kd_x: Annotated[float, typer.Option(help="weight of the teacher's output, 0 to 1")] = 0.5,
    kd_y: Annotated[float, typer.Option(help="weight of the teacher's latents")] = 0.05,
    max_gmac: Annotated[float | None, typer.Option(help="never train an arch above this")] = None,
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="stop trials that others leave behind")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="trials at once [default: cores]")] = None,
    address: Annotated[str | None, typer.Option(help="join a Ray cluster: host:port")] = None,
    gpus_per_trial: Annotated[float, typer.Option(help="share of a GPU for each trial")] = 0.0,
    storage: Storage = None,
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
            crops=crops,
            data=data,
            eval_data=eval_data,
            kd_x=kd_x,
            kd_y=kd_y,
            max_gmac=max_gmac,
            seed=seed,
            early_stopping=early_stop,
        )
    from nas_kd.launch import Machine

    _search(
        settings, budget, Machine(workers or os.cpu_count() or 1, address, gpus_per_trial, storage)
    )


def _search(settings: Any, budget: int, machine: Any) -> None:
    _require_meter(settings.objectives)
    from nas_kd.launch import search as launch
    from nas_kd.report import front_table
    from nas_kd.study import open_study

    started, seen = time.monotonic(), [0]

    def listen(kind: str, detail: Any) -> None:
        if kind == "trial":
            seen[0] += 1
            study = open_study(settings.name, machine.storage)
            left = (budget - study.counted()) * (time.monotonic() - started) / seen[0]
            print(_trial_line(study, detail, budget, max(0.0, left)), flush=True)
        elif kind == "reaped":
            print(f"resuming: {detail} interrupted trials are lined up again", flush=True)
        else:
            print(f"{kind}: {detail}", flush=True)

    study = launch(settings, budget, machine, listen)
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
    storage: Storage = None,
) -> None:
    """The Pareto front: table, JSON or plot.

    Example: nas-kd front demo-mini --plot front.png
    """
    from nas_kd.report import front_json, front_table, plot_front
    from nas_kd.study import open_study

    opened = open_study(study, storage)
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
    storage: Storage = None,
) -> None:
    """Write the front's students, each verified with real bitstreams.

    Example: nas-kd export demo-mini --out students
    """
    from nas_kd.export import export_front
    from nas_kd.study import open_study

    export_front(open_study(study, storage), out, lambda trial, folder: print(folder, flush=True))


@app.command()
def dashboard(
    study: StudyName,
    port: Annotated[int, typer.Option(help="port")] = 8080,
    storage: Storage = None,
) -> None:
    """Browse a study in the Optuna dashboard, on 127.0.0.1.

    Example: nas-kd dashboard demo-mini
    """
    from optuna_dashboard import run_server

    from nas_kd.study import open_study

    run_server(open_study(study, storage).url, host="127.0.0.1", port=port)


def _say(text: Any) -> None:
    from rich.console import Console

    Console(soft_wrap=False).print(text)
