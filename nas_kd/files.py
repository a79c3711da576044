"""Files and folders that appear whole or not at all, and are made once, whoever needs them first.

What is not whole yet lies beside its place under a hidden name; whoever lists a folder passes hidden names over
(`is_unfinished`). It is on disk before it gets its name, so that a power cut leaves the old or the new.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEPT_OF_NAME = 32
"""Characters of a file's name in its temporary one, which must not become too long; the suffix says the format."""


def write_text(path: Path, text: str, lasting: bool = True) -> None:
    """Write a file whole, as UTF-8; see `replacing`."""
    write_bytes(path, text.encode(), lasting)


def write_bytes(path: Path, data: bytes | memoryview, lasting: bool = True) -> None:
    """Write a file whole; see `replacing`."""
    with replacing(path, lasting) as temporary:
        # By Python, which says that a disk is full; the writers of some libraries do not.
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[Path]:
    """A name to write to: the file there takes the place of ``path``, or is removed where the block fails.

    Args:
        path: of the file; its folder must be there.
        lasting: whether it must outlive a power cut; waiting for the disk takes milliseconds.
    """
    temporary = _beside(path)
    try:
        yield temporary
        if lasting:
            _onto_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill: it takes the place of ``folder``, or is removed where the block fails."""
    temporary = _beside(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _onto_disk(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(4)}.{path.name[-KEPT_OF_NAME:]}")


def put_in_place(unfinished: Path, path: Path) -> None:
    """Give a file or folder that was written in parts its name, once all of it is on disk."""
    _onto_disk(unfinished)
    os.replace(unfinished, path)


def _onto_disk(written: Path) -> None:
    for path in (written, *written.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def is_unfinished(path: Path) -> bool:
    """Whether a name is hidden: of something that grows, is locked, or is for one machine alone."""
    return path.name.startswith(".")


def build_once(
    folder: Path, build: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.is_dir
) -> Path:
    """The folder: there already and whole, or built now under a hidden name and renamed.

    Args:
        folder: where it shall lie; whoever comes second waits, and finds what the first one made.
        build: fills the folder it is given, in which an earlier attempt may have left something.
        is_whole: whether what lies there can be used; it is built anew where not.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(folder)):
        if not is_whole(folder):
            unfinished = folder.with_name(f".{folder.name}")
            if folder.is_dir():
                shutil.rmtree(unfinished, ignore_errors=True)
                os.replace(folder, unfinished)
            unfinished.mkdir(exist_ok=True)
            build(unfinished)
            put_in_place(unfinished, folder)
    return folder


def lock_of(folder: Path) -> Path:
    """The file that is locked while a folder, under its own name or the hidden one, is built or deleted."""
    return folder.with_name(f"{folder.name.removeprefix('.')}.lock")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the others wait. The file is made where it is not there."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_still(path: Path, file: Any) -> bool:
    """Whether a path leads to the open file, which another process may have renamed or removed meanwhile."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
