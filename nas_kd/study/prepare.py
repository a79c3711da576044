"""What a study computes once, before its trials: the teacher's outputs and curve, and the shared weights."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from nas_kd.codec.search_space import SearchSpace
from nas_kd.data.images import open_images
from nas_kd.data.overlap import warn_of_overlap
from nas_kd.device import best_device
from nas_kd.distillation.training import Report
from nas_kd.errors import NasKdError, StudyError, TrialFailed, UsageError
from nas_kd.evaluation.classical import lacking
from nas_kd.objectives import BD_RATES
from nas_kd.study.anchor import Anchor, anchor_of
from nas_kd.study.events import Listen
from nas_kd.study.large_crops import SIDE_PX, has_large, large_crops
from nas_kd.study.plan import narrowness, question_of
from nas_kd.study.prepared import Prepared, in_full
from nas_kd.study.settings import TEACHER, Settings
from nas_kd.study.sources import warn_of_few
from nas_kd.study.study import Study
from nas_kd.study.trial_artifacts import made_with
from nas_kd.supernet.from_teacher import inherit, is_family, require_slices
from nas_kd.supernet.warmup import CARD, STEPS, rate_share, warm_up
from nas_kd.teachers.lessons import lessons, lessons_folder
from nas_kd.teachers.targets import TARGETS, PoolRecipe, images_of, target_pool
from nas_kd.teachers.teacher import Teacher

logger = logging.getLogger("nas_kd")

INHERITED, WARMED = "inherited", "shared"
"""Folders of what students start from slices of, in what studies share."""
CROPS, ANEW, STORED = "crops", "anew", "stored"
"""Where a study's sources say how its trials come by their crops."""
TELL_S = 5.0
"""Between two remarks on where a training is."""


def prepare(study: Study, teacher: Teacher, listen: Listen, device: str | None = None) -> Prepared:
    """The teacher's targets and curve, computed once per study; returns what workers need.

    ``device`` is what trials train on, by default the best one.
    """
    settings = study.settings
    if settings.init == "teacher":
        listed = None if study.grid is None else [study.space.arch(point) for point in study.grid]
        require_slices(study.space.corners(True) if listed is None else listed, teacher)
    if settings.anchor != TEACHER and (reason := lacking(settings.anchor)) is not None:
        raise UsageError(f"anchor {settings.anchor}: {reason}")
    bounds = question_of(settings, None).bounds
    if set(BD_RATES) & set(settings.objectives) and (
        narrow := narrowness(bounds, teacher.latent_widths[0])
    ):
        logger.warning("space %s: %s", settings.space, narrow)
    judged = open_images(settings.eval_data, "eval").fingerprint
    require_unchanged(study, {"teacher": teacher.fingerprint, "eval_data": judged})
    study.keep_made_with(made_with(best_device()))
    anew = drawn_anew(study, device or best_device())
    pool = targets(settings, teacher, listen, study.cache, anew)
    require_unchanged(study, {"data": images_of(pool)})
    anchor = study_anchor(study, teacher, listen)  # before anything is trained
    large = large_targets(settings, teacher, pool, listen, study.cache, anew)
    shared = warm(settings, study.space, teacher, pool, listen, study.cache)
    if shared is not None and (shared / CARD).is_file():
        study.keep_warmup(json.loads((shared / CARD).read_text()))
    given = travelling(settings, teacher, pool, shared, anchor, study.folder / "students")
    return replace(given, large=large)


def travelling(
    settings: Settings,
    teacher: Teacher,
    pool: Path,
    shared: Path | None,
    anchor: Anchor,
    students: Path,
) -> Prepared:
    """What a worker needs to run trials, wherever it runs."""
    return Prepared(
        in_full(settings),
        tuple(teacher.lmbdas),
        pool.resolve(),
        None if shared is None else shared.resolve(),
        anchor,
        students.resolve(),
    )


def require_unchanged(study: Study, now: Mapping[str, str | None]) -> None:
    """Keep the fingerprints of what a study rests on: its trials are comparable no longer than these stay.

    Raises StudyError where one is no longer what it was when the study was begun.
    """
    if change := _first_change(study, now):
        raise StudyError(f"{change}: put that back, or take another --name for a new study")
    study.keep_sources(_begun_with(study) | {what: value for what, value in now.items() if value})


def warn_if_changed(study: Study, teacher: Teacher) -> None:
    """Say of a study to which nothing is added that it rests on another teacher than today's."""
    if change := _first_change(study, {"teacher": teacher.fingerprint}):
        logger.warning(
            "%s; its trials stay as they are, take another --name for a new study", change
        )


def _first_change(study: Study, now: Mapping[str, str | None]) -> str | None:
    begun = _begun_with(study)
    for what, value in now.items():
        if (was := begun.get(what)) is not None and value is not None and was != value:
            return (
                f"study {study.settings.name}: {what} {getattr(study.settings, what)} is not what it was when "
                f"the study was begun (fingerprint {value[:8]}, it was {was[:8]})"
            )
    return None


