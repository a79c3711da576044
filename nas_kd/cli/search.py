"""The command that searches."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nas_kd.cli.common import Storage, Yes, at_least_one
from nas_kd.cli.settings import Set, WithSettings, given
from nas_kd.errors import UsageError

if TYPE_CHECKING:
    from nas_kd.study.settings import Asked, Settings

Mode = Literal["lines", "json", "quiet"]


def _limit(of: str) -> Any:
    return typer.Option(metavar="N|SIDE=N", help=f"never train an arch above this: {of}")


def _packed(text: str | None) -> int | str | None:
    """``--trials-per-gpu``: None, "auto" or a number."""
    if text is None or text == "auto":
        return text
    if not text.isdecimal():
        raise UsageError(
            f"--trials-per-gpu {text}: must be auto, a number from 1, or 0 to train on the CPU"
        )
    return int(text)


app = typer.Typer()


@app.command(cls=WithSettings)
def search(
    file: Annotated[
        Path | None, typer.Argument(help="a study file (TOML); options given replace its keys")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(help="a name or a .toml file [default: demo; of a zoo teacher frontier]"),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="mini, a zoo name, a codec's folder, or a CompressAI checkpoint"),
    ] = None,
    objectives: Annotated[str | None, typer.Option(help="comma-separated")] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            callback=at_least_one, help="trials in the end [default: 20, or the whole grid]"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="training steps per trial")] = None,
    data: Annotated[
        str | None, typer.Option(help="training pictures: builtin, a set by name, or a folder")
    ] = None,
    eval_data: Annotated[str | None, typer.Option(help="pictures to judge by")] = None,
    max_gmac: Annotated[
        str | None, _limit("10^9 MACs on 768x512, of both sides or decoder=N,encoder=N")
    ] = None,
    max_params: Annotated[str | None, _limit("parameters")] = None,
    max_mj: Annotated[str | None, _limit("mJ for such a picture")] = None,
    max_latency_ms: Annotated[str | None, _limit("ms for such a picture")] = None,
    settings: Set = None,
    effort: Annotated[
        str | None,
        typer.Option(
            metavar="quick|hour|night",
            help="what is not said otherwise [default: of a zoo teacher quick, with a GPU night]",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="say what would be done, how long it takes, and end")
    ] = False,
    name: Annotated[str | None, typer.Option(help="the study's name")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of everything")] = None,
    workers: Annotated[
        int | None,
        typer.Option(callback=at_least_one, help="trials at once [default: cores]"),
    ] = None,
    address: Annotated[str | None, typer.Option(help="join a Ray cluster: host:port")] = None,
    trials_per_gpu: Annotated[
        str | None,
        typer.Option(
            callback=_packed,
            metavar="N|auto|0",
            help="trials that share a GPU; 0: on the CPU [default: auto, where a GPU is]",
        ),
    ] = None,
    storage: Storage = None,
    yes: Yes = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing but errors")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object per event")] = False,
) -> None:
    """Search; the same command again resumes.

    Example: nas-kd search --space demo --teacher mini --budget 8 --objectives bd_rate,flops
    """
    asked = given(
        settings,
        space=space,
        teacher=teacher,
        objectives=None if objectives is None else tuple(objectives.split(",")),
        steps=steps,
        data=data,
        eval_data=eval_data,
        max_gmac=max_gmac,
        max_params=max_params,
        max_mj=max_mj,
        max_latency_ms=max_latency_ms,
        seed=seed,
    )
    studies = _studies(file, name, asked, effort)
    from nas_kd.study.obstacles import in_the_way, raise_all, require_clear
    from nas_kd.study.sources import says_data

    data_said = "data" in asked or (file is not None and says_data(file))
    said: Mode = "json" if as_json else "quiet" if quiet else "lines"
    device = _device(address, trials_per_gpu)
    if plan:
        for study in studies:
            settled, chosen = _settled(study, storage, device)
            _tell_all(settled, chosen, budget, workers, said)
        raise_all(in_the_way([study.settings for study in studies], data_said))
        return
    # Before torch and Ray, which take seconds to import.
    require_clear([study.settings for study in studies], yes, data_said)
    with ExitStack() as after:  # Ray stays up from the first study to the last
        for study in studies:
            settled, chosen = _settled(study, storage, device)
            _tell_outline(settled, chosen, budget, said)
            if said == "lines":
                print("starting: loading torch and the teacher", flush=True)
            machine = _machine(workers, address, storage, trials_per_gpu)
            _search(settled, budget, machine, quiet, as_json, after)


def _device(address: str | None, packed: Any) -> str | None:
    """What trials train on where that is said; None for this machine's device."""
    return "cpu" if packed == 0 or (packed is None and address is not None) else None


