"""How much a search does where nobody says it in numbers: a file of settings for each effort, readable in assets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas_kd.errors import StudyError, UsageError
from nas_kd.measurement.meters import likely_device
from nas_kd.places import ASSETS
from nas_kd.teachers.served import zoo_qualities
from nas_kd.toml_file import read_table

EFFORTS = ("quick", "hour", "night")
BY_DEVICE = {"cpu": "quick", "cuda": "night"}


def default_effort(teacher: str) -> str | None:
    """By this machine's device for a teacher of the zoo; none for others, whose searches have the schema's defaults."""
    return None if zoo_qualities(teacher) is None else BY_DEVICE[likely_device()]


def file_of(effort: str) -> Path:
    """Where the settings of an effort stand. Raises UsageError where there is no such effort."""
    if effort not in EFFORTS:
        raise UsageError(f"--effort {effort}: must be one of {', '.join(EFFORTS)}")
    return ASSETS / "efforts" / f"{effort}.toml"


def settings_of(effort: str | None) -> dict[str, Any]:
    """What an effort sets; nothing where there is none."""
    return {} if effort is None else read_table(file_of(effort), StudyError)
