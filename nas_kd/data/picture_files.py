"""Pictures and compressed files on disk, in folders and in pipes; nothing is lost on the way."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from PIL import Image, UnidentifiedImageError

from nas_kd.data.image_file import MAX_PIXELS, Image8, in_srgb, opened
from nas_kd.errors import DataError, NasKdError, UsageError
from nas_kd.files import write_bytes as write_whole

logger = logging.getLogger("nas_kd")

PIPE = "-"
SUFFIX = ".nkd"
UNUSABLE = "%s: its colour profile cannot be used (%s); its colours are taken as sRGB"


def read_picture(data: bytes, name: str) -> Image8:
    """The pixels of a picture's file: uint8 [H, W, 3], or [H, W] of a grey one.

    Turned as its EXIF data says, its colours in sRGB. Of what a camera puts together (MPO) the first
    is the picture, others are previews and views of it. Raises DataError for what the codec cannot keep: transparency,
    more than 8 bits, several frames.
    """
    try:
        picture, unusable = in_srgb(opened(data, lambda file: _check(file, name)))
        if unusable is not None:
            logger.warning(UNUSABLE, name, unusable)
        return _pixels(picture, name)
    except NasKdError:
        raise
    except UnidentifiedImageError as error:  # its own words name an object in memory
        raise DataError(
            f"{name}: cannot be read as a picture (its {len(data)} bytes are in no format known here); "
            "give a PNG, JPEG or WebP file"
        ) from error
    except Exception as error:  # Pillow's plugins raise many kinds
        raise DataError(
            f"{name}: cannot be read as a picture ({error}); give a PNG, JPEG or WebP file"
        ) from error


def _check(file: Image.Image, name: str) -> None:
    if (stored := _deep(file)) is not None:
        raise DataError(
            f"{name}: has over 8 bits a channel ({stored}), which would be lost; convert it first"
        )
    if file.format != "MPO" and getattr(file, "n_frames", 1) > 1:
        raise DataError(f"{name}: has {file.n_frames} frames; give one picture")  # type: ignore[attr-defined]
    if file.width * file.height > MAX_PIXELS:
        raise DataError(
            f"{name}: has {file.height}x{file.width} pixels, over {MAX_PIXELS}; cut it up or reduce it"
        )


def _deep(file: Image.Image) -> str | None:
    """How a picture of over 8 bits a channel is stored; Pillow halves those of colour without a word."""
    if file.mode == "F" or file.mode.startswith("I"):
        return file.mode
    for tile in getattr(file, "tile", ()):
        parts = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        # By the name of the samples (PNG, TIFF), or by the largest of them (PPM).
        named = any(";16" in part for part in parts if isinstance(part, str))
        if named or (tile[0].startswith("ppm") and parts[-1] > 255):
            return f"{tile[0]} {tile[3]}"
    return None


def _pixels(picture: Image.Image, name: str) -> Image8:
    import numpy as np

    if "A" in picture.getbands() or "transparency" in picture.info:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        if alpha.min() < 255:
            raise DataError(
                f"{name}: is transparent in places, which is not kept; flatten it first"
            )
    grey = picture.mode in ("1", "L", "LA")
    return np.array(picture.convert("L" if grey else "RGB"))


def png(image: Image8) -> bytes:
    """A PNG file of uint8 [H, W, 3] or [H, W]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def read_bytes(path: Path) -> bytes:
    """A file, or standard input for ``-``."""
    if str(path) == PIPE:
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a file") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; straight into ``-`` (standard output), devices and pipes."""
    if str(path) == PIPE:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        if _is_stream(path):
            path.write_bytes(data)
        else:
            write_whole(path, data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); give another") from error


def _is_stream(path: Path) -> bool:
    """Whether something is there that is neither file nor folder, which a rename would destroy."""
    return os.path.exists(path) and not (path.is_file() or path.is_dir())


def require_writable(path: Path, what: str, folder: bool = False) -> None:
    """Raise UsageError where ``path`` cannot be written; asked before the work, it leaves nothing.

    Args:
        path: of a file, whose folder must be there, or of a folder, which may be still to be made.
        what: the option or argument that named it, for the message.
        folder: whether it is to be a folder.
    """
    if os.path.exists(path) and os.path.isdir(path) != folder:
        found, wanted = ("file", "folder") if folder else ("folder", "file")
        raise UsageError(f"{what} {path}: is a {found}; give the name of a {wanted}")
    home = _first_there(path) if folder else path.absolute().parent
    try:
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # fails where the name itself cannot be
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise UsageError(
            f"{what} {path}: cannot be written ({home}: {error.strerror}); give another place"
        ) from error


