"""The command line: one function per command, imports inside, so that --help is quick."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nas_kd import __version__
from nas_kd.errors import NasKdError, UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Search for small, frugal learned image codecs, distilled from a large one.",
)
teacher_app = typer.Typer(no_args_is_help=True, help="Make a teacher of your own.")
app.add_typer(teacher_app, name="teacher")

StudyName = Annotated[str, typer.Argument(help="a study's name, as in studies/NAME")]
StudentDir = Annotated[Path, typer.Option("--student", help="folder of an exported student")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def main() -> None:
    """Run a command; errors are one line, exit codes 0, 1 (failed) and 2 (usage)."""
    try:
        app()
    except NasKdError as error:
        print(f"nas-kd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("nas-kd: stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(1)


def _say(text: Any) -> None:
    from rich.console import Console

    Console(soft_wrap=False).print(text)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


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
    workers: Annotated[int | None, typer.Option(help="trials at once [default: cores]")] = None,
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
        )
    _search(settings, budget, workers or os.cpu_count() or 1)


def _search(settings: Any, budget: int, workers: int) -> None:
    _require_meter(settings.objectives)
    from nas_kd.launch import search as launch
    from nas_kd.report import front_table
    from nas_kd.study import open_study

    started, seen = time.monotonic(), [0]

    def listen(kind: str, detail: Any) -> None:
        if kind == "trial":
            seen[0] += 1
            study = open_study(settings.name)
            left = (budget - study.counted()) * (time.monotonic() - started) / seen[0]
            print(_trial_line(study, detail, budget, max(0.0, left)), flush=True)
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
def dashboard(study: StudyName, port: Annotated[int, typer.Option(help="port")] = 8080) -> None:
    """Browse a study in the Optuna dashboard, on 127.0.0.1.

    Example: nas-kd dashboard demo-mini
    """
    from optuna_dashboard import run_server

    from nas_kd.study import open_study, storage_url

    run_server(storage_url(open_study(study).folder), host="127.0.0.1", port=port)


@app.command(name="eval")
def evaluate(
    student: Annotated[Path, typer.Argument(help="folder of a student")],
    data: Annotated[str, typer.Option(help="builtin or a folder of pictures")] = "builtin",
    as_json: AsJson = False,
) -> None:
    """Rate and distortion of a student by real bitstreams.

    Example: nas-kd eval students/trial-0003 --data photographs --json
    """
    from nas_kd.data import open_images
    from nas_kd.evaluate import evaluate_real
    from nas_kd.weights import load_student

    measured = evaluate_real(load_student(student), open_images(data, "eval"))
    if as_json:
        print(json.dumps(measured.to_json()))
        return
    curve = measured.curve()
    for level, (rate, quality) in enumerate(zip(curve.bpp, curve.psnr_db, strict=True), start=1):
        print(f"level {level}: {rate:.4f} bpp, {quality:.2f} dB")


@app.command()
def compress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="a picture")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="the compressed file")],
    student: StudentDir,
    level: Annotated[float, typer.Option(help="1 to the student's levels; fractions too")] = 3.0,
) -> None:
    """Compress a picture.

    Example: nas-kd compress photo.png photo.nkd --student students/trial-0003 --level 3
    """
    from nas_kd.bitstream import encode
    from nas_kd.data import read_image
    from nas_kd.weights import load_student

    image = read_image(source)
    data = encode(load_student(student), image, level)
    _write_bytes(target, data)
    pixels = image.shape[0] * image.shape[1]
    print(f"{target}: {len(data)} bytes, {8 * len(data) / pixels:.4f} bpp with its header")


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="a compressed file")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="the picture, .png")],
    student: StudentDir,
) -> None:
    """Restore a picture.

    Example: nas-kd decompress photo.nkd photo.png --student students/trial-0003
    """
    import io

    from PIL import Image

    from nas_kd.bitstream import decode
    from nas_kd.errors import BitstreamError
    from nas_kd.weights import load_student

    try:
        data = source.read_bytes()
    except OSError as error:
        raise BitstreamError(f"{source}: cannot be read ({error.strerror}); give a file") from error
    buffer = io.BytesIO()
    Image.fromarray(decode(load_student(student), data)).save(buffer, "PNG")
    _write_bytes(target, buffer.getvalue())


def _write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UsageError(f"{path}: cannot be written ({error.strerror}); give another") from error


@app.command()
def distill(
    arch: Annotated[Path, typer.Option(help="arch file (.toml, .json)")],
    out: Annotated[Path, typer.Option(help="folder to write the student to")],
    teacher: Annotated[str, typer.Option(help="as in search")] = "mini",
    steps: Annotated[int, typer.Option(help="training steps")] = 2000,
    crops: Annotated[int, typer.Option(help="crops in the training pool")] = 256,
    data: Annotated[str, typer.Option(help="training pictures")] = "builtin",
    eval_data: Annotated[str, typer.Option(help="pictures to judge by")] = "builtin",
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
) -> None:
    """One trial alone, without a search; the same function that a search runs.

    Example: nas-kd distill --arch my-arch.toml --teacher mini --steps 2000 --out my-student
    """
    from nas_kd.alone import distill_alone
    from nas_kd.space import load_arch
    from nas_kd.study import Settings

    settings = Settings(
        name="alone",
        space="demo",
        teacher=teacher,
        objectives=("bd_rate", "flops"),
        steps=steps,
        crops=crops,
        data=data,
        eval_data=eval_data,
        seed=seed,
    )
    print(json.dumps(distill_alone(settings, load_arch(arch), out)))


@teacher_app.command(name="train")
def teacher_train(
    arch: Annotated[Path, typer.Option(help="arch file (.toml, .json)")],
    out: Annotated[Path, typer.Option(help="folder to write the teacher to")],
    steps: Annotated[int, typer.Option(help="training steps")] = 20000,
    crops: Annotated[int, typer.Option(help="crops in the training pool")] = 6000,
    crop_size: Annotated[int, typer.Option(help="side of a crop in pixels")] = 128,
    batch: Annotated[int, typer.Option(help="crops per step")] = 8,
    data: Annotated[str, typer.Option(help="training pictures")] = "builtin",
    eval_data: Annotated[str, typer.Option(help="pictures for the card's curve")] = "builtin",
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
) -> None:
    """Train a variable-rate codec to distil from; run again to resume.

    Example: nas-kd teacher train --arch mini.toml --data photographs --out my-teacher
    """
    from nas_kd.alone import train_teacher
    from nas_kd.space import load_arch
    from nas_kd.targets import PoolRecipe
    from nas_kd.train import Recipe

    pool = PoolRecipe(data, crops, crop_size, seed)
    train_teacher(load_arch(arch), pool, Recipe(steps, batch, seed=seed), eval_data, out)


@app.command()
def doctor() -> None:
    """What this machine has, and what follows for a search.

    Example: nas-kd doctor
    """
    from nas_kd.doctor import findings

    for what, finding in findings():
        print(f"{what + ':':19}{finding}")
