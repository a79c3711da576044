"""The file format of compressed pictures.

Little-endian, in this order::

    magic        4 bytes  NKD1
    version      u8       1
    student      8 bytes  start of a sha256 over the architecture, lambdas and tensors
    height       u32      of the picture, before padding
    width        u32
    level        f32      1 to L
    y_parts      u8       strings y is coded in: 1, or 2 for the checkerboard
    latents      u32      crc32 of y_hat as float32, C order
    lengths      u32      of each string: the parts of y, then z
    strings
    crc32        u32      of everything before

Latents are coded with probabilities that both sides compute in floating point. Where the decoder's
arithmetic differs (another device or library), what it decodes may differ; the checksum of the
latents then turns a silently wrong picture into an error. Checksums find damage, not malice: the
range decoder does not check its bounds, so decode only files whose source you trust.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.data import Image8, to_image, to_tensor
from nas_kd.errors import BitstreamError
from nas_kd.student import MULTIPLE, Student

MAGIC = b"NKD1"
VERSION = 1
MAX_PIXELS = 2**26
"""Largest area, after padding to multiples of 64."""

FIXED = struct.Struct("<4sB8sIIfBI")
U32 = struct.Struct("<I")


@dataclass(frozen=True)
class Header:
    """What stands before the strings; ``lengths`` are in bytes, the parts of y, then z."""

    student: bytes
    height: int
    width: int
    level: float
    latents: int
    lengths: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the header itself."""
        return FIXED.size + U32.size * len(self.lengths)

    def pack(self) -> bytes:
        """The header's bytes."""
        y_parts = len(self.lengths) - 1
        sides = (self.height, self.width)
        fixed = (MAGIC, VERSION, self.student, *sides, self.level, y_parts, self.latents)
        return FIXED.pack(*fixed) + struct.pack(f"<{len(self.lengths)}I", *self.lengths)


def encode(student: Student, image: Image8, level: float) -> bytes:
    """A compressed file of one picture, uint8 [H, W, 3].

    Args:
        student: its ``update()`` must have been called.
        image: of any size up to MAX_PIXELS.
        level: 1 to L, fractions interpolate; used as float32.

    Raises:
        BitstreamError: an image, level or student that cannot be coded.
    """
    _check_updated(student)
    _check_image(image)
    height, width = image.shape[:2]
    _check_size(height, width)
    _check_level(student, level)
    level = float(np.float32(level))
    name = fingerprint(student)
    x = _padded(to_tensor(image)).to(_device(student))
    coded = student.compress(x, level)
    strings = [string for (string,) in coded["strings"]]
    lengths = tuple(len(string) for string in strings)
    header = Header(name, height, width, level, _crc_of_latents(coded["y_hat"]), lengths)
    body = header.pack() + b"".join(strings)
    return body + U32.pack(zlib.crc32(body))