def _first_there(path: Path) -> Path:
    """The path itself or the nearest above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.exists(p))


# --- folders ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Below:
    """Files of a folder in order of relative path, and by relative path why others were left out."""

    files: tuple[Path, ...]
    left_out: dict[str, str]


def below(root: Path, suffixes: Collection[str], unread: Collection[str] = ()) -> Below:
    """The files with one of the suffixes in a folder and all folders below it, linked ones too.

    A folder counts once, wherever links lead. Not counted, left out or not: hidden folders, and what
    macOS leaves beside files (``._*``).

    Args:
        root: the folder.
        suffixes: of the files that are wanted, in lower case.
        unread: of files to be named among those left out.
    """
    files, left_out = [], {}
    for path in _files_of(root):
        name, suffix = path.relative_to(root).as_posix(), path.suffix.lower()
        if not os.path.exists(path):
            left_out[name] = "a link that leads nowhere"
        elif suffix in suffixes and path.name.startswith("."):
            left_out[name] = "hidden"
        elif suffix in suffixes and path.is_file():
            files.append(path)
        elif suffix in unread:
            left_out[name] = f"in a format that is not read ({suffix})"
    return Below(tuple(sorted(files, key=lambda p: p.relative_to(root).as_posix())), left_out)


def told_left_out(left_out: dict[str, str]) -> str:
    """How many were left out, why, and which was the first."""
    reasons = ", ".join(f"{n} {why}" for why, n in sorted(Counter(left_out.values()).items()))
    return f"{len(left_out)} left out: {reasons}; the first is {next(iter(left_out))}"


def _files_of(root: Path) -> Iterator[Path]:
    """Files of visible folders, in no order; what links lead to comes after what is there itself."""
    places, seen = [root], set[tuple[int, int]]()
    while places:
        start = places.pop(0)
        if _identity(start) in seen:
            continue
        for folder, inner, names in os.walk(start, onerror=_refuse):
            seen.add(_identity(Path(folder)))
            visible = [Path(folder, name) for name in sorted(inner) if not name.startswith(".")]
            places += [path for path in visible if path.is_symlink()]
            inner[:] = [p.name for p in visible if not p.is_symlink() and _identity(p) not in seen]
            yield from (Path(folder, name) for name in names if not name.startswith("._"))


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _refuse(error: OSError) -> NoReturn:
    # os.walk would pass over it, and the set would silently be another one.
    raise DataError(f"{error.filename} cannot be listed ({error.strerror}): allow it or move it")


# --- one file, or all of a folder -------------------------------------------------------------


def compressed_name(name: str) -> str:
    """Of a picture's file in a folder."""
    return name + SUFFIX


def picture_name(name: str) -> str:
    """Of what a compressed file in a folder decodes to; always a PNG."""
    stem = name.removesuffix(SUFFIX)
    return stem if stem.lower().endswith(".png") else stem + ".png"


@dataclass(frozen=True)
class Work:
    """What is to be written from what; in a folder a file that fails does not stop the others."""

    targets: dict[Path, Path]
    folder: Path | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def planned(
    source: Path,
    target: Path,
    found: Callable[[Path], Below],
    rename: Callable[[str], str],
    overwrite: bool = False,
) -> Work:
    """The work on one file, a pipe, or what is ``found`` below a folder.

    Raises UsageError, before anything is written, where a source cannot be read, a target cannot be
    written or is there already (unless ``overwrite``), or two sources would become one target.
    """
    if str(source) != PIPE and source.is_dir():
        return _planned_inside(source, target, found(source), rename, overwrite)
    if str(source) != PIPE and not os.access(source, os.R_OK):
        why = "no permission" if os.path.exists(source) else "no such file"
        raise UsageError(f"{source}: cannot be read ({why}); give a picture's or a coded file")
    if str(target) != PIPE and not _is_stream(target):
        require_writable(target, "OUT")
        _keep([target], overwrite)
    return Work({source: target})


def _planned_inside(
    source: Path, target: Path, here: Below, rename: Callable[[str], str], overwrite: bool
) -> Work:
    if str(target) == PIPE:
        raise UsageError(f"{source}: a folder does not go into a pipe; give a folder to write to")
    require_writable(target, "OUT", folder=True)
    if not here.files:
        aside = f" ({told_left_out(here.left_out)})" if here.left_out else ""
        raise UsageError(f"{source}: no file in it or below it that can be taken{aside}")
    inside = {path: target / path.relative_to(source) for path in here.files}
    targets = {path: place.with_name(rename(place.name)) for path, place in inside.items()}
    _tell_apart(targets)
    _keep(list(targets.values()), overwrite)
    return Work(targets, target, here.left_out)


def _tell_apart(targets: dict[Path, Path]) -> None:
    of: dict[Path, Path] = {}
    for source, target in targets.items():
        if target in of:
            raise UsageError(
                f"{of[target]} and {source}: both would become {target}; rename one of them"
            )
        of[target] = source


def _keep(targets: list[Path], overwrite: bool) -> None:
    there = [] if overwrite else [target for target in targets if os.path.lexists(target)]
    if there:
        others = f" (and {len(there) - 1} more of {len(targets)})" if there[1:] else ""
        raise UsageError(
            f"{there[0]}{others}: is there already; give another place, or --overwrite to replace it"
        )


def convert(work: Work, one: Callable[[bytes, str], tuple[bytes, str]]) -> None:
    """Do it: ``one(data, name)`` gives what to write and what to say of it.

    Raises UsageError at the end where some files of a folder failed.
    """
    if work.folder is None:
        for source, target in work.targets.items():
            _convert(source, target, one)
        return
    failed = []
    for source, target in work.targets.items():
        try:
            _make_folder(target.parent)
            _convert(source, target, one)
        except NasKdError as error:
            failed.append(str(error))
            print(f"nas-kd: {error}", file=sys.stderr)
    if work.left_out:
        print(f"nas-kd: {len(work.targets)} taken, {told_left_out(work.left_out)}", file=sys.stderr)
    if failed:
        raise UsageError(
            f"{len(failed)} of {len(work.targets)} files failed; the first: {failed[0]}"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}); give another") from error


def _convert(source: Path, target: Path, one: Callable[[bytes, str], tuple[bytes, str]]) -> None:
    data, said = one(read_bytes(source), str(source))
    write_bytes(target, data)
    print(f"{target}: {said}", file=sys.stderr if str(target) == PIPE else sys.stdout)
