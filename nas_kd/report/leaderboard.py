"""One table of many exported students: BD-rate on one set over one interval, compute, time, energy."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from nas_kd.codec.checkpoint import ARCH, load_student
from nas_kd.codec.cost import Cost, count
from nas_kd.data.images import ImageSet, open_images
from nas_kd.errors import StudyError, UsageError
from nas_kd.evaluation.bd_rate import MIN_POINTS, BDRate, Interval, RDCurve, bd_rate
from nas_kd.evaluation.classical import MIN_COMMON_DB, classical_curve
from nas_kd.evaluation.coding_cost import SIDES, coding_cost, student_codec
from nas_kd.evaluation.judged import heading
from nas_kd.evaluation.published import published, require_kodak, split_names
from nas_kd.evaluation.rate_distortion import Measured, evaluate_real
from nas_kd.measurement.codec_energy import ENERGY
from nas_kd.report.hub import RD

NO_ENERGY = {"value": None, "reason": "no energy was measured at its export", "device": None}


@dataclass(frozen=True)
class Entry:
    """A student: its points on the set, MACs, time and memory of a picture, energy and on which device."""

    folder: Path
    measured: Measured
    cost: Cost
    coding: dict[str, Any]
    energy: dict[str, Any]


@dataclass(frozen=True)
class Board:
    """Entries by BD-rate, the best first, against one anchor over the interval that all of them cover."""

    images: ImageSet
    anchor: str
    interval_db: Interval
    rows: list[tuple[Entry, BDRate]]


def leaderboard(folders: list[Path], data: str, versus: str) -> Board:
    """Students below the folders, on one set, against one codec.

    Raises:
        UsageError: no student, an unknown codec, a published one on other pictures, or no common interval.
    """
    homes, images = students_below(folders), open_images(data, "eval")
    anchor = _anchor(versus, images)
    entries = [_entry(home, images) for home in homes]
    interval = interval_of_all(anchor, {e.folder: e.measured.curve() for e in entries})
    rows = [(entry, bd_rate(anchor, entry.measured.curve(), interval)) for entry in entries]
    rows.sort(key=lambda row: (row[1].value is None, row[1].value or 0.0))
    return Board(images, versus, interval, rows)


def students_below(folders: list[Path]) -> list[Path]:
    """Folders of students: those given, and those directly in the ones given; each once."""
    found: dict[Path, Path] = {}
    for folder in folders:
        inside = sorted(p.parent for p in folder.glob(f"*/{ARCH}"))
        homes = [folder] if (folder / ARCH).is_file() else inside
        if not homes:
            raise UsageError(
                f"{folder}: no student in it or directly below it; give folders that `nas-kd export` wrote"
            )
        found |= {home.resolve(): home for home in homes if home.resolve() not in found}
    return list(found.values())


def _anchor(versus: str, images: ImageSet) -> RDCurve:
    measured_here, others = split_names(versus)
    if len(measured_here) + len(others) != 1:
        raise UsageError(f"--versus {versus}: name one codec; all students stand against it")
    require_kodak(images, others)
    return published()[versus].curve if others else classical_curve(versus, images)


def _entry(home: Path, images: ImageSet) -> Entry:
    student = load_student(home)
    measured = _kept(home, images) or evaluate_real(student, images)
    coding = coding_cost(student_codec(student), images)
    return Entry(home, measured, count(student), coding, _energy(home))


def _kept(home: Path, images: ImageSet) -> Measured | None:
    """The points that the export measured, where they are of these pictures and of these weights."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((home / RD).read_text())
        weights = json.loads((home / ARCH).read_text())["sha256"]
        measured = Measured.from_json(found["measured"])
        if (found["sha256"], measured.data_fingerprint) == (weights, images.fingerprint):
            return measured
    return None


