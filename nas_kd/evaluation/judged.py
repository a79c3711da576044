"""A student judged on one set of pictures or several: points, BD-rates against others, what coding takes."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from nas_kd.codec.student import Student
from nas_kd.data.images import ImageSet, open_images
from nas_kd.data.similarity import in_db
from nas_kd.data.similarity import in_words as similarity_in_words
from nas_kd.errors import UsageError
from nas_kd.evaluation.classical import compare, lacking
from nas_kd.evaluation.classical import in_words as rate_in_words
from nas_kd.evaluation.coding_cost import classical_codec, coding_cost, student_codec
from nas_kd.evaluation.coding_cost import in_words as cost_in_words
from nas_kd.evaluation.published import against_published, is_kodak, require_kodak, split_names
from nas_kd.evaluation.rate_distortion import Codec, Measured, evaluate, evaluate_real

STUDENT = "student"
KINDS = {"bpp_est": " (its rates are estimates)", "unknown": " (its kind of rates is not known)"}
"""Of published curves; real bitstreams need no word."""


@dataclass(frozen=True)
class OnSet:
    """A student on one set: its points, and BD-rates by the name of what it is compared with."""

    images: ImageSet
    measured: Measured
    versus: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Points, per picture too, and BD-rates where they were asked for."""
        described = self.measured.to_json() | {"left_out": self.images.skipped}
        return described | ({"versus": self.versus} if self.versus else {})


@dataclass(frozen=True)
class Judged:
    """A student on all sets by name; ``coding`` has what a picture takes, of the student and of classical codecs."""

    sets: dict[str, OnSet]
    coding: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One set as it is; several under ``sets``."""
        each = {name: one.to_json() for name, one in self.sets.items()}
        points = next(iter(each.values())) if len(each) == 1 else {"sets": each}
        return points | {"coding": self.coding}


def open_sets(spec: str) -> dict[str, ImageSet]:
    """The sets that are named by comma; a folder may have one in its name.

    Raises:
        UsageError: a set named twice, or one that cannot be opened.
    """
    names = [spec] if Path(spec).is_dir() else [name.strip() for name in spec.split(",")]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--data {spec}: {repeated[0]} is named twice; name each set once")
    return {name: open_images(name, "eval") for name in names}


def judge(codec: Student | Codec, sets: dict[str, ImageSet], versus: str) -> Judged:
    """A student's real bitstreams on every set, then the cost of coding on the first one's largest picture.

    Of other codecs rates are estimated, and coding is not timed: some take seconds a picture.

    Raises:
        UsageError: ``versus`` names an unknown codec, or a published curve where no set is Kodak; before any work.
    """
    measured_here, published = split_names(versus)
    proved = _proved(sets, published)
    found = {
        name: _on_set(codec, images, measured_here, published, name in proved)
        for name, images in sets.items()
    }
    first = next(iter(sets.values()))
    codecs = {STUDENT: student_codec(codec)} if isinstance(codec, Student) else {}
    codecs |= {name: classical_codec(name) for name in measured_here if lacking(name) is None}
    return Judged(found, {name: coding_cost(codec, first) for name, codec in codecs.items()})


def _proved(sets: dict[str, ImageSet], published: list[str]) -> set[str]:
    """Which sets are Kodak, where that matters; raises the last set's reason where none is."""
    if not published:
        return set()
    proved = {name for name, images in sets.items() if is_kodak(images)}
    if not proved:
        require_kodak(list(sets.values())[-1], published)
    return proved


def _on_set(
    codec: Student | Codec,
    images: ImageSet,
    measured_here: list[str],
    published: list[str],
    kodak: bool,
) -> OnSet:
    real = isinstance(codec, Student)
    measured = evaluate_real(codec, images) if real else evaluate(codec, images)  # type: ignore[arg-type]
    curve = measured.curve()
    versus = {name: compare(name, images, curve) for name in measured_here}
    for name in published:
        versus[name] = (
            against_published(name, curve)
            if kodak
            else {"bd_rate": None, "reason": "published on Kodak's pictures, and these are others"}
        )
    return OnSet(images, measured, versus)


