"""What the pictures of a study's evaluation set add to its report: others' curves, and pictures coded to real files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from nas_kd.codec.bitstream import decode, encode
from nas_kd.codec.checkpoint import load_student
from nas_kd.codec.student import Student
from nas_kd.data.image_file import Image8
from nas_kd.data.images import ImageSet, open_images
from nas_kd.data.metrics import psnr_db
from nas_kd.errors import UsageError
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.evaluation.classical import beside, from_file, lacking, webp_of_size
from nas_kd.evaluation.published import is_kodak, shown
from nas_kd.report.crops import crops, data_uri, file_uri, spread, whole
from nas_kd.study.record import record
from nas_kd.study.settings import QUALITY
from nas_kd.study.study import Study

PICTURES, MEMBERS, LEVELS = 3, 5, 2
"""Crops in the page: 30 at most, some 2 MB."""
FRAMES = 2
"""Whole pictures in the page, each by the member that is best and by the one whose decoder is cheapest; some 3 MB."""


@dataclass(frozen=True)
class Seen:
    """What the pictures of the evaluation set add: baselines' curves and coded pictures.

    frames: which of the originals are whole pictures. published: others' curves, where the set is Kodak.
    """

    baselines: Mapping[str, RDCurve]
    originals: dict[str, str]
    shots: list[dict[str, Any]]
    missing: str | None = None
    published: dict[str, RDCurve] = field(default_factory=dict)
    frames: list[str] = field(default_factory=list)


def look(study: Study) -> Seen:
    """Baselines and reconstructions on the study's evaluation pictures, where they can still be read."""
    baselines = study.baselines
    try:
        images = open_images(study.settings.eval_data, "eval")
    except UsageError as error:
        return Seen(baselines, {}, [], f"The evaluation pictures cannot be read: {error}")
    if (differs := _other_pictures(study, images)) is not None:
        return Seen(baselines, {}, [], differs)
    baselines = baselines or beside(images)
    cut, frames = crops(images, PICTURES), whole(images, FRAMES)
    taken = _shots(study, cut, frames)
    missing = (
        None
        if taken
        else "No student of the front is stored any more, or no picture is large enough."
    )
    originals = {name: data_uri(image) for name, image in (cut | frames).items()}
    published = shown() if is_kodak(images) else {}
    return Seen(baselines, originals, taken, missing, published, list(frames))


def best_first(study: Study) -> list[FrozenTrial]:
    """The front by its quality, where one is an objective; else by the first."""
    names = study.settings.objectives
    place = next((i for i, name in enumerate(names) if name in QUALITY), 0)
    return sorted(study.front(), key=lambda trial: trial.values[place])


def _other_pictures(study: Study, images: ImageSet) -> str | None:
    judged = {rd.data_fingerprint for t in study.trials if (rd := record(t).rd) is not None}
    if judged - {images.fingerprint}:
        return (
            f"The pictures in {study.settings.eval_data} are not those that the study was judged by; "
            "baselines and reconstructions are left out."
        )
    return None


def _shots(study: Study, cut: dict[str, Image8], frames: dict[str, Image8]) -> list[dict[str, Any]]:
    """Crops by members over the whole front at the lowest level and a middle one, then whole pictures at that one."""
    front = [t for t in best_first(study) if _is_stored(study, t)]
    taken = []
    for trial in [front[i - 1] for i in spread(len(front), MEMBERS)] if front else []:
        student = load_student(study.student_folder(trial))
        wanted = [1, *spread(student.levels, 3)[1:-1]][:LEVELS]
        taken += [_shot(trial, student, *one, level) for one in cut.items() for level in wanted]
    for trial in _best_and_cheapest(front):
        student = load_student(study.student_folder(trial))
        middle = [1, *spread(student.levels, 3)[1:-1]][-1]
        taken += [_shot(trial, student, *one, middle) for one in frames.items()]
    return taken


def _is_stored(study: Study, trial: FrozenTrial) -> bool:
    return (study.student_folder(trial) / "student.safetensors").is_file()


def _best_and_cheapest(front: list[FrozenTrial]) -> list[FrozenTrial]:
    if not front:
        return []
    cheapest = min(front, key=_decoder_macs)
    return [front[0]] + [cheapest] * (cheapest is not front[0])


def _decoder_macs(trial: FrozenTrial) -> int:
    cost = record(trial).cost
    assert cost is not None  # of every trial on a front
    return cost.decoder_macs


def _shot(
    trial: FrozenTrial, student: Student, name: str, original: Image8, level: int
) -> dict[str, Any]:
    """A picture coded to a file and back, and WebP's of as many bytes."""
    data = encode(student, original, level)
    restored = decode(student, data)
    about = {"trial": trial.number, "picture": name, "level": level, "uri": data_uri(restored)}
    webp = None if lacking("webp") else webp_of_size(original, len(data))
    return about | {
        "said": _said(data, restored, original),
        "webp": webp and {"uri": file_uri(webp), "said": _said(webp, from_file(webp), original)},
    }


def _said(data: bytes, restored: Image8, original: Image8) -> str:
    bpp = 8 * len(data) / (original.shape[0] * original.shape[1])
    return f"{len(data):,} bytes ({bpp:.3f} bpp), {psnr_db(restored, original):.2f} dB"
