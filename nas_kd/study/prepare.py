"""What a study computes once, before its trials: the teacher's outputs and curve, and the shared weights."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from nas_kd.codec.space import Choice, SearchSpace, load_space
from nas_kd.data.images import ImageSet, held, open_images
from nas_kd.data.overlap import warn_of_overlap
from nas_kd.data.similarity import MIN_SIDE
from nas_kd.device import best_device
from nas_kd.distillation.training import Report
from nas_kd.errors import NasKdError, StudyError, TrialFailed, UsageError
from nas_kd.evaluation.bd_rate import RDCurve, quality_interval
from nas_kd.evaluation.classical import beside, classical_curve, lacking
from nas_kd.evaluation.rate_distortion import Measured
from nas_kd.objectives import SIMILAR
from nas_kd.places import CACHE
from nas_kd.reasons import Reason
from nas_kd.study.ranking import draws, in_order
from nas_kd.study.settings import TEACHER, Settings
from nas_kd.study.sources import warn_of_few
from nas_kd.study.study import Study
from nas_kd.study.trial import Anchor, Task, interval_of
from nas_kd.study.trial_artifacts import made_with
from nas_kd.supernet.from_teacher import (
    Inherited,
    inherit,
    is_family,
    load_inherited,
    require_slices,
)
from nas_kd.supernet.shared_weights import Shared
from nas_kd.supernet.warmup import CARD, SHARED, STEPS, load_shared, warm_up
from nas_kd.teachers.curve_cache import measured_once
from nas_kd.teachers.targets import TARGETS, PoolRecipe, TargetPool, images_of, target_pool
from nas_kd.teachers.teacher import Teacher

TRIM = 0.25
"""Share of the teacher's PSNR range left out at each end of the study's interval.

A student trained briefly falls short of the teacher's end points; over the middle half both can be compared."""

CURVES = "curves"
"""Folder of teachers' points in what studies share."""
TELL_S = 5.0
"""Between two remarks on where a training is."""

Listen = Callable[[str, Any], None]
"""Hears (kind, details): "preparing", "reaped", "started", "trial"."""

Scores = Callable[[list[dict[str, Choice]]], Iterable[dict[str, Any]]]
"""Scores points of a space straight from their slices (ranking.score), in order; or a ``reason`` and a ``message``."""


SLICE_LR = 0.2
"""Share of the learning rate for a trial that starts from its slice: the whole rate undid some of the warm-up
within 75 steps, a tenth to a third did not (benchmarks/LOG.md)."""


def interval_db(curve: RDCurve) -> tuple[float, float] | None:
    """The middle of the teacher's PSNR range, over which students are compared, if it has one."""
    whole = interval_of(curve)
    if whole is None:
        return None
    low, high = whole
    margin = TRIM * (high - low)
    return low + margin, high - margin


def prepare(
    study: Study, teacher: Teacher, listen: Listen, pool_gb: float = math.inf
) -> dict[str, Any]:
    """The teacher's targets and curve, computed once per study; returns what workers need.

    ``pool_gb`` is what targets of all studies may take on disk; raises UsageError where this study's take more.
    """
    settings = study.settings
    if settings.init == "teacher":
        listed = None if study.grid is None else [study.space.arch(point) for point in study.grid]
        require_slices(study.space.corners(True) if listed is None else listed, teacher)
    if settings.anchor != TEACHER and (reason := lacking(settings.anchor)) is not None:
        raise UsageError(f"anchor {settings.anchor}: {reason}")
    judged = open_images(settings.eval_data, "eval").fingerprint
    require_unchanged(study, {"teacher": teacher.fingerprint, "eval_data": judged})
    study.optuna.set_user_attr("made_with", made_with(best_device()))
    pool = targets(settings, teacher, listen, pool_gb)
    require_unchanged(study, {"data": images_of(pool)})
    shared = warm(settings, study.space, teacher, pool, listen)
    if shared is not None and (shared / CARD).is_file():
        study.optuna.set_user_attr("warmup", json.loads((shared / CARD).read_text()))
    anchor, students = teacher_curve(study, teacher, listen), study.folder / "students"
    return configuration(settings, teacher, pool, shared, anchor, students)


def configuration(
    settings: Settings,
    teacher: Teacher,
    pool: Path,
    shared: Path | None,
    anchor: dict[str, Any],
    students: Path,
) -> dict[str, Any]:
    """What a worker needs to run trials, in types that travel."""
    return {
        "settings": settings.to_json(),
        "lmbdas": list(teacher.lmbdas),
        "pool": str(pool.resolve()),
        "shared": None if shared is None else str(shared.resolve()),
        "anchor": anchor,
        "students": str(students.resolve()),
        "cwd": os.getcwd(),
    }


