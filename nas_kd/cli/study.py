"""Commands about a study: search, front, export, dashboard."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas_kd.cli.common import at_least_one, known_study
from nas_kd.errors import UsageError

if TYPE_CHECKING:
    from nas_kd.study.settings import Settings

Storage = Annotated[
    str | None,
    typer.Option(
        envvar="NAS_KD_STORAGE",
        is_eager=True,  # a study's name is looked up where this says
        help="database URL that drivers share [default: SQLite in studies/NAME]",
    ),
]
StudyName = Annotated[
    str, typer.Argument(callback=known_study, help="a study's name, as in studies/NAME")
]
Limit = Annotated[
    str | None,
    typer.Option(help="never train an arch above this: NUMBER, or encoder=NUMBER,decoder=NUMBER"),
]


def _above_zero(gb: float) -> float:
    if not gb > 0:
        raise UsageError(f"--pool {gb:g}: must be above 0 GB; leave it out for no limit")
    return gb


Pool = Annotated[
    float,
    typer.Option(
        callback=_above_zero,
        help="GB that teachers' outputs may take on disk [default: no limit]",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Yes = Annotated[
    bool, typer.Option("--yes", help="fetch what is lacking without asking (weights, pictures)")
]

OF_THE_RUN = (
    *("file", "budget", "name", "workers", "address", "storage", "quiet", "as_json"),
    *("gpus_per_trial", "trials_per_gpu", "pool", "yes"),
)
"""Options of a search that are no settings of its study."""

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
        int | None,
        typer.Option(
            callback=at_least_one, help="trials in the end [default: 20, or the whole grid]"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="the study's name")] = None,
    objectives: Annotated[str, typer.Option(help="comma-separated")] = "bd_rate,flops,energy",
    steps: Annotated[int, typer.Option(help="training steps per trial")] = 2000,
    init: Annotated[
        str, typer.Option(help="where students start: shared, teacher, scratch")
    ] = "shared",
    warmup: Annotated[
        int | None,
        typer.Option(
            help="steps of the shared weights' warm-up [default: built-in weights that fit, else 1000]"
        ),
    ] = None,
    rank: Annotated[int, typer.Option(help="archs to rank by their slices first")] = 0,
    batch: Annotated[int, typer.Option(help="crops per step")] = 2,
    lr: Annotated[float, typer.Option(help="highest learning rate")] = 1e-3,
    crops: Annotated[int, typer.Option(help="crops in the training pool")] = 1000,
    crop_size: Annotated[int, typer.Option(help="side of a crop in pixels")] = 256,
    data: Annotated[
        str, typer.Option(help="training pictures: builtin, a set by name, or a folder")
    ] = "builtin",
    eval_data: Annotated[str, typer.Option(help="pictures to judge by")] = "builtin",
    anchor: Annotated[
        str, typer.Option(help="BD-rate against: teacher, jpeg, jpeg2000, webp, avif, jpegxl")
    ] = "teacher",
    kd_x: Annotated[float, typer.Option(help="weight of the teacher's output, 0 to 1")] = 0.0,
    kd_y: Annotated[float, typer.Option(help="weight of the teacher's latents")] = 0.05,
    kd_z: Annotated[float, typer.Option(help="weight of the teacher's hyper-latents")] = 0.2,
    form: Annotated[
        str,
        typer.Option(
            help="of the loss: kd, or paper, paper-kld, paper-scaled, paper-clean, paper-corrected"
        ),
    ] = "kd",
    sampler: Annotated[
        str, typer.Option(help="auto, exact-cost, gp, tpe, nsga2 or random")
    ] = "auto",
    max_gmac: Limit = None,
    max_params: Limit = None,
    max_mj: Limit = None,
    max_latency_ms: Limit = None,
    from_study: Annotated[
        str | None, typer.Option("--from", help="a study whose archs and values are a prior")
    ] = None,
    polish: Annotated[int, typer.Option(help="steps the front is trained on in the end")] = 0,
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
    early_stopping: Annotated[
        bool, typer.Option("--early-stop", help="stop trials that others leave behind")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(callback=at_least_one, help="trials at once [default: cores]"),
    ] = None,
    address: Annotated[str | None, typer.Option(help="join a Ray cluster: host:port")] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="share of a GPU for each trial; 0 trains on the CPU")
    ] = None,
    trials_per_gpu: Annotated[
        str | None,
        typer.Option(help="trials that share a GPU, or auto [default: auto, where one is]"),
    ] = None,
    pool: Pool = float("inf"),
    storage: Storage = None,
    yes: Yes = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing but errors")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object per event")] = False,
) -> None:
    """Search; the same command again resumes.

    Example: nas-kd search --space demo --teacher mini --budget 8 --objectives bd_rate,flops
    """
    packed = _packed(trials_per_gpu, gpus_per_trial)
    studies = _asked(ctx, file, name)
    from nas_kd.study.obstacles import require_clear
    from nas_kd.study.sources import says_data

    data_said = _given(ctx, "data") or (file is not None and says_data(file))
    require_clear(studies, yes, data_said)  # before torch and Ray, which take seconds to import
    if not (quiet or as_json):
        print("starting: loading torch and the teacher", flush=True)
    from nas_kd.cluster.launch import Machine
    from nas_kd.cores import cores

    machine = Machine(workers or cores(), address, gpus_per_trial, storage, packed, pool)
    with ExitStack() as after:  # Ray stays up from the first study to the last
        for study in studies:
            if len(studies) > 1 and not (quiet or as_json):
                print(f"study {study.name}:", flush=True)
            _search(study, budget, machine, quiet, as_json, after)


def _asked(ctx: typer.Context, file: Path | None, name: str | None) -> list[Settings]:
    """The studies of a file, with the options given in place of its keys, or the one of all options."""
    from nas_kd.study.settings import Settings, load_studies

    settings = {k: v for k, v in ctx.params.items() if k not in OF_THE_RUN}
    settings["objectives"] = tuple(settings["objectives"].split(","))
    if file is not None:
        return load_studies(file, name, {k: v for k, v in settings.items() if _given(ctx, k)})
    teacher = Path(settings["teacher"].replace(":", "-")).name
    return [Settings(**settings, name=name or f"{Path(settings['space']).stem}-{teacher}")]


def _packed(given: str | None, gpus_per_trial: float | None) -> Any:
    """``--trials-per-gpu``: None, "auto" or a number."""
    if given is None or (given == "auto" and gpus_per_trial is None):
        return given
    if gpus_per_trial is not None:
        raise UsageError(
            f"--trials-per-gpu {given} and --gpus-per-trial {gpus_per_trial:g}: both say how trials share a "
            "GPU; give one of them"
        )
    if not given.isdecimal() or int(given) < 1:
        raise UsageError(f"--trials-per-gpu {given}: must be auto, or a number from 1")
    return int(given)


def _given(ctx: typer.Context, option: str) -> bool:
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _search(
    settings: Any, budget: int | None, machine: Any, quiet: bool, as_json: bool, after: ExitStack
) -> None:
    from nas_kd.cluster.launch import search as launch
    from nas_kd.errors import Stopped
    from nas_kd.measurement.meters import require_meter
    from nas_kd.report.dashboard import publish
    from nas_kd.report.live import mode_of, say_end, say_stopped, watching

    require_meter(settings.objectives)
    mode = mode_of(quiet, as_json)
    try:
        with watching(settings.name, budget, mode, machine.storage) as listen:
            study = launch(settings, budget, machine, listen, after)
    except KeyboardInterrupt:
        say_stopped(settings.name, machine.storage, mode)
        raise Stopped(
            f"stopped; study '{settings.name}' keeps what is finished, the same command again goes on"
        ) from None
    publish(study)
    say_end(study, mode)


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
        _say(front_table(opened, baselines=classical))


@app.command()
def export(
    study: StudyName,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("export"),
    onnx: Annotated[
        bool, typer.Option("--onnx", help="also encoder.onnx and decoder.onnx")
    ] = False,
    storage: Storage = None,
) -> None:
    """Write the front's students, each verified with real bitstreams; a student's folder gives ONNX alone.

    Example: nas-kd export demo-mini --out students --onnx
    """
    from nas_kd.data.picture_files import require_writable
    from nas_kd.report.export import export_front, export_student_onnx
    from nas_kd.study.study import open_study

    require_writable(out, "--out", folder=True)
    if onnx and (Path(study) / "arch.json").is_file():
        for path in export_student_onnx(Path(study), out):
            print(path)
        return
    opened = open_study(study, storage)
    export_front(opened, out, lambda trial, folder: print(folder, flush=True), onnx)


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
    from nas_kd.device import best_device
    from nas_kd.report.paper import PAPER, rows, tables, to_json, untrained_figures

    if not paper:
        raise UsageError("table: say which: --paper has the seed paper's tables")
    if study is None and not untrained:
        raise UsageError("table: name a study, or take --untrained for what needs no training")
    device = best_device()
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


def _say(text: Any) -> None:
    from rich.console import Console

    Console(soft_wrap=False).print(text)
