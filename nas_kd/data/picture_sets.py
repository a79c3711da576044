"""Sets of pictures by name: fetched, unpacked and checked once, for all studies of this user.

A set is a folder below the cache, whole or not there::

    pictures/kodak/kodim01.png ...    what is in the set
    pictures/kodak/set.json           its name and the bytes of each file
    pictures/.kodak/                  what is being fetched

Which sets there are is said by ``assets/picture_sets.toml`` and by the user's own ``picture_sets.toml``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nas_kd.data.download import Wanted, in_mb
from nas_kd.data.fetch import Order
from nas_kd.data.image_file import suffixes
from nas_kd.errors import DataError, NasKdError
from nas_kd.files import locked, put_in_place
from nas_kd.places import ASSETS, user_cache

OURS = ASSETS / "picture_sets.toml"
MANIFEST = "set.json"
ARCHIVE = ".zip"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
KEYS = {"title", "licence", "about", "pictures", "mirrors", "files", "unpacked_bytes"}
FILE_KEYS = {"file", "bytes", "sha256"}


@dataclass(frozen=True)
class PictureSet:
    """A set that can be fetched; the keys are explained in ``assets/picture_sets.toml``."""

    name: str
    mirrors: tuple[str, ...]
    files: tuple[dict[str, Any], ...]
    title: str = ""
    licence: str = ""
    pictures: int | None = None
    unpacked_bytes: int = 0

    @property
    def size(self) -> int | None:
        """Bytes of all files, where they are known."""
        if not all("bytes" in file for file in self.files):
            return None
        return sum(file["bytes"] for file in self.files)

    @property
    def in_words(self) -> str:
        """Pictures, size and licence."""
        count = f"{self.pictures} pictures, " if self.pictures else ""
        return f"{count}{in_mb(self.size)}, {self.licence or 'licence unknown'}"


def home() -> Path:
    """Where sets lie: beside the energy readings of this user."""
    return user_cache() / "pictures"


def own_file() -> Path:
    """Where a user's own sets are described."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base else Path.home() / ".config") / "nas-kd" / "picture_sets.toml"


def known() -> dict[str, PictureSet]:
    """All sets by name: ours, and the user's, whose keys replace ours and whose mirrors come first.

    Raises DataError where the user's file breaks a rule.
    """
    tables = _tables(OURS)
    own = own_file()
    for name, table in (_tables(own) if own.is_file() else {}).items():
        ours = tables.get(name, {})
        mirrors = [*table.get("mirrors", []), *ours.get("mirrors", [])]
        tables[name] = ours | table | {"mirrors": mirrors}
    return {name: _checked(name, table, own) for name, table in tables.items()}


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    try:
        read = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); mend it or delete it") from error
    for name, table in read.items():
        if not isinstance(table, dict) or not NAME.fullmatch(name):
            raise DataError(
                f"{path}: {name!r} is no set: a set is a table with a name in lower case"
            )
        if unknown := sorted(set(table) - KEYS):
            raise DataError(
                f"{path}: {name} has the key {unknown[0]!r}; there are {', '.join(sorted(KEYS))}"
            )
    return read


def _checked(name: str, table: dict[str, Any], path: Path) -> PictureSet:
    mirrors, files = table.get("mirrors", []), table.get("files", [])
    if not mirrors or not all(re.match(r"https?://", str(m)) for m in mirrors):
        raise DataError(
            f"{path}: {name} needs mirrors, addresses that begin with https:// or http://"
        )
    good = [isinstance(f, dict) and "file" in f and not set(f) - FILE_KEYS for f in files]
    if not files or not all(good) or not all(_can_serve(str(f["file"])) for f in files):
        raise DataError(
            f'{path}: {name} needs files, such as [{{file = "pictures.zip"}}]: a .zip or a picture\'s file each, '
            "with its bytes and sha256 where they are known"
        )
    texts = {key: str(table.get(key, "")) for key in ("title", "licence")}
    numbers = (table.get("pictures"), table.get("unpacked_bytes", 0))
    return PictureSet(
        name, tuple(mirrors), tuple(files), **texts, pictures=numbers[0], unpacked_bytes=numbers[1]
    )


def _can_serve(file: str) -> bool:
    plain = Path(file).name == file and not file.startswith(".")
    return plain and Path(file).suffix.lower() in {ARCHIVE, *suffixes()}


