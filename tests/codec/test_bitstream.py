import copy
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_codec import ARCH, LMBDAS, tiny
from torch import nn

from nas_kd.codec.bitstream import (
    MAX_PIXELS,
    TILE,
    _parse,
    _strings,
    analyse,
    decode,
    encode,
    fingerprint,
    info,
    write,
)
from nas_kd.codec.student import Student
from nas_kd.data.images import to_image, to_tensor
from nas_kd.errors import BitstreamError

HEIGHT_AT, WIDTH_AT, LEVEL_AT, FLAGS_AT, PARTS_AT, SYMBOLS_AT = 13, 17, 21, 25, 26, 27


def changed_in_one_weight(student: Student) -> Student:
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.gain_y.log_gain[0, 0] += 1e-3  # type: ignore[union-attr]
    return other


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def sealed(data: bytes) -> bytes:
    """The same file with the checksum that its bytes ask for."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def patched(data: bytes, at: int, layout: str, value: float) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, at, value)
    return sealed(bytes(changed))


@pytest.fixture(scope="module", params=["mean-scale", "checkerboard", "dual", "quad"])
def student(request: pytest.FixtureRequest) -> Student:
    return tiny(request.param)


@pytest.fixture(scope="module")
def small(student: Student) -> bytes:
    return encode(student, image(5, 7), 1)


def test_files_of_version_2_are_read_and_hold_every_symbol():
    student = tiny("mean-scale")
    with torch.no_grad():
        student.entropy_parameters.scales.bias -= 2  # narrow tables
    student.update(force=True)
    picture = image(70, 90)
    old, new = (write(student, analyse(student, picture), 1, version) for version in (2, 3))
    assert (old[4], new[4], info(old)["version"], info(new)["version"]) == (2, 3, 2, 3)
    header = _parse(old)
    coded = student.coder.decode(_strings(header, old), (2, 2), 1, TILE, quiet=0)
    assert coded.checksum == header.symbols
    assert decode(student, old).shape == decode(student, new).shape
    # Read by the other's rule a file is garbled, and its checksum says so.
    with pytest.raises(BitstreamError, match="latents are not those"):
        decode(student, patched(old, 4, "<B", 3))


@pytest.mark.parametrize("level", [1, 2.3, 3])
@pytest.mark.parametrize("size", [(1, 1), (65, 30), (64, 128)])
def test_a_file_decodes_to_the_students_reconstruction(
    student: Student, size: tuple[int, int], level: float
):
    height, width = size
    x = to_tensor(image(height, width))
    x = nn.functional.pad(x, (0, -width % 64, 0, -height % 64), mode="replicate")
    level = float(np.float32(level))
    coded = student.compress(x, level)
    x_hat = student.decompress(coded["strings"], coded["shape"], level)["x_hat"]
    decoded = decode(student, encode(student, image(height, width), level))
    assert decoded.shape == (height, width, 3)
    assert np.array_equal(decoded, to_image(x_hat[..., :height, :width]))


def test_levels_give_different_files_and_pictures(student: Student):
    picture = image(64, 64)
    low, high = (encode(student, picture, level) for level in (1, 3))
    assert len(low) < len(high)
    assert not np.array_equal(decode(student, low), decode(student, high))


def test_every_byte_of_a_file_is_accounted_for(student: Student):
    data = encode(student, image(65, 30), 2.5)
    coded = student.compress(
        nn.functional.pad(to_tensor(image(65, 30)), (0, 34, 0, 63), mode="replicate"), 2.5
    )
    said = info(data)
    *y, z = (len(string) for (string,) in coded["strings"])
    assert (said["y_bytes"], said["z_bytes"], said["y_parts"]) == (sum(y), z, len(y))
    assert said["header_bytes"] == 31 + 4 * (len(y) + 1) + 4
    assert said["header_bytes"] + sum(y) + z == said["bytes"] == len(data)
    assert (said["height"], said["width"], said["level"]) == (65, 30, 2.5)
    assert said["bpp"] == 8 * len(data) / (65 * 30)
    assert said["student"] == fingerprint(student).hex()


def test_any_changed_byte_is_found(student: Student, small: bytes):
    for at in range(len(small)):
        changed = bytearray(small)
        changed[at] ^= 1 << at % 8
        with pytest.raises(BitstreamError) as error:
            decode(student, bytes(changed))
        assert "\n" not in str(error.value)


def test_a_file_cut_anywhere_is_refused(student: Student, small: bytes):
    for length in range(len(small)):
        with pytest.raises(BitstreamError, match="truncated|starts with|is empty"):
            decode(student, small[:length])


def test_bytes_after_the_end_are_refused(student: Student, small: bytes):
    with pytest.raises(BitstreamError, match="1 bytes follow"):
        decode(student, small + b"\0")


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (
            lambda d: d.replace(b"\n", b"\r\n"),
            "line ends .* LF to CR LF: copy it again as a binary",
        ),
        (lambda d: d.decode("latin-1").encode(), "recoded from Latin-1 to UTF-8"),
        (lambda d: d.decode("utf-8", "replace").encode(), "replaced as if it were UTF-8 text"),
    ],
)
@pytest.mark.parametrize("height", [10, 70])  # the header's 10 is a line end itself
def test_a_file_that_was_taken_for_a_text_says_so(
    student: Student, alter: Callable[[bytes], bytes], says: str, height: int
):
    whole = encode(student, image(height, 300), 1)
    altered = alter(whole)
    assert altered != whole
    for read in (info, lambda data: decode(student, data)):
        with pytest.raises(BitstreamError, match=says):
            read(altered)


def test_bytes_are_said_to_follow_the_end_only_where_the_file_is_whole(
    student: Student, small: bytes
):
    changed = small[:60] + b"\0\1" + small[60:]
    with pytest.raises(BitstreamError, match="checksum does not match"):
        decode(student, changed)


@pytest.mark.parametrize(
    ("at", "layout", "value", "message"),
    [
        (0, "<B", 0, "starts with"),
        (4, "<B", 1, "version 1"),
        (HEIGHT_AT, "<I", 2**32 - 1, "must have 1 to"),
        (WIDTH_AT, "<I", MAX_PIXELS // 64 + 1, "must have 1 to"),
        (HEIGHT_AT, "<I", 0, "must have 1 to"),
        (LEVEL_AT, "<f", 0.5, "levels 1 to 3"),
        (LEVEL_AT, "<f", 3.01, "levels 1 to 3"),
        (LEVEL_AT, "<f", float("nan"), "levels 1 to 3"),
        (PARTS_AT, "<B", 200, "200 parts"),
        (FLAGS_AT, "<B", 2, "flags 2"),
        (SYMBOLS_AT, "<I", 1, "latents"),
        (5, "<Q", 1, "is of student"),
    ],
)
def test_a_header_that_lies_is_refused_though_its_checksum_holds(
    student: Student, small: bytes, at: int, layout: str, value: float, message: str
):
    with pytest.raises(BitstreamError, match=message):
        decode(student, patched(small, at, layout, value))


def test_another_student_does_not_decode(student: Student, small: bytes):
    with pytest.raises(BitstreamError, match="is of student"):
        decode(changed_in_one_weight(student), small)


def test_the_fingerprint_sees_lambdas_and_tensors_and_not_use():
    fresh = Student(replace(ARCH, entropy="checkerboard"), LMBDAS)
    first = fingerprint(fresh)
    fresh.eval()(torch.zeros(1, 3, 64, 64))
    assert fingerprint(fresh) == first
    assert fingerprint(changed_in_one_weight(fresh)) != first
    fresh.lmbdas = (*LMBDAS[:-1], 0.05)
    assert fingerprint(fresh) != first


@pytest.mark.parametrize("level", [0, 0.99, 3.5, float("nan"), float("inf")])
def test_a_level_outside_the_students_is_refused(student: Student, level: float):
    with pytest.raises(BitstreamError, match="levels 1 to 3"):
        encode(student, image(8, 8), level)


def test_a_student_without_coding_tables_is_refused(small: bytes):
    fresh = Student(ARCH, LMBDAS)
    for attempt in (lambda: encode(fresh, image(8, 8), 1), lambda: decode(fresh, small)):
        with pytest.raises(BitstreamError, match="update"):
            attempt()


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 8, 3), np.float32), np.zeros(8, np.uint8), image(8, 8)[..., :2]]
)
def test_what_is_no_rgb_image_is_refused(student: Student, bad: np.ndarray):
    with pytest.raises(BitstreamError, match="must be uint8"):
        encode(student, bad, 1)


def test_images_without_pixels_or_with_too_many_are_refused(student: Student):
    # A view of one row: nothing of that size is allocated, here or in the codec.
    endless = np.broadcast_to(image(1, 1), (MAX_PIXELS // 64 + 1, 1, 3))
    for picture in (image(8, 8)[:0], endless):
        with pytest.raises(BitstreamError, match="must have 1 to"):
            encode(student, picture, 1)


# --- files of any origin ----------------------------------------------------------------------

CHECKED = tiny("checkerboard")
CHECKED_FILE = encode(CHECKED, image(40, 70), 2)

edits = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes replaced, put in, taken out, or the end cut off."""
    out = bytearray(data)
    for at, kind, new in changes:
        at %= len(out) + 1
        end = {0: at + len(new), 1: at, 2: at + len(new), 3: len(out)}[kind]
        out[at:end] = new if kind < 2 else b""
    return bytes(out)