# ------------------------------------------------------------------ for people


def in_lines(judged: Judged) -> list[str]:
    """One set's points and BD-rates, and what coding takes, one finding a line."""
    (one,) = judged.sets.values()
    return [f"{heading(one.images)}", *_levels(one.measured), *_versus(one), *_coding(judged)]


def heading(images: ImageSet) -> str:
    """The set, how many pictures it has and how many were left out."""
    left_out = f", {images.skipped} left out" if images.skipped else ""
    return f"{images.name}: {len(images)} picture{'s' * (len(images) != 1)}{left_out}"


def _levels(measured: Measured) -> list[str]:
    curve = measured.curve()
    points = zip(curve.bpp, curve.psnr_db, measured.mean_ms_ssim(), strict=True)
    unit = "bpp" if measured.kind == "bpp" else "bpp, estimated"
    return [
        f"level {level}: {rate:.4f} {unit}, {quality:.2f} dB, MS-SSIM {similarity_in_words(similar)}"
        for level, (rate, quality, similar) in enumerate(points, start=1)
    ]


def _versus(one: OnSet) -> list[str]:
    return [f"BD-rate against {name}: {_percent(found)}" for name, found in one.versus.items()]


def _percent(found: dict[str, Any]) -> str:
    return rate_in_words(found) + KINDS.get(found.get("rate", ""), "")


def _coding(judged: Judged) -> list[str]:
    return [f"coding, {name}: {cost_in_words(cost)}" for name, cost in judged.coding.items()]


def in_table(judged: Judged) -> Table:
    """Several sets side by side: a row a level, then a row for each BD-rate."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for one in judged.sets.values():
        for head in ("bpp", "dB", "MS-SSIM dB"):
            table.add_column(f"{heading(one.images)}\n{head}" if head == "bpp" else head)
    columns = [_columns(one.measured) for one in judged.sets.values()]
    levels = len(columns[0])
    for level in range(levels):
        table.add_row(f"level {level + 1}", *[cell for one in columns for cell in one[level]])
    for name in next(iter(judged.sets.values())).versus:
        found = [one.versus[name] for one in judged.sets.values()]
        table.add_row(f"% vs {name}", *[cell for one in found for cell in _cells(one)])
    return table


def _columns(measured: Measured) -> list[list[str]]:
    curve = measured.curve()
    raised = [in_db(similar) for similar in measured.mean_ms_ssim()]
    return [
        [f"{rate:.4f}", f"{quality:.2f}", "-" if db is None else f"{db:.2f}"]
        for rate, quality, db in zip(curve.bpp, curve.psnr_db, raised, strict=True)
    ]


def _cells(found: dict[str, Any]) -> list[str]:
    value = found["bd_rate"]
    return ["-" if value is None else f"{value:+.2f}", "", ""]


def absences(judged: Judged) -> list[str]:
    """Why BD-rates are absent that a table shows as a dash, and what coding takes."""
    missing = [
        f"{name}, {other}: {_percent(found)}"
        for name, one in judged.sets.items()
        for other, found in one.versus.items()
        if found["bd_rate"] is None
    ]
    return [*missing, *_coding(judged)]


# ------------------------------------------------------------------ for other programs

COLUMNS = ("set", "picture", "level", "bpp", "psnr_db", "ms_ssim", "ms_ssim_db")


def as_csv(judged: Judged) -> str:
    """A row for each set, picture and level; an absent figure is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, one in judged.sets.items():
        writer.writerows([name, *row] for row in _rows(one.measured))
    return text.getvalue()


def _rows(measured: Measured) -> list[list[Any]]:
    similar = measured.ms_ssim or [[None] * len(measured.images) for _ in measured.rate]
    return [
        [picture, level, rates[i], qualities[i], alike[i], in_db(alike[i])]
        for i, picture in enumerate(measured.images)
        for level, (rates, qualities, alike) in enumerate(
            zip(measured.rate, measured.psnr_db, similar, strict=True), start=1
        )
    ]