def named(spec: str) -> PictureSet | None:
    """The set that ``--data`` names; a folder of that name comes first."""
    return None if not spec or os.path.exists(spec) else known().get(spec)


def folder_of(spec: str) -> Path:
    """Where the pictures of ``--data`` lie: a set's folder, there or not yet, or the folder that was named."""
    one = named(spec)
    return Path(spec).expanduser() if one is None else home() / one.name


def is_there(one: PictureSet, place: Path | None = None) -> bool:
    """Whether the set is on this machine, all its files as long as they were."""
    folder = (home() if place is None else place) / one.name
    sizes = _noted(folder)
    return bool(sizes) and all(_size(folder / file) == size for file, size in sizes.items())


def fetched() -> list[tuple[Path, dict[str, int]]]:
    """Folders of the sets that are here, and the bytes of each file."""
    folders = sorted(home().glob("[!.]*")) if home().is_dir() else []
    return [(folder, sizes) for folder in folders if (sizes := _noted(folder))]


def _noted(folder: Path) -> dict[str, int]:
    """Bytes of each file when the set was fetched; {} where it was not."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return dict(json.loads((folder / MANIFEST).read_text())["files"])
    return {}


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def order_of(one: PictureSet, place: Path | None = None) -> Order | None:
    """What is lacking of a set, which is to lie in ``place``; None where it is there."""
    place = home() if place is None else place
    if is_there(one, place):
        return None
    growing = place / f".{one.name}"
    files = tuple(_wanted(one, file, growing) for file in one.files)
    return Order(
        f"pictures {one.name}",
        one.name,
        files,
        place / one.name,
        f"licence: {one.licence or 'unknown'}",
        carried=f"--data DIR/{one.name}",
        refusal=DataError,
        unpacked_size=one.unpacked_bytes,
        finish=partial(_finish, one, growing, place / one.name),
    )


def _wanted(one: PictureSet, file: dict[str, Any], folder: Path) -> Wanted:
    name, size = file["file"], file.get("bytes")
    number = "".join(re.findall(r"\d", name))
    addresses = tuple(m.replace("{file}", name).replace("{number}", number) for m in one.mirrors)
    return Wanted(folder / name, addresses, file.get("sha256", ""), size, exact=size is not None)


# --- unpacked -------------------------------------------------------------------------------------------


def _finish(one: PictureSet, growing: Path, folder: Path) -> None:
    """Unpack what was fetched, note the sizes, and put the whole in place by one rename."""
    with locked(growing.with_name(f".{one.name}.lock")):
        if is_there(one, folder.parent):
            return
        try:
            made = _unpacked(one, growing)
            sizes = _sizes(made)
            if not sizes:
                raise NasKdError(
                    f"pictures {one.name}: no picture in what was fetched; tell its publisher"
                )
            (made / MANIFEST).write_text(json.dumps({"name": one.name, "files": sizes}) + "\n")
            shutil.rmtree(folder, ignore_errors=True)  # what is there is not whole
            put_in_place(made, folder)
            shutil.rmtree(growing, ignore_errors=True)
        except OSError as error:
            raise NasKdError(
                f"pictures {one.name}: cannot be unpacked into {folder} ({error.strerror or error}); free some "
                "room and run the same command again"
            ) from error


def _unpacked(one: PictureSet, growing: Path) -> Path:
    """A folder with all pictures, those of archives taken out."""
    made = growing / "unpacked"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        for file in one.files:
            source = growing / file["file"]
            if source.suffix.lower() == ARCHIVE:
                _extract(source, made)
            else:
                _put(source, made / source.name)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return made


def _put(source: Path, target: Path) -> None:
    """The same file under a second name, so that nothing is lost where the work is cut short."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _extract(archive: Path, folder: Path) -> None:
    """The pictures of an archive; zipfile keeps every path inside of the folder and checks every CRC."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                if _is_picture(member.filename):
                    opened.extract(member, folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        archive.unlink(missing_ok=True)
        raise NasKdError(
            f"{archive.name} cannot be unpacked ({error}); it was thrown away, run the same command again"
        ) from error


def _is_picture(member: str) -> bool:
    path = Path(member)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and path.suffix.lower() in suffixes()


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