def _energy(home: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((home / ENERGY).read_text())
        return found["trained_on_pictures"] | {"device": found.get("device")}
    return NO_ENERGY


def interval_of_all(anchor: RDCurve, curves: dict[Path, RDCurve]) -> Interval:
    """The PSNR that the anchor and all students cover, so that their BD-rates are of one and the same range.

    Students of too few levels for any BD-rate do not narrow it.
    """
    known = [c.psnr_db for c in curves.values() if len(c.psnr_db) >= MIN_POINTS]
    low = max(min(each) for each in [anchor.psnr_db, *known])
    high = min(max(each) for each in [anchor.psnr_db, *known])
    if high - low < MIN_COMMON_DB:
        each = {str(path): curve for path, curve in curves.items()} | {"the codec": anchor}
        said = ", ".join(
            f"{n} {min(c.psnr_db):.2f} to {max(c.psnr_db):.2f}" for n, c in each.items()
        )
        raise StudyError(
            f"less than {MIN_COMMON_DB:g} dB is covered by all ({said}): name fewer students, or another --versus"
        )
    return low, high


# ------------------------------------------------------------------ shown


def board_json(board: Board) -> dict[str, Any]:
    """Everything as JSON can hold it; an absent figure is null with its reason."""
    return {
        "set": board.images.name,
        "pictures": len(board.images),
        "data_fingerprint": board.images.fingerprint,
        "versus": board.anchor,
        "interval_db": list(board.interval_db),
        "students": [
            {
                "student": str(entry.folder),
                "bd_rate": rate.value,
                "reason": rate.reason,
                "cost": entry.cost.to_json(),
                "coding": entry.coding,
                "energy": entry.energy,
                "measured": entry.measured.to_json(),
            }
            for entry, rate in board.rows
        ],
    }


def board_table(board: Board) -> Table:
    """A row a student; a dash stands for what is absent, with its reason below."""
    low, high = board.interval_db
    title = f"{heading(board.images)}; {low:.2f} to {high:.2f} dB"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("student", overflow="fold")
    heads = (f"% vs\n{board.anchor}", "enc\nkMAC/px", "dec\nkMAC/px", "params\nM", "enc\nms")
    for head in (*heads, "dec\nms", "dec\nMB", "mJ per\nframe", "device"):
        table.add_column(head, justify="right")
    for entry, rate in board.rows:
        table.add_row(escape(str(entry.folder)), *_cells(entry, rate))
    table.caption = "\n".join(map(escape, _notes(board)))
    return table


def _cells(entry: Entry, rate: BDRate) -> list[str]:
    pixels = entry.cost.shape[2] * entry.cost.shape[3]
    sides = (entry.cost.encoder_macs, entry.cost.decoder_macs)
    coding = [entry.coding[name]["value"] for name in ("encode_ms", "decode_ms", "decode_peak_mb")]
    return [
        _or_dash(rate.value, "+.2f"),
        *(f"{macs / pixels / 1e3:.2f}" for macs in sides),
        f"{entry.cost.parameters / 1e6:.3f}",
        *(_or_dash(value, ".3g") for value in coding),
        _or_dash(entry.energy["value"], ".3g"),
        entry.energy["device"] or "-",
    ]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _notes(board: Board) -> list[str]:
    """Which picture was timed, and the reason for each dash."""
    first = board.rows[0][0].coding
    where = f"{first['width']}x{first['height']}, middle level, {first['threads']} threads of this machine"
    notes = [f"enc and dec ms, MB: {where}, whole files"]
    for entry, rate in board.rows:
        readings = {f"{side} ms": entry.coding[f"{side}_ms"] for side in SIDES}
        readings |= {"decode MB": entry.coding["decode_peak_mb"], "mJ": entry.energy}
        reasons = {
            name: found["reason"] for name, found in readings.items() if found["value"] is None
        }
        reasons |= {} if rate.reason is None else {"BD-rate": rate.reason}
        notes += [f"{entry.folder}, {name}: {reason}" for name, reason in reasons.items()]
    return notes