def _settled(asked: Asked, storage: str | None, device: str | None) -> tuple[Settings, list[str]]:
    """The settings with what the device or the study as it was begun decides, and that in words."""
    from nas_kd.study.device_defaults import settled

    found, words = settled(asked, storage, device=device)
    return found, [] if words is None else [words]


def _studies(
    file: Path | None, name: str | None, asked: dict[str, Any], effort: str | None
) -> list[Asked]:
    """The studies of a file, with what was asked in place of its keys, or the one that was asked."""
    from nas_kd.study.efforts import default_effort, settings_of
    from nas_kd.study.settings import Settings, asked_studies, named

    if file is not None:
        return asked_studies(file, name, asked, settings_of(effort))
    chosen = effort or default_effort(asked.get("teacher", Settings.teacher))
    return [named(name, asked, settings_of(chosen))]


def _machine(workers: int | None, address: str | None, storage: str | None, packed: Any) -> Any:
    from nas_kd.cluster.launch import Machine
    from nas_kd.cores import cores

    return Machine(workers or cores(), address, storage, packed)


def _tell(study: Settings, lines: list[str], said: Mode) -> None:
    if said == "json":
        print(json.dumps({"event": "plan", "study": study.name, "plan": lines}), flush=True)
    elif said == "lines":
        print("\n".join([f"study {study.name}:", *(f"  {line}" for line in lines)]), flush=True)


def _tell_outline(study: Settings, chosen: list[str], budget: int | None, said: Mode) -> None:
    """The plan in short, from the settings alone."""
    from nas_kd.study.plan import outline

    if said != "quiet":
        _tell(study, [*chosen, *outline(study, budget)], said)


def _tell_all(
    study: Settings, chosen: list[str], budget: int | None, workers: int | None, said: Mode
) -> None:
    """The whole plan: what is fetched and done, then how long it takes by a measured step."""
    from nas_kd.study.plan import outline
    from nas_kd.study.sources import lacking

    fetched = [f"to fetch: {order.in_words}" for order in lacking([study])]
    lines = [*(fetched or ["to fetch: nothing"]), *chosen, *outline(study, budget)]
    if said == "lines":  # before torch is loaded, which takes seconds
        _tell(study, lines, said)
        lines = []
    from nas_kd.cores import cores
    from nas_kd.study.forecast import forecast, teacher_line
    from nas_kd.teachers.costs import teacher_costs

    costs = teacher_costs(study.teacher)
    told = forecast(study, budget, workers or cores(), costs)
    lines += [teacher_line(study, costs), *told.in_lines]
    if said == "lines":
        print("\n".join(f"  {line}" for line in lines), flush=True)
    else:
        _tell(study, lines, said)


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
        with watching(budget, mode) as listen:
            study = launch(settings, budget, machine, listen, after)
    except KeyboardInterrupt:
        say_stopped(settings.name, machine.storage, mode)
        raise Stopped(
            f"stopped; study '{settings.name}' keeps what is finished, the same command again goes on"
        ) from None
    publish(study)
    say_end(study, mode)
