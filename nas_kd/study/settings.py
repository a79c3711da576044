"""A study's settings: one schema of every key, from options, from study files (TOML), and to JSON and back."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)
from pydantic.dataclasses import dataclass

from nas_kd.errors import StudyError, UsageError
from nas_kd.places import BUILTIN, STUDIES
from nas_kd.recipe import (
    Count,
    Form,
    NotNegative,
    Positive,
    Recipe,
    Seed,
    Share,
    Weights,
    Whole,
)
from nas_kd.schema import STRICT, Checked
from nas_kd.study.grid import Grid, frozen_grid, listed
from nas_kd.study.limits import Limit, Limits, canonical
from nas_kd.toml_file import read_table

"""What studies share: the teacher's targets and warm-ups, named by fingerprints; may be deleted."""
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
Cost = Annotated[Limit, BeforeValidator(_of_key(canonical))]
Objectives = Annotated[
    tuple[Objective, ...],
    Field(
        strict=False,  # a list will do
        min_length=1,
        description=f"a list of one or more of {', '.join(KNOWN_OBJECTIVES)}",
    ),
    AfterValidator(_each_once),
]


@dataclass(frozen=True, config=STRICT)
class Settings(Checked):
    """One question: space, teacher, objectives, and what each trial may spend.

    weights: folder of CompressAI's zoo files. lmbda: what students of a one-level teacher are trained for.
    teacher_z: a second teacher, for the hyper-latents. grid: values by name of the space; where given, their
    combinations are enumerated and nothing is sampled. archs: likewise, a list of such choices or of arch files.
    anchor: what BD-rates are against, the teacher or a classical codec. max_*: see Limits. from_study: a study
    whose archs and values serve as a prior. warmup: steps of the shared weights'; None takes built-in weights
    where they fit. polish: steps that the front is trained on in the end.
    """

    name: Name
    space: Text
    teacher: Text = "mini"
    objectives: Objectives = OBJECTIVES
    steps: Whole = 2000
    batch: Count = 2
    lr: Positive = 1e-3
    kd_x: Share = 0.0
    kd_y: NotNegative = 0.05
    kd_z: NotNegative = 0.2
    form: Form = "kd"
    init: Init = "shared"
    warmup: Whole | None = None
    rank: Whole = 0
    crops: Annotated[int, Field(ge=16)] = 1000
    crop_size: Annotated[int, Field(ge=64, multiple_of=64)] = 256
    data: Text = BUILTIN
    eval_data: Text = BUILTIN
    anchor: Anchor = "teacher"
    sampler: Sampler = DEFAULT
    max_gmac: Cost = None
    max_params: Cost = None
    max_mj: Cost = None
    max_latency_ms: Cost = None
    from_study: Other | None = None
    polish: Whole = 0
    early_stopping: bool = False
    checkpoint_s: NotNegative = 30.0
    seed: Seed = 0
    weights: Text | None = None
    lmbda: Positive | None = None
    teacher_z: Text | None = None
    grid: Annotated[Grid | None, BeforeValidator(_of_key(_grid))] = None
    archs: Annotated[tuple[str, ...] | None, BeforeValidator(_of_key(_archs))] = None

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
        return Recipe(steps, self.batch, lr, seed=self.seed, checkpoint_s=self.checkpoint_s)

    @property
    def folder(self) -> Path:
        """Where the study lives."""
        return STUDIES / self.name

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


def study_name(spec: str) -> str:
    """A study's name, given as it is or as the folder that the shell completes to, ``studies/NAME``."""
    path = Path(os.path.abspath(spec))
    return path.name if path.parent == STUDIES.absolute() else spec


def require_study(spec: str) -> str:
    """The name of a study that lies in ``studies``; raises StudyError where there is none."""
    name = study_name(spec)
    folder = Path(os.path.abspath(STUDIES / name))
    if folder.parent != STUDIES.absolute() or not (folder / DATABASE).is_file():
        known = ", ".join(sorted(p.parent.name for p in STUDIES.glob(f"*/{DATABASE}"))) or "none"
        raise StudyError(f"study '{spec}': there is none in {STUDIES}/ (there: {known})")
    return name


def load_studies(
    path: Path, name: str | None = None, given: dict[str, Any] | None = None
) -> list[Settings]:
    """The studies of a study file (TOML): one, or one per ``[[each]]`` table.

    Args:
        path: the file; its top-level keys hold for all its studies, those of an ``[[each]]`` for one.
        name: of the study, by default the file's; ``[[each]]`` adds its own ``name`` behind a hyphen.
        given: settings that replace the file's.
    """
    data = read_table(path, StudyError)
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
            data | part,
            given or {},
        )
        for part in each
    ]


def _settings(path: Path, name: str, data: dict[str, Any], given: dict[str, Any]) -> Settings:
    """The file's settings, then those given: so that only what stands in the file is told of the file."""
    needed = {key: given[key] for key in ("space",) if key in given}
    try:
        own = Settings(**needed | data | {"name": name})
    except UsageError as error:
        raise StudyError(f"{path}: {error}") from error
    return replace(own, **given)


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
