"""Commands that train without a study: warmup, distill, teacher train."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from nas_kd.cli.common import AsJson, Storage, WholeHelp, say
from nas_kd.cli.settings import Set, WithSettings, given
from nas_kd.errors import UsageError

if TYPE_CHECKING:
    from nas_kd.study.settings import Settings

app = typer.Typer()

teacher_app = typer.Typer(cls=WholeHelp, no_args_is_help=True, help="Make a teacher of your own.")
app.add_typer(teacher_app, name="teacher")


StudyOf = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY", help="a study, by name or file (TOML), whose settings are taken"
    ),
]


def _settings(
    study: str | None, storage: str | None, pairs: list[str] | None, own: dict[str, Any]
) -> Settings:
    """A study's settings, or ``own`` without one, with those that ``--set`` gave in their place.

    Raises UsageError with what stands in the way of training by them, before torch is imported.
    """
    from nas_kd.study.obstacles import require_clear
    from nas_kd.study.settings import named

    asked = given(pairs)
    begun = None if study is None else _settings_of(study, storage)
    found = replace(begun, **asked) if begun else named("alone", own | asked).settings
    # No study is searched: what its values need, a meter or a prior, is not asked for.
    require_clear([replace(found, objectives=("flops",), sampler="auto", from_study=None)])
    return found


def _settings_of(study: str, storage: str | None) -> Settings:
    from nas_kd.study.device_defaults import settled
    from nas_kd.study.settings import asked_studies

    if not study.endswith(".toml"):
        from nas_kd.study.study import open_study

        return open_study(study, storage).settings
    first, *others = asked_studies(Path(study))
    if others:
        names = ", ".join(one.settings.name for one in (first, *others))
        raise UsageError(
            f"{study}: holds several studies ({names}); once it is begun, give one of these names"
        )
    return settled(first, storage)[0]  # as a search would have it


@app.command(cls=WithSettings)
def warmup(study: StudyOf = None, settings: Set = None, storage: Storage = None) -> None:
    """Train the weights that a space's students share; a search with the same settings finds them.

    Example: nas-kd warmup studies/mine.toml --set warmup=3000
    """
    asked = _settings(study, storage, settings, {})
    from nas_kd.data.picture_files import require_writable
    from nas_kd.places import CACHE

    require_writable(CACHE, "the cache", folder=True)
    from nas_kd.codec.search_space import load_space
    from nas_kd.study.prepare import targets, warm
    from nas_kd.teachers.teacher import load_teacher

    loaded = load_teacher(*asked.teacher_spec)

    def listen(kind: str, detail: object) -> None:
        print(f"{kind}: {detail}", flush=True)

    pool = targets(asked, loaded, listen, CACHE)
    print(warm(asked, load_space(asked.space), loaded, pool, listen, CACHE))


@app.command(cls=WithSettings)
def distill(
    arch: Annotated[Path, typer.Option(help="arch file (.toml, .json)")],
    out: Annotated[Path, typer.Option(help="folder to write the student to")],
    study: StudyOf = None,
    settings: Set = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """One trial alone, without a search: with STUDY it ends where the study's trial of this arch ended.

    Example: nas-kd distill --arch my-arch.toml --out my-student --set steps=2000
    """
    from nas_kd.data.picture_files import require_writable

    require_writable(out, "--out", folder=True)
    from nas_kd.codec.arch import load_arch

    own = {"objectives": ("bd_rate", "flops"), "init": "scratch"}
    asked, built = _settings(study, storage, settings, own), load_arch(arch)
    from nas_kd.study.single import distill_alone, in_a_table

    def listen(kind: str, detail: object) -> None:
        print(f"{kind}: {detail}", file=sys.stderr, flush=True)

    said = distill_alone(asked, built, out, listen)
    if as_json:
        print(json.dumps(said))
    else:
        say(in_a_table(said))


@teacher_app.command(name="train")
def teacher_train(
    arch: Annotated[
        str, typer.Option(help="arch file (.toml, .json), or a family such as cheng2020-anchor")
    ],
    out: Annotated[Path, typer.Option(help="folder to write the teacher to")],
    width: Annotated[
        int | None, typer.Option(help="channels N of a family [default: the zoo's own]")
    ] = None,
    levels: Annotated[
        str, typer.Option(help="qualities; of a family one model each")
    ] = "1,2,3,4,5,6",
    steps: Annotated[int, typer.Option(help="training steps, of each model")] = 20000,
    lr: Annotated[float, typer.Option(help="highest learning rate")] = 1e-3,
    optimiser: Annotated[
        str, typer.Option(help="adam, or soap: fewer steps, each longer")
    ] = "adam",
    crop_size: Annotated[int, typer.Option(help="side of a crop in pixels")] = 256,
    batch: Annotated[int, typer.Option(help="crops per step")] = 4,
    data: Annotated[str, typer.Option(help="training pictures")] = "builtin",
    eval_data: Annotated[str, typer.Option(help="pictures for the card's curve")] = "builtin",
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
) -> None:
    """Train a codec to distil from, ours or one of CompressAI's families; run again to resume.

    Example: nas-kd teacher train --arch bmshj2018-hyperprior --width 64 --levels 5 --out my-teacher
    """
    from nas_kd.data.picture_files import require_writable
    from nas_kd.recipe import Optimiser, Recipe

    require_writable(out, "--out", folder=True)
    if crop_size % 64 or crop_size < 64:
        raise UsageError(f"--crop-size {crop_size}: must be a multiple of 64")
    recipe = Recipe(steps, batch, lr, seed=seed, optimiser=cast(Optimiser, optimiser))
    from nas_kd.codec.arch import load_arch
    from nas_kd.codec.student import LMBDAS
    from nas_kd.data.overlap import warn_of_overlap
    from nas_kd.teachers.families import check, parsed_levels
    from nas_kd.teachers.make import CropsOf, train_family, train_teacher

    qualities = parsed_levels(levels)
    warn_of_overlap(data, eval_data)
    crops_of = CropsOf(data, crop_size, seed)
    if not Path(arch).is_file():
        check(arch, width)
        train_family(arch, width, qualities, crops_of, recipe, eval_data, out)
    elif width is not None:
        raise UsageError(f"--width {width}: the arch file {arch} says its own widths; leave it out")
    else:
        lmbdas = tuple(LMBDAS[q - 1] for q in qualities)
        train_teacher(load_arch(Path(arch)), crops_of, recipe, eval_data, out, lmbdas)
