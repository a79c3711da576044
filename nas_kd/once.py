"""Folders that are made once, whoever needs them first, and appear whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


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
    with open(lock_of(folder), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole(folder):
            unfinished = folder.with_name(f".{folder.name}")
            if folder.is_dir():
                shutil.rmtree(unfinished, ignore_errors=True)
                os.replace(folder, unfinished)
            unfinished.mkdir(exist_ok=True)
            build(unfinished)
            os.replace(unfinished, folder)
    return folder


def lock_of(folder: Path) -> Path:
    """The file that is locked while a folder, under its own name or the hidden one, is built or deleted."""
    return folder.with_name(f"{folder.name.removeprefix('.')}.lock")