def require_unchanged(study: Study, now: dict[str, str | None]) -> None:
    """Keep the fingerprints of what a study rests on: its trials are comparable no longer than these stay.

    Raises StudyError where one is no longer what it was when the study was begun.
    """
    anchor = study.optuna.user_attrs.get("anchor", {})
    begun = {"teacher": anchor.get("teacher_fingerprint")} if anchor else {}
    begun |= study.optuna.user_attrs.get("sources", {})
    for what, value in now.items():
        if (was := begun.get(what)) is not None and value is not None and was != value:
            raise StudyError(
                f"study {study.settings.name}: {what} {getattr(study.settings, what)} is not what it was when "
                f"the study was begun (fingerprint {value[:8]}, it was {was[:8]}): put that back, or take another "
                "--name for a new study"
            )
        begun[what] = value or was
    study.optuna.set_user_attr("sources", begun)


def targets(
    settings: Settings, teacher: Teacher, listen: Listen, pool_gb: float = math.inf
) -> Path:
    """The teacher's outputs on the pool of crops, computed once for all studies that ask the same."""
    s = settings
    warn_of_overlap(s.data, s.eval_data)
    warn_of_few(s)
    recipe = PoolRecipe(s.data, s.crops, s.crop_size, s.seed, x_hat=s.kd_x > 0)

    def progress(done: int, total: int) -> None:
        listen("preparing", f"teacher's outputs: {done} of {total} crops")

    return target_pool(CACHE / TARGETS, teacher, recipe, progress, pool_gb, best_device())


def warm(
    settings: Settings, space: SearchSpace, teacher: Teacher, pool: Path, listen: Listen
) -> Path | None:
    """What trials start from slices of: the teacher, or weights trained once for all studies that ask the same."""
    if settings.init == "scratch":
        return None
    if settings.init == "teacher" or (settings.warmup is None and is_family(teacher, space)):
        return inherit(CACHE / "inherited", teacher)
    steps = STEPS if settings.warmup is None else settings.warmup
    report = told_of("warm-up of shared weights", steps, listen)
    cache, opened, recipe = (
        CACHE / "shared",
        TargetPool(pool, best_device()),
        settings.recipe(steps),
    )
    try:
        return warm_up(cache, space, teacher.lmbdas, opened, recipe, settings.loss, report)
    except TrialFailed as failure:
        raise NasKdError(
            f"warm-up of shared weights: {failure}; take a lower lr than {settings.lr:g}, or --init scratch"
        ) from failure


def told_of(
    what: str, steps: int, listen: Listen, clock: Callable[[], float] = time.monotonic
) -> Report:
    """Says where a training is, TELL_S apart, and how long the rest takes at the pace so far."""
    first: list[tuple[int, float]] = []
    told_s = [-math.inf]

    def report(step: int, metrics: dict[str, float]) -> None:
        now_s = clock()
        first.append((step, now_s)) if not first else None
        if step < steps and now_s - told_s[0] < TELL_S:
            return
        told_s[0] = now_s
        said = f"{what}: step {step} of {steps}, loss {metrics['loss']:.3f}"
        if step > first[0][0]:
            left_s = (steps - step) * (now_s - first[0][1]) / (step - first[0][0])
            said += f", about {left_s / 60:.1f} min left"
        listen("preparing", said)

    return report


def teacher_curve(study: Study, teacher: Teacher, listen: Listen) -> dict[str, Any]:
    """What the study's students are compared with, kept in the study."""
    stored = study.optuna.user_attrs.get("anchor")
    if stored is None:
        stored = anchor_of(study.settings, teacher, listen)
        study.optuna.set_user_attr("anchor", stored)
    return stored


def anchor_of(settings: Settings, teacher: Teacher, listen: Listen) -> dict[str, Any]:
    """The teacher's estimated R-D curve, or a classical codec's in its place, and the interval."""
    similar = SIMILAR in settings.objectives
    if similar and settings.anchor != TEACHER:
        raise UsageError(
            f"objective {SIMILAR} with anchor {settings.anchor}: it is against the teacher alone; take "
            "--anchor teacher, or bd_rate"
        )
    listen("preparing", "teacher's rate-distortion curve")
    images = open_images(settings.eval_data, "eval")
    measured = measured_once(CACHE / CURVES, teacher, images, best_device(), similar)
    curve = measured.curve()
    anchor = {
        "name": TEACHER,
        "rate": measured.kind,
        "teacher": teacher.name,
        "teacher_fingerprint": teacher.fingerprint,
        "latent_widths": list(teacher.latent_widths),
        "teacher_curve": curve.to_json(),
        "curve": curve.to_json(),
        "interval_db": interval_db(curve),
        "per_image": [one.to_json() for one in measured.per_image()],
        "baselines": {name: one.to_json() for name, one in beside(images).items()},
    }
    if similar:
        anchor["ms_ssim"] = _similarity(measured)
    if settings.anchor != TEACHER:
        anchor |= _classical_anchor(settings.anchor, images, interval_db(curve))
    return anchor


