"""Pictures and compressed files on disk, in folders and in pipes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nas_kd.bitstream import MAX_PIXELS
from nas_kd.data import FORMATS, Image8
from nas_kd.errors import DataError, NasKdError, UsageError

PIPE = "-"
SUFFIX = ".nkd"


def read_picture(data: bytes, name: str) -> Image8:
    """The pixels of a picture's file: uint8 [H, W, 3], or [H, W] of a grey one.

    Turned as its EXIF data says. Raises DataError for what the codec cannot keep: transparency,
    more than 8 bits, several frames.
    """
    try:
        Image.init()
        with Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN]) as file:
            _check(file, name)
            picture = ImageOps.exif_transpose(file)
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
    if getattr(file, "n_frames", 1) > 1:
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
    """Write under a temporary name, then rename; or to standard output for ``-``."""
    if str(path) == PIPE:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UsageError(f"{path}: cannot be written ({error.strerror}); give another") from error


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


def picture_suffixes() -> set[str]:
    """Suffixes of files that can be read as pictures."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


def compressed_name(name: str) -> str:
    """Of a picture's file in a folder."""
    return name + SUFFIX


def picture_name(name: str) -> str:
    """Of what a compressed file in a folder decodes to; always a PNG."""
    stem = name.removesuffix(SUFFIX)
    return stem if stem.lower().endswith(".png") else stem + ".png"


def convert(
    source: Path,
    target: Path,
    suffixes: set[str],
    rename: Callable[[str], str],
    one: Callable[[bytes, str], tuple[bytes, str]],
) -> None:
    """One file, a pipe, or every file of a folder that has one of the suffixes.

    ``one(data, name)`` gives what to write and what to say of it. In a folder a file that fails does not
    stop the others; at the end UsageError says how many did.
    """
    if str(source) == PIPE or not source.is_dir():
        data, said = one(read_bytes(source), str(source))
        write_bytes(target, data)
        print(f"{target}: {said}", file=sys.stderr if str(target) == PIPE else sys.stdout)
        return
    if str(target) == PIPE:
        raise UsageError(f"{source}: a folder does not go into a pipe; give a folder to write to")
    inside = (p for p in source.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    names = sorted(path.relative_to(source) for path in inside)
    if not names:
        raise UsageError(f"{source}: no file with one of {', '.join(sorted(suffixes))} in it")
    failed = []
    for name in names:
        try:
            _convert_inside(source / name, target / name.with_name(rename(name.name)), one)
        except UsageError as error:
            failed.append(str(error))
            print(f"nas-kd: {error}", file=sys.stderr)
    if failed:
        raise UsageError(f"{len(failed)} of {len(names)} files failed; the first: {failed[0]}")


def _convert_inside(
    source: Path, target: Path, one: Callable[[bytes, str], tuple[bytes, str]]
) -> None:
    data, said = one(read_bytes(source), str(source))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{target.parent}: cannot be made ({error.strerror}); give another"
        ) from error
    write_bytes(target, data)
    print(f"{target}: {said}")