@given(edits, st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_an_altered_file_is_a_picture_or_a_bitstream_error(
    changes: list[tuple[int, int, bytes]], with_checksum: bool
):
    data = edited(CHECKED_FILE, changes)
    if with_checksum and len(data) > 8:
        data = sealed(data)
    try:
        picture = decode(CHECKED, data)
    except BitstreamError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert picture.dtype == np.uint8


def forged(student: Student, data: bytes) -> bytes:
    """The file with the checksum of whatever its strings decode to."""
    z_shape = (-(-info(data)["height"] // 64), -(-info(data)["width"] // 64))
    header = _parse(data)
    coded = student.coder.decode(_strings(header, data), z_shape, header.level, TILE)
    return patched(data, SYMBOLS_AT, "<I", coded.checksum)


@given(st.binary(min_size=20, max_size=20))
@settings(max_examples=20, deadline=None)
def test_forged_strings_give_some_picture_of_the_stated_size(noise: bytes):
    data = sealed(CHECKED_FILE[:60] + noise + CHECKED_FILE[80:])
    try:
        data = forged(CHECKED, data)
    except BitstreamError:
        return
    assert decode(CHECKED, data).shape == (40, 70, 3)


def test_100_000_by_100_000_pixels_are_refused_with_the_limit(student: Student, small: bytes):
    data = patched(patched(small, HEIGHT_AT, "<I", 100_000), WIDTH_AT, "<I", 100_000)
    for reads in (lambda: decode(student, data), lambda: info(data)):
        with pytest.raises(BitstreamError, match=f"100000x100000: must have 1 to {MAX_PIXELS}"):
            reads()


# --- grey pictures, latents far out -----------------------------------------------------------


def test_a_grey_picture_comes_back_grey(student: Student):
    grey = image(30, 40)[..., 0]
    data = encode(student, grey, 2)
    assert info(data)["grey"]
    colour = decode(student, encode(student, np.repeat(grey[..., None], 3, 2), 2))
    decoded = decode(student, data)
    assert decoded.shape == (30, 40)
    assert np.abs(decoded - colour.astype(float).mean(2)).max() <= 0.5


def test_latents_far_outside_every_table_are_coded(student: Student):
    wild = copy.deepcopy(student)
    with torch.no_grad():
        wild.g_a.head.weight *= 1e5
    wild.update(force=True)
    picture = image(64, 64)
    coded = wild.compress(to_tensor(picture), 3)
    assert coded["y_hat"].abs().max() > 1e4
    decoded = wild.decompress(coded["strings"], coded["shape"], 3)
    assert torch.equal(decoded["y_hat"], coded["y_hat"])
    assert decode(wild, encode(wild, picture, 3)).shape == picture.shape
