"""What a study needs that may have to be fetched first, and whether its pictures are worth a teacher's time."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from nas_kd.data import picture_sets
from nas_kd.data.fetch import Order
from nas_kd.data.image_file import suffixes
from nas_kd.data.picture_files import below
from nas_kd.errors import DataError
from nas_kd.places import BUILTIN
from nas_kd.study.settings import Settings
from nas_kd.teachers import zoo_files
from nas_kd.teachers.served import zoo_qualities
from nas_kd.toml_file import read_table

logger = logging.getLogger("nas_kd")

BUILTIN_PHOTOGRAPHS = 6
"""To train on; the rest is synthetic."""
FEW = 200
"""Photographs below which a search says what is known to follow: so many are known to be enough to start with."""
OF_FEW = (
    "students fit these rather than photographs at large (on the six built-in ones 200 steps of a trial's own made "
    "shared weights up to 5.9 % worse in R-D loss, on 200 photographs 300 steps made them 0.2 to 3.7 % better)"
)
"""benchmarks/LOG.md, 2026-11-25."""


def lacking(studies: Iterable[Settings]) -> list[Order]:
    """Weights of zoo teachers (where no folder of weights is named) and sets of pictures that are not here."""
    orders: dict[str, Order | None] = {}
    for s in studies:
        for spec in s.teacher_spec.names if s.weights is None else ():
            orders[spec] = zoo_files.order_of(spec)
        for spec in (s.data, s.eval_data):
            one = picture_sets.named(spec)
            orders[f"pictures {spec}"] = None if one is None else picture_sets.order_of(one)
    return [order for order in orders.values() if order is not None]


def says_data(file: Path) -> bool:
    """Whether a study file says for every one of its studies which pictures are trained on."""
    table = read_table(file, DataError)
    each = table.get("each") or [{}]
    return "data" in table or all("data" in row for row in each)


def require_photographs(s: Settings) -> None:
    """Raise DataError where a zoo teacher is to be learned from on the built-in pictures, which nobody asked for."""
    if s.data == BUILTIN and zoo_qualities(s.teacher) is not None:
        raise DataError(
            f"teacher {s.teacher}: the built-in pictures ({BUILTIN_PHOTOGRAPHS} photographs, 48 synthetic ones) are "
            "too few to learn from it; give --data clic-train (`nas-kd fetch clic-train`) or a folder of "
            "photographs, or say --data builtin outright"
        )


def warn_of_few(s: Settings) -> None:
    """Warn where a zoo teacher, or pictures of one's own, come with fewer photographs to train on than FEW."""
    if s.data == BUILTIN and zoo_qualities(s.teacher) is None:
        return  # the demo, whose page says so
    count = BUILTIN_PHOTOGRAPHS
    if s.data != BUILTIN:
        count = len(below(picture_sets.folder_of(s.data), suffixes()).files)
    if count < FEW:
        logger.warning("--data %s: %d photographs to train on: %s", s.data, count, OF_FEW)
