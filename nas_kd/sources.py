"""What a command needs that may have to be fetched first: told, and asked for, before anything heavy is loaded."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nas_kd import picture_sets, zoo_files
from nas_kd.errors import DataError
from nas_kd.fetch import Order, supply
from nas_kd.files import below
from nas_kd.imagefile import suffixes

logger = logging.getLogger("nas_kd")

BUILTIN = "builtin"
BUILTIN_PHOTOGRAPHS = 6
FEW = 200
"""Photographs below which a search says what is known to follow: so many are known to be enough to start with."""
OF_FEW = (
    "students fit these rather than photographs at large (on the six built-in ones 200 steps of a trial's own made "
    "shared weights up to 5.9 % worse in R-D loss, on 200 photographs 300 steps made them 0.2 to 3.7 % better)"
)
"""benchmarks/LOG.md, 2026-11-25."""


def orders(teachers: Iterable[str | None], weights: str | None, data: Iterable[str]) -> list[Order]:
    """What is not here of zoo teachers (unless a folder of weights is named) and of sets of pictures."""
    specs = dict.fromkeys(spec for spec in teachers if spec and zoo_files.is_zoo(spec))
    wanted = [zoo_files.order_of(spec) for spec in specs if weights is None]
    sets = [one for name in dict.fromkeys(data) if (one := picture_sets.named(name)) is not None]
    wanted += [picture_sets.order_of(one) for one in sets]
    return [order for order in wanted if order is not None]


def studies_of(file: Path | None, given: dict[str, Any]) -> list[dict[str, Any]]:
    """What a study file and the options given say, study by study; {} where the file cannot be read.

    What is wrong with a file is said where it is loaded.
    """
    read: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        read = tomllib.loads(file.read_text()) if file is not None else {}
    each = read.pop("each", None)
    rows = each if isinstance(each, list) and each else [{}]
    return [read | row | given for row in rows if isinstance(row, dict)]


def require(file: Path | None, given: dict[str, Any], yes: bool) -> None:
    """Have all that a search needs: its teachers' weights and its pictures, by one question.

    Args:
        file: a study file.
        given: options that were given; they replace the file's keys.
        yes: whether the user agreed beforehand.

    Raises DataError where a zoo teacher would train on the built-in pictures and nobody said so.
    """
    studies = studies_of(file, given)
    for one in studies:
        _require_photographs(one)
    lacking = {order.what: order for one in studies for order in _orders_of(one)}
    supply(list(lacking.values()), yes)
    for data in {_text(one, "data") for one in studies if _from_zoo(one) or "data" in one}:
        warn_of_few(data or BUILTIN)


def _orders_of(study: dict[str, Any]) -> list[Order]:
    teachers = (_text(study, "teacher"), _text(study, "teacher_z"))
    pictures = (_text(study, "data") or "", _text(study, "eval_data") or "")
    return orders(teachers, _text(study, "weights"), pictures)


def _text(study: dict[str, Any], key: str) -> str | None:
    value = study.get(key)
    return value if isinstance(value, str) else None


def _from_zoo(study: dict[str, Any]) -> bool:
    return zoo_files.is_zoo(_text(study, "teacher") or "")


def _require_photographs(study: dict[str, Any]) -> None:
    if _from_zoo(study) and "data" not in study:
        raise DataError(
            f"teacher {study['teacher']}: the built-in pictures ({BUILTIN_PHOTOGRAPHS} photographs, 48 synthetic "
            "ones) are too few to learn from it; give --data clic-train (`nas-kd fetch clic-train`) or a folder of "
            "photographs, or say --data builtin outright"
        )


def warn_of_few(data: str) -> None:
    """One warning where there are fewer than FEW photographs to train on."""
    count = _photographs(data)
    if count is not None and count < FEW:
        logger.warning(
            f"--data {data}: {count} photographs to train on; with fewer than {FEW} {OF_FEW}"
        )


def _photographs(data: str) -> int | None:
    """How many there are to train on; None where that is not a folder."""
    if data == BUILTIN:
        return BUILTIN_PHOTOGRAPHS
    one = picture_sets.named(data)
    folder = Path(data).expanduser() if one is None else picture_sets.home() / one.name
    return len(below(folder, suffixes()).files) if folder.is_dir() else None