def decode(student: Student, data: bytes) -> Image8:
    """The picture, uint8 [H, W, 3], of what ``encode`` returned.

    Raises:
        BitstreamError: a file that is damaged, of another student, or whose latents this
            machine decodes differently.
    """
    header = _parse(data)
    _check_updated(student)
    if header.student != fingerprint(student):
        raise BitstreamError(
            f"the file is of student {header.student.hex()}, not {fingerprint(student).hex()}: "
            "decode it with the student that wrote it"
        )
    if len(header.lengths) != student.y_parts + 1:
        raise BitstreamError(
            f"y is in {len(header.lengths) - 1} parts: this student codes it in {student.y_parts}"
        )
    _check_level(student, header.level)
    z_shape = (-(-header.height // MULTIPLE), -(-header.width // MULTIPLE))
    decoded = student.decompress(_strings(header, data), z_shape, header.level)
    if _crc_of_latents(decoded["y_hat"]) != header.latents:
        raise BitstreamError(
            "the decoded latents are not those that were coded: decode on the kind of device "
            "and with the library versions that wrote the file"
        )
    return to_image(decoded["x_hat"][..., : header.height, : header.width])


def info(data: bytes) -> dict[str, Any]:
    """What a file says of itself, checked as far as that needs no student; sizes in bytes."""
    header = _parse(data)
    return {
        "version": VERSION,
        "student": header.student.hex(),
        "height": header.height,
        "width": header.width,
        "level": header.level,
        "y_parts": len(header.lengths) - 1,
        "header_bytes": header.size + U32.size,
        "y_bytes": sum(header.lengths[:-1]),
        "z_bytes": header.lengths[-1],
        "bytes": len(data),
        "bpp": 8 * len(data) / (header.height * header.width),
    }


def fingerprint(student: Student) -> bytes:
    """Eight bytes that differ where the architecture, the lambdas or any tensor does."""
    tensors = dict(student.state_dict())
    if student.context is not None:
        # The masked convolution clears these entries only when it first runs.
        tensors["context.weight"] = tensors["context.weight"] * tensors["context.mask"]
    digest = hashlib.sha256(json.dumps([student.arch.key, student.lmbdas]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()[:8]


# --- reading a file ---------------------------------------------------------------------------


def _parse(data: bytes) -> Header:
    """The header of a whole and undamaged file."""
    if data[:4] != MAGIC[: len(data)] or not data:
        raise BitstreamError(
            f"the file starts with {data[:4]!r}, not {MAGIC!r}: not compressed here"
        )
    if len(data) > 4 and data[4] != VERSION:
        raise BitstreamError(f"format version {data[4]}: only {VERSION} can be read")
    _check_length(data, FIXED.size)
    _, _, student, height, width, level, y_parts, latents = FIXED.unpack_from(data)
    if y_parts not in (1, 2):
        raise BitstreamError(f"y is in {y_parts} parts: must be 1 or 2, the file is damaged")
    _check_length(data, FIXED.size + U32.size * (y_parts + 1))
    lengths = struct.unpack_from(f"<{y_parts + 1}I", data, FIXED.size)
    header = Header(student, height, width, level, latents, lengths)
    _check_whole(header, data)
    _check_size(height, width)
    return header


def _check_length(data: bytes, least: int) -> None:
    if len(data) < least:
        raise BitstreamError(f"the file is truncated: {len(data)} bytes of at least {least}")


def _check_whole(header: Header, data: bytes) -> None:
    size = header.size + sum(header.lengths) + U32.size
    _check_length(data, size)
    if len(data) > size:
        raise BitstreamError(f"{len(data) - size} bytes follow the end of the file: remove them")
    if U32.unpack_from(data, size - U32.size)[0] != zlib.crc32(data[: -U32.size]):
        raise BitstreamError("the checksum does not match: the file is damaged, copy it again")


def _strings(header: Header, data: bytes) -> list[list[bytes]]:
    strings, start = [], header.size
    for length in header.lengths:
        strings.append([bytes(data[start : start + length])])
        start += length
    return strings


# --- both ways --------------------------------------------------------------------------------


def _check_updated(student: Student) -> None:
    coders = (student.gaussian_conditional, student.entropy_bottleneck)
    if any(coder._offset.numel() == 0 for coder in coders):
        raise BitstreamError(
            "the student has no coding tables: call update(force=True, update_quantiles=True)"
        )


def _check_image(image: Image8) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise BitstreamError(
            f"the image is {image.dtype} {list(image.shape)}: must be uint8 [H, W, 3]"
        )


def _check_size(height: int, width: int) -> None:
    padded = math.prod(-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    if not 0 < padded <= MAX_PIXELS:
        raise BitstreamError(
            f"the image is {height}x{width}: must have 1 to {MAX_PIXELS} pixels "
            f"when padded to multiples of {MULTIPLE}"
        )


def _check_level(student: Student, level: float) -> None:
    if not 1 <= level <= student.levels:
        raise BitstreamError(f"level {level}: this student has levels 1 to {student.levels}")


def _padded(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    return nn.functional.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")


def _crc_of_latents(y_hat: Tensor) -> int:
    return zlib.crc32(y_hat.detach().float().cpu().contiguous().numpy().tobytes())


def _device(student: Student) -> torch.device:
    return next(student.parameters()).device
