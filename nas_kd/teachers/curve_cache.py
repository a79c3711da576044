"""A teacher's points on an evaluation set: measured once, kept on disk for all studies that ask the same."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from nas_kd.data.images import ImageSet
from nas_kd.errors import TeacherError, TrialFailed
from nas_kd.evaluation.rate_distortion import Measured, evaluate
from nas_kd.files import write_text
from nas_kd.measurement.device_lock import training_on
from nas_kd.teachers.teacher import Teacher

FORMAT = 1


def measured_once(
    cache: Path, teacher: Teacher, images: ImageSet, device: str = "cpu", similar: bool = False
) -> Measured:
    """The teacher's estimated rates and PSNR on the pictures: from ``cache``, or measured now and kept there.

    similar: MS-SSIM too.

    A file that is damaged, or of another teacher, set or format, is measured again, on ``device``.
    """
    asked = [FORMAT, teacher.fingerprint, list(teacher.lmbdas), images.fingerprint]
    asked += ["ms_ssim"] * similar
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    path = cache / f"{key}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text())
        if kept["of"] == asked and kept["sha256"] == _digest(kept["points"]):
            return Measured.from_json(kept["points"])
    try:
        with training_on(device):
            measured = evaluate(teacher.to(device), images, device, similar)
    except TrialFailed as failure:
        raise TeacherError(f"teacher {teacher.name}: {failure}; give another teacher") from failure
    teacher.to("cpu")
    points = json.loads(json.dumps(measured.to_json()))
    cache.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"of": asked, "sha256": _digest(points), "points": points}) + "\n")
    return measured


def _digest(points: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()