def _similarity(measured: Measured) -> dict[str, Any]:
    """What BD-rates by MS-SSIM are against: the curve in dB, its interval, and the pictures' own curves."""
    curve = measured.similarity_curve()
    if not all(math.isfinite(db) for db in curve.psnr_db):
        raise UsageError(
            f"objective {SIMILAR}: an evaluation picture is under {MIN_SIDE} px on a side, and has no MS-SSIM; take "
            "larger ones (--eval-data)"
        )
    each = [one.to_json() for one in measured.similarity_per_image()]
    return {"curve": curve.to_json(), "interval_db": interval_db(curve), "per_image": each}


def baselines_of(anchor: dict[str, Any] | None) -> dict[str, RDCurve]:
    """Classical codecs' curves in a study's record of its teacher; none in those of older versions."""
    stored = (anchor or {}).get("baselines", {})
    return {name: RDCurve.from_json(curve) for name, curve in stored.items()}


def _classical_anchor(
    name: str, images: ImageSet, interval: tuple[float, float] | None
) -> dict[str, Any]:
    """A classical codec in the teacher's place; the interval is the teacher's, as far as the codec reaches.

    Pictures' own BD-rates, and with them the report's bars, are left out.
    """
    curve = classical_curve(name, images)
    low, high = quality_interval(curve)
    if interval is not None:
        interval = max(interval[0], low), min(interval[1], high)
        if not interval[0] < interval[1]:
            raise UsageError(
                f"anchor = {name}: its {low:.2f} to {high:.2f} dB lie outside the teacher's range; take another"
            )
    return {"name": name, "curve": curve.to_json(), "interval_db": interval, "per_image": []}


@cache
def _task(
    settings: Settings,
    lmbdas: tuple[float, ...],
    pool: str,
    shared: str | None,
    anchor: str,
    device: str,
) -> Task:
    """What a worker keeps between trials; made once per process."""
    parsed = json.loads(anchor)
    interval = parsed["interval_db"]
    curve = Anchor(
        RDCurve.from_json(parsed["curve"]),
        tuple(interval) if interval else None,
        baselines_of(parsed),
        parsed.get("name", TEACHER),
        _similar_anchor(parsed.get("ms_ssim")),
    )
    return Task(
        lmbdas=lmbdas,
        recipe=settings.recipe(settings.steps, SLICE_LR if settings.init == "shared" else 1.0),
        weights=settings.loss,
        objectives=settings.objectives,
        pool=TargetPool(Path(pool), device),
        eval_images=held(open_images(settings.eval_data, "eval")),
        anchor=curve,
        limits=settings.limits,
        device=device,
        shared=_origin(settings, shared, lmbdas) if shared else None,
    )


def _similar_anchor(stored: dict[str, Any] | None) -> Anchor | None:
    if stored is None:
        return None
    interval = stored["interval_db"]
    return Anchor(RDCurve.from_json(stored["curve"]), tuple(interval) if interval else None)


def _origin(settings: Settings, folder: str, lmbdas: tuple[float, ...]) -> Shared | Inherited:
    if (Path(folder) / SHARED).is_file():
        return load_shared(Path(folder), load_space(settings.space), lmbdas)
    return load_inherited(Path(folder))


def task_of(prepared: dict[str, Any], device: str = "cpu") -> Task:
    """The shared part of every trial, from what ``prepare`` returned."""
    settings = Settings(**prepared["settings"])
    anchor = json.dumps(prepared["anchor"], sort_keys=True)
    lmbdas, pool, shared = tuple(prepared["lmbdas"]), prepared["pool"], prepared["shared"]
    return _task(settings, lmbdas, pool, shared, anchor, device)


def rank(study: Study, levels: int, scores: Scores, listen: Listen) -> None:
    """The first of two rounds, where the settings ask for one and it has not been done.

    Archs without a score are left out, and said. Raises NasKdError where their scoring was interrupted.
    """
    n = study.settings.rank
    if not n or study.ranked is not None:
        return
    limits = study.settings.limits
    archs = draws(study.space, n, study.settings.seed, lambda arch: limits.over(arch, levels))
    points = [params for arch in archs if (params := study.space.params_of(arch)) is not None]
    found, lost = list[dict[str, Any]](), list[dict[str, Any]]()
    for done, score in enumerate(scores(points), start=1):
        (lost if "reason" in score else found).append(score)
        if done % 10 == 0 or done == len(points):
            listen("preparing", _ranked(done, len(points), lost))
    if broken := [s["message"] for s in lost if s["reason"] == Reason.INTERRUPTED]:
        raise NasKdError(
            f"ranking was interrupted ({broken[0]}); mend that and run the same command again"
        )
    study.optuna.set_user_attr("ranked", in_order(found))


def _ranked(done: int, total: int, lost: list[dict[str, Any]]) -> str:
    said = f"ranked by their slices: {done} of {total} archs"
    if lost:
        said += f", {len(lost)} left out ({lost[0]['reason']}: {lost[0]['message']})"
    return said
