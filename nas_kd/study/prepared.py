"""What a worker needs to run a study's trials, as a record that travels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas_kd.data.picture_sets import named
from nas_kd.places import BUILTIN
from nas_kd.study.anchor import Anchor
from nas_kd.study.settings import Settings
from nas_kd.teachers.lessons import reads_pictures


@dataclass(frozen=True)
class WayHome:
    """How workers find the driver's files: the word in its students' folder, and who hands files out."""

    word: str
    actor: str


@dataclass(frozen=True)
class Prepared:
    """What a worker needs to run a study's trials. All its paths are absolute: a worker has a folder of its own.

    Args:
        settings: of the study, those that name what a trial opens as absolute paths (``in_full``).
        lmbdas: of the students' levels.
        pool: the folder of the teacher's outputs, or of the teacher and what its crops are drawn from.
        shared: the folder of what students start from slices of, if anything.
        anchor: what they are compared with.
        students: the folder of their own folders.
        home: the way to the files, where workers may not share the driver's disk.
        large: the folder of the teacher's outputs on larger crops, where a polish ends on such.
    """

    settings: Settings
    lmbdas: tuple[float, ...]
    pool: Path
    shared: Path | None
    anchor: Anchor
    students: Path
    home: WayHome | None = None
    large: Path | None = None

    @property
    def lent(self) -> list[Path]:
        """The files and folders that a trial reads."""
        keys = read_by_trials(self.settings)
        if reads_pictures(self.pool) and _in_a_folder(self.settings.data):
            keys.append("data")
        said = [Path(getattr(self.settings, key)) for key in keys]
        return [self.pool, *(path for path in (self.shared, self.large) if path), *said]

    def moved(self, copied: Mapping[Path, Path], students: Path) -> Prepared:
        """The same by copies of what is ``lent``, with another folder of students."""
        keys = read_by_trials(self.settings)
        if Path(self.settings.data) in copied:
            keys.append("data")
        paths = {key: str(copied[Path(getattr(self.settings, key))]) for key in keys}
        return replace(
            self,
            settings=_reading(self.settings, paths),
            pool=copied[self.pool],
            shared=None if self.shared is None else copied[self.shared],
            large=None if self.large is None else copied[self.large],
            students=students,
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "settings": self.settings.to_json(),
            "lmbdas": list(self.lmbdas),
            "pool": str(self.pool),
            "shared": self.shared and str(self.shared),
            "anchor": self.anchor.to_json(),
            "students": str(self.students),
            "large": self.large and str(self.large),
            "home": self.home and {"word": self.home.word, "actor": self.home.actor},
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Prepared:
        """What ``to_json`` returned, read back."""
        shared, home, large = given["shared"], given["home"], given["large"]
        return cls(
            Settings(**given["settings"]),
            tuple(given["lmbdas"]),
            Path(given["pool"]),
            None if shared is None else Path(shared),
            Anchor.from_json(given["anchor"]),
            Path(given["students"]),
            None if home is None else WayHome(**home),
            None if large is None else Path(large),
        )


def read_by_trials(settings: Settings) -> list[str]:
    """The settings that name a file or a folder which a trial opens."""
    pictures, space = _in_a_folder(settings.eval_data), settings.space.endswith(".toml")
    return [*(["eval_data"] if pictures else []), *(["space"] if space else [])]


def _in_a_folder(pictures: str) -> bool:
    return pictures != BUILTIN and named(pictures) is None


def in_full(settings: Settings) -> Settings:
    """The settings with absolute paths of what a trial opens."""
    keys = [*read_by_trials(settings), *(["data"] if _in_a_folder(settings.data) else [])]
    full = {key: str(Path(getattr(settings, key)).expanduser().absolute()) for key in keys}
    return _reading(settings, full)


def _reading(settings: Settings, paths: Mapping[str, str]) -> Settings:
    """The settings with other paths of what a trial opens."""
    return replace(
        settings,
        space=paths.get("space", settings.space),
        eval_data=paths.get("eval_data", settings.eval_data),
        data=paths.get("data", settings.data),
    )
