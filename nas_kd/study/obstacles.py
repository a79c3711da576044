"""What stands in the way of a search, all of it at once, found in less than a second: nothing heavy is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from nas_kd.codec.search_space import load_space
from nas_kd.data.fetch import refusal, supply
from nas_kd.data.picture_files import require_writable
from nas_kd.data.picture_sets import known, named
from nas_kd.errors import DataError, StudyError, TeacherError, UsageError
from nas_kd.measurement.meters import require_likely_meter
from nas_kd.objectives import BD_RATES, SIMILAR
from nas_kd.places import BUILTIN, CACHE, HERE, STUDIES
from nas_kd.study.grid import grid_points, listed_points
from nas_kd.study.settings import DATABASE, TEACHER, Settings, require_study
from nas_kd.study.sources import lacking, require_photographs
from nas_kd.teachers.served import require_at_hand, zoo_qualities

Check = Callable[[], object]


def require_clear(
    studies: Sequence[Settings], yes: bool = False, data_said: bool = True, root: Path = HERE
) -> None:
    """Raise UsageError with everything that keeps one of these studies from being searched, each with its remedy.

    Where nothing else does, weights and pictures that are lacking are fetched. Deeper looks, such as into the
    files, follow when the work begins.

    Args:
        studies: what is to be searched.
        yes: whether the user agreed to fetch what is lacking.
        data_said: whether the pictures to train on were named, and not left at their default.
        root: the folder that ``studies`` is in.
    """
    found = in_the_way(studies, data_said, root)
    orders = [] if any(isinstance(error, TeacherError) for error in found) else lacking(studies)
    if orders and (refused := refusal(orders, yes)) is not None:
        found.append(refused)
    raise_all(found)
    supply(orders, yes)


def in_the_way(
    studies: Sequence[Settings], data_said: bool = True, root: Path = HERE
) -> list[UsageError]:
    """What keeps one of these studies from being searched, but for what can be fetched."""
    return list(_failures(check for s in studies for check in _checks(s, data_said, root)))


def raise_all(found: Sequence[UsageError]) -> None:
    """Raise UsageError with all of these, where there are any."""
    if len(found) == 1:
        raise found[0]
    if found:
        lines = [f"  {place}. {error}" for place, error in enumerate(found, start=1)]
        raise UsageError("\n".join([f"{len(found)} things stand in the way:", *lines]))


def _failures(checks: Iterable[Check]) -> Iterator[UsageError]:
    told = set()
    for check in checks:
        try:
            check()
        except UsageError as error:
            if str(error) not in told:
                yield error
            told.add(str(error))


def _checks(s: Settings, data_said: bool, root: Path) -> Iterator[Check]:
    """The cheapest first."""
    yield lambda: _require_levels(s)
    yield lambda: require_teachers_similarity(s)
    if not data_said:
        yield lambda: require_photographs(s)
    yield lambda: _require_place(s, root)
    yield lambda: _require_prior(s, root)
    for key in ("data", "eval_data"):
        yield lambda key=key: _require_pictures(key, getattr(s, key))  # type: ignore[misc]
    yield lambda: _require_codec(s.anchor)
    for spec in s.teacher_spec.names:
        if s.weights is not None or not _is_zoo(spec):  # else what is lacking is fetched
            yield lambda spec=spec: require_at_hand(spec, s.weights)  # type: ignore[misc]
    yield lambda: _require_points(s)
    yield lambda: require_likely_meter(s.objectives)


def _require_levels(s: Settings) -> None:
    asked = zoo_qualities(s.teacher)
    if asked is not None and len(asked[1]) == 1:
        require_levels(s, s.teacher, 1)


def require_teachers_similarity(s: Settings) -> None:
    """Raise UsageError where a BD-rate by MS-SSIM is asked for against another anchor than the teacher."""
    if SIMILAR in s.objectives and s.anchor != TEACHER:
        raise UsageError(
            f"objective {SIMILAR} with anchor {s.anchor}: it is against the teacher alone; take --set "
            f"anchor={TEACHER}, or bd_rate"
        )


def require_levels(s: Settings, teacher: str, levels: int) -> None:
    """Raise StudyError where a BD-rate is asked for and a teacher has too few levels for one."""
    from nas_kd.evaluation.bd_rate import MIN_POINTS

    named = next((name for name in s.objectives if name in BD_RATES), None)
    if named is not None and levels < MIN_POINTS:
        raise StudyError(
            f"objective {named}: teacher {teacher} has {levels} level, and a BD-rate needs {MIN_POINTS}; take "
            "rd_cost instead (--objectives rd_cost,flops)"
        )


def _require_place(s: Settings, root: Path) -> None:
    """A search writes its study's folder, its database and what studies share."""
    folder = root / STUDIES / s.name
    require_writable(folder, "study", folder=True)
    require_writable(root / CACHE, "what studies share,", folder=True)
    database = folder / DATABASE
    if database.exists() and not os.access(database, os.W_OK):
        raise StudyError(
            f"study {s.name}: {database} cannot be written; search under another --name "
            f"(--set from_study={s.name} takes its trials for a prior)"
        )


def _require_prior(s: Settings, root: Path) -> None:
    if s.from_study == s.name:
        raise StudyError(f"from_study = '{s.name}': is this study itself; name another")
    if s.from_study is not None:
        require_study(s.from_study, root)


def _is_zoo(spec: str) -> bool:
    try:
        return zoo_qualities(spec) is not None
    except TeacherError:
        return False  # and require_at_hand says why


def _require_pictures(key: str, spec: str) -> None:
    if spec != BUILTIN and named(spec) is None and not Path(spec).expanduser().is_dir():
        kind = "is a file, not a folder" if Path(spec).expanduser().is_file() else "is no folder"
        raise DataError(
            f"{key} {spec!r} {kind}: images come from a folder, from {BUILTIN!r} or from {', '.join(known())}"
        )


def _require_codec(anchor: str) -> None:
    # Pillow has the others in all its wheels; whether this one does is seen when the work begins.
    if anchor == "jpegxl" and importlib.util.find_spec("pillow_jxl") is None:
        raise UsageError(
            "anchor jpegxl: package pillow-jxl-plugin is not installed: pip install 'nas-kd[jpegxl]'"
        )


def _require_points(s: Settings) -> None:
    space = load_space(s.space)
    if s.grid is not None:
        grid_points(space, dict(s.grid))
    if s.archs is not None:
        listed_points(space, s.archs)
