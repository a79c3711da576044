"""A study's settings: one schema of every key, from options, from study files (TOML), and to JSON and back."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)
from pydantic.dataclasses import dataclass

from nas_kd.codec.search_space import load_space
from nas_kd.errors import StudyError, UsageError
from nas_kd.places import BUILTIN, HERE, STUDIES, shipped
from nas_kd.recipe import (
    Count,
    Form,
    NotNegative,
    Optimiser,
    Positive,
    Recipe,
    Seed,
    Share,
    Weights,
    Whole,
)
from nas_kd.schema import STRICT, Checked, says
from nas_kd.study.grid import Grid, frozen_grid, listed
from nas_kd.study.limits import Limit, Limits, canonical
from nas_kd.teachers.served import TeacherSpec, family_of, zoo_qualities
from nas_kd.toml_file import read_table

DATABASE = "study.db"

Objective = Literal[
    "bd_rate",
    "flops",
    "energy",
    "rd_cost",
    "energy:decoder",
    "energy:encoder",
    "latency",
    "latency:decoder",
    "params",
    "flops:decoder",
    "bd_rate:ms-ssim",
]
OBJECTIVES: tuple[Objective, ...] = ("bd_rate", "flops", "energy")
KNOWN_OBJECTIVES: tuple[str, ...] = get_args(Objective)
"""rd_cost is R + lmbda 255^2 D: what there is to compare by where a curve has too few levels for a BD-rate."""
QUALITY = ("bd_rate", "rd_cost", "bd_rate:ms-ssim")
"""Objectives that training decides."""

TEACHER = "teacher"
Init = Literal["shared", "teacher", "scratch"]
Anchor = Literal["teacher", "jpeg", "jpeg2000", "webp", "avif", "jpegxl"]
"""What a study's BD-rates may be against."""
Sampler = Literal["auto", "exact-cost", "gp", "tpe", "nsga2", "random"]
DEFAULT: Sampler = "auto"
"""exact-cost where it has a closed form for the objectives, else tpe."""
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)[1:]
DEFAULT_BUDGET = 20
"""Trials where nobody says how many, and no grid does."""
MAX_COSTS = 2
"""Costs beside the uncertain objective that exact-cost has a closed form for."""


