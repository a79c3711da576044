"""The file format of compressed pictures.

Little-endian, in this order::

    magic        4 bytes  NKD1
    version      u8       3 (2 is read too: there every symbol of y is in a string)
    student      8 bytes  start of the sha256 in the student's arch.json
    height       u32      of the picture, before padding
    width        u32
    level        f32      1 to L
    flags        u8       1: the picture is grey
    y_parts      u8       strings a tile of y is coded in: 1, or one a pass (2, 4)
    symbols      u32      crc32 of all entropy-coded symbols as int32: z, then y in the order of its strings
    lengths      u32      of each string: the parts of y, each tile by tile (1024 px, row by row), then z
    strings
    crc32        u32      of everything before

What tables a symbol is read with is computed in exact arithmetic (``exact``), so that a file decodes to the same
symbols with any number of threads and any library; what they stand for may differ by a float's rounding where steps are
predicted (``dual``). Should a machine disagree all the same, the
checksum of the symbols turns a silently wrong picture into an error. Strings of any origin are read in bounds
(``rans``); what a file can make its reader spend is limited by MAX_PIXELS.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from nas_kd.codec.arch import PASSES
from nas_kd.codec.checkpoint import weights_digest
from nas_kd.codec.entropy_coding import QUIET, tiles_of
from nas_kd.codec.student import Student
from nas_kd.codec.tiling import analysis, synthesis
from nas_kd.data.image_file import MAX_PIXELS, Image8
from nas_kd.data.metrics import MULTIPLE
from nas_kd.errors import BitstreamError

MAGIC = b"NKD1"
VERSION = 3
QUIET_OF = {2: 0, VERSION: QUIET}
"""How many of the narrowest tables a version leaves uncoded."""

TILE = 16
"""Hyperlatents per side of what is coded together: 1024 px."""

REPLACEMENT = "\ufffd".encode()
"""What stands where UTF-8 text was read and had no character; by chance once in 16 MB."""

GREY = 1
Y_PARTS = (1, *PASSES.values())
FIXED = struct.Struct("<4sB8sIIfBBI")
U32 = struct.Struct("<I")


@dataclass(frozen=True)
class Header:
    """What stands before the strings; ``lengths`` are in bytes, as in the file."""

    student: bytes
    height: int
    width: int
    level: float
    flags: int
    y_parts: int
    symbols: int
    lengths: tuple[int, ...]
    version: int = VERSION

    @property
    def size(self) -> int:
        """Bytes of the header itself."""
        return FIXED.size + U32.size * len(self.lengths)

    def pack(self) -> bytes:
        """The header's bytes."""
        fixed = (self.student, self.height, self.width, self.level)
        rest = (self.flags, self.y_parts, self.symbols)
        lengths = struct.pack(f"<{len(self.lengths)}I", *self.lengths)
        return FIXED.pack(MAGIC, self.version, *fixed, *rest) + lengths


@dataclass(frozen=True)
class Analysed:
    """A picture's latents, from which files of any level can be written."""

    height: int
    width: int
    grey: bool
    y: Tensor
    z: Tensor


def encode(student: Student, image: Image8, level: float) -> bytes:
    """A compressed file of one picture, uint8 [H, W, 3], or [H, W] for a grey one.

    Args:
        student: its ``update()`` must have been called.
        image: of any size up to MAX_PIXELS.
        level: 1 to L, fractions interpolate; used as float32.

    Raises:
        BitstreamError: an image, level or student that cannot be coded.
    """
    _check_level(student, level)
    return write(student, analyse(student, image), level)


def analyse(student: Student, image: Image8) -> Analysed:
    """The part of ``encode`` that does not depend on the level."""
    _check_updated(student)
    _check_image(image)
    height, width = image.shape[:2]
    _check_size(height, width)
    grey = image.ndim == 2
    colour = np.repeat(image[..., None], 3, axis=2) if grey else image
    return Analysed(height, width, grey, *analysis(student, colour))


def write(student: Student, picture: Analysed, level: float, version: int = VERSION) -> bytes:
    """The file of an analysed picture at one level."""
    coder = _check_updated(student)
    _check_level(student, level)
    level = float(np.float32(level))
    coded = coder.encode(picture.y, picture.z, level, TILE, QUIET_OF[version])
    header = Header(
        fingerprint(student),
        picture.height,
        picture.width,
        level,
        GREY if picture.grey else 0,
        coder.y_parts,
        coded.checksum,
        tuple(len(string) for string in coded.strings),
        version,
    )
    body = header.pack() + b"".join(coded.strings)
    return body + U32.pack(zlib.crc32(body))


def decode(student: Student, data: bytes) -> Image8:
    """The picture, uint8 [H, W, 3] ([H, W] if grey), of what ``encode`` returned.

    Raises:
        BitstreamError: a file that is damaged, of another student, or whose latents this
            machine decodes differently.
    """
    header = _parse(data)
    coder = _check_updated(student)
    if header.student != fingerprint(student):
        raise BitstreamError(
            f"the file is of student {header.student.hex()}, not {fingerprint(student).hex()}: "
            "decode it with the student that wrote it"
        )
    if header.y_parts != coder.y_parts:
        raise BitstreamError(
            f"y is in {header.y_parts} parts: this student codes it in {coder.y_parts}"
        )
    _check_level(student, header.level)
    z_shape = _cells(header.height, header.width)
    quiet = QUIET_OF[header.version]
    decoded = coder.decode(_strings(header, data), z_shape, header.level, TILE, quiet)
    if decoded.checksum != header.symbols:
        raise BitstreamError(
            "the decoded latents are not those that were coded: the file was altered, or this "
            "machine computes otherwise than the one that wrote it; decode it there"
        )
    image = synthesis(student, decoded.y_hat, header.height, header.width)
    if header.flags & GREY:
        return image.mean(2, dtype=np.float32).round().astype(np.uint8)
    return image


