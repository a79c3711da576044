"""Files between machines that share no disk: workers fetch what a study needs and bring home what they made.

`Home` stands on the machine of the study's driver and touches its files; `Away` stands on any other and asks it.
They meet through a function that calls a method of `Home` by name, so that nothing here knows how.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nas_kd.errors import DataError, NasKdError
from nas_kd.files import is_unfinished, locked, put_in_place, replacing
from nas_kd.study.prepared import Prepared

CHUNK_BYTES = 2**25
"""Of a file at a time, so that no machine holds a whole one in memory."""
MARK = ".home"
"""In the students' folder: a machine that reads the study's own word there shares its disk."""

Call = Callable[..., Any]


class Home:
    """The files of a study, where its driver is.

    Args:
        students: the folder that takes what workers bring; nothing is written elsewhere.
        lends: folders and files that may be read, with all below them.
    """

    def __init__(self, students: Path, lends: list[Path]):
        self._students = students.resolve()
        self._lends = [self._students, *(path.resolve() for path in lends)]

    def names(self, place: str) -> list[str]:
        """The files of a folder, relative to it; a single file is named by the empty string."""
        path = self._lent(place)
        if path.is_file():
            return [""]
        files = (p for p in path.rglob("*") if p.is_file() and not is_unfinished(p))
        return sorted(str(p.relative_to(path)) for p in files)

    def read(self, place: str, name: str, at: int) -> bytes:
        """The next part of a file from byte ``at``; empty at its end."""
        path = self._lent(place) / name if name else self._lent(place)
        with open(self._lent(str(path)), "rb") as file:
            file.seek(at)
            return file.read(CHUNK_BYTES)

    def keep(self, arch_key: str, name: str, part: bytes, first: bool, last: bool) -> None:
        """Take a part of a student's file; with the last one it appears under its name."""
        folder = (self._students / arch_key).resolve()
        if folder.parent != self._students or Path(name).name != name:
            raise NasKdError(f"{arch_key}/{name}: is not a file of a student of this study")
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{name}.brought"
        with open(unfinished, "wb" if first else "ab") as file:
            file.write(part)
        if last:
            put_in_place(unfinished, folder / name)

    def _lent(self, place: str) -> Path:
        path = Path(place).resolve()
        if not any(path == lent or lent in path.parents for lent in self._lends):
            raise NasKdError(f"{place}: is not a file of this study")
        return path


class Away:
    """A machine without the driver's disk: its own copies, and the way home.

    Args:
        call: calls a method of `Home` by its name, with arguments, and returns what it returns.
        root: where the copies lie; copies that are there already are used.
    """

    def __init__(self, call: Call, root: Path):
        self._call, self._root = call, root
        self._brought: dict[Path, int] = {}

    def settle(self, prepared: Prepared) -> Prepared:
        """What trials need, with every path replaced by that of a copy here."""
        self._root.mkdir(parents=True, exist_ok=True)
        with locked(self._root / ".lock"):  # workers of one machine share the copies
            copied = {source: self._copy(source) for source in prepared.lent}
        students = self._root / "students"
        students.mkdir(exist_ok=True)
        return prepared.moved(copied, students)

    def _copy(self, source: Path) -> Path:
        target = self._root / "copies" / source.relative_to(source.anchor)
        if target.exists():
            return target
        unfinished = target.with_name(f".{target.name}.unfinished")
        for name in self._call("names", str(source)):
            self._fetch(str(source), name, unfinished / name if name else unfinished)
        if not unfinished.exists():
            raise DataError(f"{source}: holds no file on the machine of the search")
        put_in_place(unfinished, target)
        return target

    def _fetch(self, place: str, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            while part := self._call("read", place, name, file.tell()):
                file.write(part)

    def resume(self, arch_key: str, students: Path, name: str) -> None:
        """Fetch a file of a student that an earlier worker brought home, if there is one."""
        target = self._root / "students" / arch_key / name
        with suppress(FileNotFoundError):
            with replacing(target, lasting=False) as temporary:
                self._fetch(f"{students}/{arch_key}", name, temporary)
            self._brought[target] = target.stat().st_mtime_ns

    def bring(self, folder: Path) -> None:
        """Bring home what is new in a student's folder since the last time."""
        for path in sorted(p for p in folder.glob("*") if p.is_file() and not is_unfinished(p)):
            changed = path.stat().st_mtime_ns
            if self._brought.get(path) != changed:
                self._send(folder.name, path)
                self._brought[path] = changed

    def _send(self, arch_key: str, path: Path) -> None:
        with open(path, "rb") as file:
            part, first = file.read(CHUNK_BYTES), True
            while True:
                following = file.read(CHUNK_BYTES)
                self._call("keep", arch_key, path.name, part, first, not following)
                if not following:
                    return
                part, first = following, False


def mark(students: Path) -> str:
    """Leave a word in the students' folder by which others know that they share this disk."""
    students.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), open(students / MARK, "x") as file:
        file.write(secrets.token_hex(8))
    return (students / MARK).read_text()


def shares_disk(students: Path, word: str) -> bool:
    """Whether the word that the driver left is readable here."""
    try:
        return (students / MARK).read_text() == word
    except OSError:
        return False


def root_of(word: str) -> Path:
    """Where a machine away keeps the copies of a search."""
    return Path(tempfile.gettempdir()) / f"nas-kd-{word}"