def _of_key(rule: Any) -> Any:
    """One of our own rules ``rule(key, value)`` as a validator: pydantic gathers its errors with the others."""

    def validator(value: Any, info: ValidationInfo) -> Any:
        try:
            return rule(str(info.field_name), value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    return validator


def _each_once(objectives: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(objectives)) < len(objectives):
        raise ValueError(f"objectives = {list(objectives)}: must be named once each")
    return objectives


def _no_lpips(objectives: Any) -> Any:
    asked = objectives if isinstance(objectives, list | tuple) else [objectives]
    if any("lpips" in str(name).lower() for name in asked):
        raise ValueError(
            f"objectives = {objectives!r}: LPIPS is absent, for no package carries its weights; take bd_rate:ms-ssim"
        )
    return objectives


def _grid(key: str, value: Any) -> Grid | None:
    return None if value is None else frozen_grid(value)


def _archs(key: str, value: Any) -> tuple[str, ...] | None:
    return None if value is None else listed(value)


Name = Annotated[
    str,
    Field(
        pattern=r"^[^./\\\s][^/\\\x00-\x1f]*$",
        max_length=100,
        description="a folder's name: at most 100 characters, no / or \\, no point or space first",
    ),
]
Text = Annotated[str, Field(min_length=1)]
Other = Annotated[
    Name, BeforeValidator(lambda spec: study_name(spec) if isinstance(spec, str) else spec)
]
Cost = Annotated[
    Limit,
    BeforeValidator(_of_key(canonical)),
    Field(description="a number above 0, or sides with one each, such as encoder=2,decoder=0.4"),
]
Objectives = Annotated[
    tuple[Objective, ...],
    Field(
        strict=False,  # a list will do
        min_length=1,
        description=f"a list of one or more of {', '.join(KNOWN_OBJECTIVES)}",
    ),
    BeforeValidator(_no_lpips),
    AfterValidator(_each_once),
]


@dataclass(frozen=True, config=STRICT)
class Settings(Checked):
    """One question: space, teacher, objectives, and what each trial may spend."""

    name: Annotated[Name, says("the study's name")]
    space: Annotated[Text, says("search space: a name or a .toml file")]
    teacher: Annotated[
        Text, says("mini, a zoo name, a codec's folder, or a CompressAI checkpoint")
    ] = "mini"
    objectives: Annotated[Objectives, says("what trials are scored by")] = OBJECTIVES
    steps: Annotated[
        Whole, says("training steps per trial; on a GPU unless said what a minute takes")
    ] = 2000
    batch: Annotated[Count, says("crops per step; on a GPU unless said 16")] = Recipe.batch
    lr: Annotated[
        Positive,
        says("highest learning rate: it warms up, stays, and falls to zero over the last half"),
    ] = Recipe.lr
    optimiser: Annotated[
        Optimiser,
        says("of all trainings; soap learns as much in half of adam's steps, each longer"),
    ] = Recipe.optimiser
    kd_x: Annotated[Share, says("weight of the teacher's output")] = Weights.kd_x
    kd_y: Annotated[NotNegative, says("weight of the teacher's latents")] = Weights.kd_y
    kd_z: Annotated[NotNegative, says("weight of the teacher's hyper-latents")] = Weights.kd_z
    form: Annotated[
        Form, says("of the loss: kd is ours, the others the paper's and that put right")
    ] = Weights.form
    init: Annotated[
        Init, says("where students start: slices of shared weights, slices of the teacher, scratch")
    ] = "shared"
    warmup: Annotated[
        Whole | None,
        says("steps of the shared weights' warm-up; none: built-in weights that fit, else 1000"),
    ] = None
    rank: Annotated[
        Whole, says("archs to rank by their slices before the first trial; the best are trained")
    ] = 0
    crops: Annotated[int, Field(ge=16), says("crops in the training pool")] = 1000
    crop_size: Annotated[int, Field(ge=64, multiple_of=64), says("side of a crop in pixels")] = 256
    data: Annotated[Text, says("training pictures: builtin, a set by name, or a folder")] = BUILTIN
    eval_data: Annotated[Text, says("pictures to judge by, likewise")] = BUILTIN
    anchor: Annotated[Anchor, says("what BD-rates are against")] = "teacher"
    sampler: Annotated[
        Sampler, says("auto: exact-cost where the objectives have a closed form, else tpe")
    ] = DEFAULT
    max_gmac: Annotated[
        Cost, says("never train an arch above so many 10^9 MACs on a picture of 768x512")
    ] = None
    max_params: Annotated[Cost, says("nor with more parameters")] = None
    max_mj: Annotated[
        Cost, says("nor above so many mJ for such a picture, measured before training")
    ] = None
    max_latency_ms: Annotated[Cost, says("nor slower, likewise")] = None
    from_study: Annotated[
        Other | None, says("a study whose archs and values are a prior: its front is tried first")
    ] = None
    polish: Annotated[Whole, says("steps that the front's students are trained on in the end")] = 0
    early_stopping: Annotated[bool, says("stop trials that others leave behind")] = False
    checkpoint_s: Annotated[
        NotNegative, says("seconds between checkpoints: what a crash may cost")
    ] = Recipe.checkpoint_s
    seed: Annotated[Seed, says("seed of everything")] = 0
    weights: Annotated[Text | None, says("folder of CompressAI's zoo files; none: torch hub's")] = (
        None
    )
    lmbda: Annotated[
        Positive | None,
        says("lambda of the students of a one-quality teacher; none: the teacher's own"),
    ] = None
    teacher_z: Annotated[Text | None, says("a second teacher, for the hyper-latents alone")] = None
    grid: Annotated[
        Grid | None,
        BeforeValidator(_of_key(_grid)),
        Field(description="a table of lists, such as {N = [16, 32]}"),
        says("values by name of the space; their combinations are tried, and nothing is sampled"),
    ] = None
    archs: Annotated[
        tuple[str, ...] | None,
        BeforeValidator(_of_key(_archs)),
        Field(description="a list of tables of choices ({N = 16}) or of arch files"),
        says("archs to try, and no others"),
    ] = None

    @model_validator(mode="after")
    def _keys_agree(self) -> Settings:
        _ = self.loss  # raises where its weights leave no rest
        checked(self.sampler, self.objectives)
        if self.rank and self.init != "shared":
            raise StudyError(
                f"rank = {self.rank} with init = {self.init!r}: archs are ranked by their slices of the "
                "shared weights: take init = 'shared'"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it; ``Settings(**it)`` gives the same settings."""
        return TypeAdapter(Settings).dump_python(self, mode="json")

    def recipe(self, steps: int, lr_share: float = 1.0) -> Recipe:
        """How a run of so many steps trains, at a share of the study's learning rate."""
        lr = self.lr * lr_share
        return Recipe(
            steps,
            self.batch,
            lr,
            seed=self.seed,
            checkpoint_s=self.checkpoint_s,
            optimiser=self.optimiser,
        )

    @property
    def folder(self) -> Path:
        """Where the study lives."""
        return STUDIES / self.name

    @property
    def teacher_spec(self) -> TeacherSpec:
        """Who teaches."""
        return TeacherSpec(self.teacher, self.weights, self.lmbda, self.teacher_z)

    @property
    def limits(self) -> Limits:
        """What no trained arch may exceed."""
        return Limits(self.max_gmac, self.max_params, self.max_mj, self.max_latency_ms)

    @property
    def loss(self) -> Weights:
        """What the terms of the loss weigh."""
        return Weights(self.kd_x, self.kd_y, self.kd_z, self.form)


def checked(name: str, objectives: tuple[str, ...]) -> str:
    """The sampler that a name means for these objectives; raises StudyError where there is none."""
    if name not in (DEFAULT, *SAMPLERS):
        raise StudyError(f"sampler = {name!r}: must be one of {', '.join((DEFAULT, *SAMPLERS))}")
    quality = [one for one in objectives if one in QUALITY]
    if name not in (DEFAULT, "exact-cost"):
        return name
    if len(quality) == 1 and len(objectives) - 1 <= MAX_COSTS:
        return "exact-cost"
    if name == DEFAULT:
        return "tpe"
    raise StudyError(
        f"sampler = 'exact-cost' with objectives {list(objectives)}: it needs exactly one of "
        f"{', '.join(QUALITY)}; take sampler = 'tpe'"
    )


def study_name(spec: str, root: Path = HERE) -> str:
    """A study's name, given as it is or as the folder that the shell completes to, ``studies/NAME``."""
    path = Path(os.path.abspath(spec))
    return path.name if path.parent == Path(os.path.abspath(root / STUDIES)) else spec


def require_study(spec: str, root: Path = HERE) -> str:
    """The name of a study that lies in ``studies`` below a root; raises StudyError where there is none."""
    name, studies = study_name(spec, root), root / STUDIES
    folder = Path(os.path.abspath(studies / name))
    if folder.parent != Path(os.path.abspath(studies)) or not (folder / DATABASE).is_file():
        known = ", ".join(sorted(p.parent.name for p in studies.glob(f"*/{DATABASE}"))) or "none"
        raise StudyError(f"study '{spec}': there is none in {studies}/ (there: {known})")
    return name


def default_space(teacher: str) -> str:
    """The space that is searched for a teacher where none is named: one of the zoo is large."""
    return "demo" if zoo_qualities(teacher) is None else "frontier"


class Asked(NamedTuple):
    """A study that was asked for, and the keys of its settings that somebody said: others have defaults."""

    settings: Settings
    said: frozenset[str]


def named(name: str | None, given: dict[str, Any], effort: dict[str, Any] | None = None) -> Asked:
    """The study of these settings; its name and its space have defaults, others those of an effort."""
    teacher = given.get("teacher", Settings.teacher)
    space = given.get("space", default_space(teacher))
    by_default = f"{Path(space).stem}-{Path(teacher.replace(':', '-')).name}"
    said = (effort or {}) | given
    own = _by_effort(effort, given | {"space": space, "name": name or by_default})
    return Asked(Settings(**own), frozenset(said))


def _by_effort(
    effort: dict[str, Any] | None, own: dict[str, Any], given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """An effort's settings for what is not said; no warm-up where the teacher holds the shared weights already.

    given: what is going to replace some of it.
    """
    merged = (effort or {}) | own
    asked = merged | (given or {})
    family = family_of(str(asked.get("teacher", Settings.teacher))) if effort else None
    warms_up = family is None or family != load_space(asked["space"]).fingerprint
    return merged if warms_up or "warmup" in own else merged | {"warmup": None}


def load_studies(
    path: Path,
    name: str | None = None,
    given: dict[str, Any] | None = None,
    effort: dict[str, Any] | None = None,
) -> list[Settings]:
    """The studies of a study file (TOML), see ``asked_studies``."""
    return [asked.settings for asked in asked_studies(path, name, given, effort)]


def asked_studies(
    path: Path,
    name: str | None = None,
    given: dict[str, Any] | None = None,
    effort: dict[str, Any] | None = None,
) -> list[Asked]:
    """The studies of a study file (TOML): one, or one per ``[[each]]`` table.

    Args:
        path: the file; its top-level keys hold for all its studies, those of an ``[[each]]`` for one.
        name: of the study, by default the file's; ``[[each]]`` adds its own ``name`` behind a hyphen.
        given: settings that replace the file's.
        effort: settings for the keys that the file leaves out.
    """
    data = read_table(shipped(path), StudyError)
    each, common = data.pop("each", [{}]), name or path.stem
    if not isinstance(each, list) or not all(isinstance(part, dict) for part in each) or not each:
        raise StudyError(f"{path}: each = {each!r}: must be tables, written [[each]]")
    names = [part.get("name") for part in each]
    if any(not isinstance(one, str) for one in names if one is not None):
        raise StudyError(f"{path}: each.name = {names}: must be texts")
    if len(each) > 1 and (None in names or len(set(names)) < len(names)):
        raise StudyError(f"{path}: each.name = {names}: every [[each]] needs a name of its own")
    return [
        _settings(
            path,
            f"{common}-{part['name']}" if "name" in part else common,
            effort,
            data | part,
            given or {},
        )
        for part in each
    ]


def _settings(
    path: Path,
    name: str,
    effort: dict[str, Any] | None,
    data: dict[str, Any],
    given: dict[str, Any],
) -> Asked:
    """The file's settings, then those given: so that only what stands in the file is told of the file."""
    needed = {key: given[key] for key in ("space",) if key in given}
    try:
        own = Settings(**_by_effort(effort, needed | data | {"name": name}, given))
    except UsageError as error:
        raise StudyError(f"{path}: {error}") from error
    return Asked(
        replace(own, **given), frozenset(effort or {}) | frozenset(data) | frozenset(given)
    )


def from_stored(data: dict[str, Any]) -> Settings:
    """Settings as a storage holds them; a study begun by an earlier version lacks the newer keys."""
    known = {field.name for field in fields(Settings)}
    newer = sorted(set(data) - known - {"space_fingerprint"})
    if newer:
        raise StudyError(
            f"study '{data.get('name')}': its setting {newer[0]} is unknown here: it was begun with a later "
            "version of nas-kd; open it with that"
        )
    return Settings(**{key: value for key, value in data.items() if key in known})