def info(data: bytes) -> dict[str, Any]:
    """What a file says of itself, checked as far as that needs no student; sizes in bytes."""
    header = _parse(data)
    return {
        "magic": MAGIC.decode(),
        "version": header.version,
        "student": header.student.hex(),
        "height": header.height,
        "width": header.width,
        "level": header.level,
        "grey": bool(header.flags & GREY),
        "tiles": (len(header.lengths) - 1) // header.y_parts,
        "y_parts": header.y_parts,
        "header_bytes": header.size + U32.size,
        "y_bytes": sum(header.lengths[:-1]),
        "z_bytes": header.lengths[-1],
        "bytes": len(data),
        "bpp": 8 * len(data) / (header.height * header.width),
    }


def fingerprint(student: Student) -> bytes:
    """The first eight bytes of what ``arch.json`` has as sha256: architecture, lambdas, tensors."""
    return bytes.fromhex(weights_digest(student))[:8]


# --- reading a file ---------------------------------------------------------------------------


def _parse(data: bytes) -> Header:
    """The header of a whole and undamaged file; a file that was altered as a text says so."""
    try:
        return _parsed(data)
    except BitstreamError as error:
        if (how := _as_text(data)) is not None:
            raise BitstreamError(f"{how}: copy it again as a binary file") from error
        raise


def _as_text(data: bytes) -> str | None:
    """How a file was altered by what took it for a text: undone it is whole, or its marks are in it."""
    if REPLACEMENT in data and data[:4] == MAGIC:
        return "bytes of the file were replaced as if it were UTF-8 text"
    undoings = {
        "line ends of the file were changed from LF to CR LF": data.replace(b"\r\n", b"\n"),
        "the file was recoded from Latin-1 to UTF-8 as if it were text": _latin_1(data),
    }
    for how, undone in undoings.items():
        with contextlib.suppress(BitstreamError):
            if undone != data:
                _parsed(undone)
                return how
    return None


def _latin_1(data: bytes) -> bytes:
    """Its UTF-8 as Latin-1; the data itself where it is not that."""
    try:
        return data.decode("utf-8").encode("latin-1")
    except UnicodeError:
        return data


def _parsed(data: bytes) -> Header:
    if not data:
        raise BitstreamError("the file is empty: compress the picture again")
    if data[:4] != MAGIC[: len(data)]:
        raise BitstreamError(
            f"the file starts with {data[:4]!r}, not {MAGIC!r}: not compressed here"
        )
    if len(data) > 4 and data[4] not in QUIET_OF:
        known = " and ".join(str(version) for version in QUIET_OF)
        raise BitstreamError(f"format version {data[4]}: only {known} can be read")
    _check_length(data, FIXED.size)
    _, version, student, height, width, level, flags, y_parts, symbols = FIXED.unpack_from(data)
    if y_parts not in Y_PARTS or flags not in (0, GREY):
        raise BitstreamError(
            f"y is in {y_parts} parts, flags {flags}: must be 1, 2 or 4, and 0 or 1; the file is damaged"
        )
    _check_size(height, width)
    count = y_parts * len(tiles_of(*_cells(height, width), TILE)) + 1
    _check_length(data, FIXED.size + U32.size * count)
    lengths = struct.unpack_from(f"<{count}I", data, FIXED.size)
    header = Header(student, height, width, level, flags, y_parts, symbols, lengths, version)
    _check_whole(header, data)
    return header


def _check_length(data: bytes, least: int) -> None:
    if len(data) < least:
        raise BitstreamError(
            f"the file is truncated: {len(data)} bytes of at least {least}; copy it again"
        )


def _check_whole(header: Header, data: bytes) -> None:
    size = header.size + sum(header.lengths) + U32.size
    _check_length(data, size)
    if U32.unpack_from(data, size - U32.size)[0] != zlib.crc32(data[: size - U32.size]):
        raise BitstreamError("the checksum does not match: the file is damaged, copy it again")
    if len(data) > size:
        raise BitstreamError(f"{len(data) - size} bytes follow the end of the file: remove them")


def _strings(header: Header, data: bytes) -> list[bytes]:
    strings, start = [], header.size
    for length in header.lengths:
        strings.append(bytes(data[start : start + length]))
        start += length
    return strings


# --- both ways --------------------------------------------------------------------------------


def _cells(height: int, width: int) -> tuple[int, int]:
    """Height and width of z."""
    return -(-height // MULTIPLE), -(-width // MULTIPLE)


def _check_updated(student: Student) -> Any:
    if student.coder is None:
        raise BitstreamError(
            "the student has no coding tables: call update(force=True, update_quantiles=True)"
        )
    return student.coder


def _check_image(image: Image8) -> None:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise BitstreamError(
            f"the image is {image.dtype} {list(image.shape)}: must be uint8 [H, W, 3] or [H, W]"
        )


def _check_size(height: int, width: int) -> None:
    pixels = math.prod(MULTIPLE * cells for cells in _cells(height, width))
    if not 0 < pixels <= MAX_PIXELS:
        raise BitstreamError(
            f"the image is {height}x{width}: must have 1 to {MAX_PIXELS} pixels "
            f"when padded to multiples of {MULTIPLE}"
        )


def _check_level(student: Student, level: float) -> None:
    if not 1 <= level <= student.levels:
        raise BitstreamError(f"level {level}: this student has levels 1 to {student.levels}")