def _begun_with(study: Study) -> dict[str, str | None]:
    anchor = study.anchor
    begun = dict[str, str | None]() if anchor is None else {"teacher": anchor.teacher.fingerprint}
    return begun | study.sources


def drawn_anew(study: Study, device: str) -> bool:
    """Whether a study's trials draw their crops anew at every step: on a GPU, and as it was begun."""
    was = study.sources.get(CROPS)
    if was is None:  # studies with an anchor were begun before there was a choice
        was = ANEW if study.anchor is None and device.startswith("cuda") else STORED
        study.keep_sources(study.sources | {CROPS: was})
    return was == ANEW


def targets(
    settings: Settings,
    teacher: Teacher,
    listen: Listen,
    cache: Path,
    anew: bool | None = None,
) -> Path:
    """The folder of what students learn from, made once for all studies that ask the same.

    Args:
        settings: of the study.
        teacher: on the CPU.
        listen: hears ("preparing", where it is).
        cache: the folder of what studies share.
        anew: whether crops are drawn at every step and the teacher works on them in it, by default where there is a
            GPU; else its outputs on a pool of crops are stored.
    """
    warn_of_overlap(settings.data, settings.eval_data)
    warn_of_few(settings)
    asked = (settings.crops, settings.crop_size)
    return _pool(
        settings, asked, teacher, listen, cache, best_device() != "cpu" if anew is None else anew
    )


def large_targets(
    settings: Settings, teacher: Teacher, pool: Path, listen: Listen, cache: Path, anew: bool
) -> Path | None:
    """The same on the larger crops that the polish ends on, where it does."""
    if not has_large(settings):
        return None
    _held = lessons(pool)  # where the cache is limited, it does not make room for these
    asked = (large_crops(settings), SIDE_PX)
    return _pool(settings, asked, teacher, listen, cache, anew).resolve()


def _pool(
    s: Settings, asked: tuple[int, int], teacher: Teacher, listen: Listen, cache: Path, anew: bool
) -> Path:
    crops, side_px = asked
    recipe = PoolRecipe(s.data, crops, side_px, s.seed, x_hat=s.kd_x > 0)
    reading = told_of_reading(listen)
    if anew:
        listen(
            "preparing", "crops are drawn anew at every step, and the teacher works on them in it"
        )
        return lessons_folder(cache / TARGETS, teacher, recipe, reading, best_device())

    def progress(done: int, total: int) -> None:
        listen("preparing", f"teacher's outputs: {done} of {total} crops of {side_px} px")

    return target_pool(cache / TARGETS, teacher, recipe, progress, best_device(), reading)


def warm(
    settings: Settings,
    space: SearchSpace,
    teacher: Teacher,
    pool: Path,
    listen: Listen,
    cache: Path,
) -> Path | None:
    """What trials start from slices of: the teacher, or weights trained once for all studies that ask the same."""
    if settings.init == "scratch":
        return None
    if settings.init == "teacher" or (settings.warmup is None and is_family(teacher, space)):
        return inherit(cache / INHERITED, teacher)
    steps = STEPS if settings.warmup is None else settings.warmup
    what = "warm-up of shared weights"
    listen("preparing", f"{what}: {steps} steps from a linear codec on, unless they are there")
    report = told_of(what, steps, listen)
    opened = lessons(pool, best_device(), settings.data)
    recipe = settings.recipe(steps, rate_share(space))
    try:
        return warm_up(cache / WARMED, space, teacher.lmbdas, opened, recipe, settings.loss, report)
    except TrialFailed as failure:
        raise NasKdError(
            f"{what}: {failure}; take a lower lr than {settings.lr:g}, or --set init=scratch"
        ) from failure


def told_of_reading(
    listen: Listen, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """Says how many pictures are read, TELL_S apart."""
    told_s = clock()

    def progress(done: int, of: int) -> None:
        nonlocal told_s
        if clock() - told_s >= TELL_S:
            told_s = clock()
            listen("preparing", f"pictures: {done} of {of} read")

    return progress


def told_of(
    what: str, steps: int, listen: Listen, clock: Callable[[], float] = time.monotonic
) -> Report:
    """Says where a training is, TELL_S apart, and how long the rest takes at the pace so far."""
    begun: tuple[int, float] | None = None
    told_s = -math.inf

    def report(step: int, metrics: dict[str, float]) -> None:
        nonlocal begun, told_s
        now_s = clock()
        begun = begun or (step, now_s)
        if step < steps and now_s - told_s < TELL_S:
            return
        told_s = now_s
        said = f"{what}: step {step} of {steps}, loss {metrics['loss']:.3f}"
        if step > begun[0]:
            left_s = (steps - step) * (now_s - begun[1]) / (step - begun[0])
            said += f", about {left_s / 60:.1f} min left"
        listen("preparing", said)

    return report


def study_anchor(study: Study, teacher: Teacher, listen: Listen) -> Anchor:
    """What the study's students are compared with, kept in the study."""
    kept = study.anchor
    if kept is None:
        kept = anchor_of(study.settings, teacher, listen, study.cache)
        study.keep_anchor(kept)
    return kept
