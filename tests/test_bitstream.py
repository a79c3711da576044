import copy
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nas_kd.bitstream import MAX_PIXELS, decode, encode, fingerprint, info
from nas_kd.data import to_image, to_tensor
from nas_kd.errors import BitstreamError
from nas_kd.space import Arch, Transform
from nas_kd.student import Student

SIDE = Transform("unshuffle4", (0, 4, 4), kernel=3)
ARCH = Arch(SIDE, SIDE, M=6, hyper=4, entropy="mean-scale", shortcut=True)
LMBDAS = (0.0035, 0.013, 0.0483)
HEIGHT_AT, WIDTH_AT, LEVEL_AT, PARTS_AT, LATENTS_AT = 13, 17, 21, 25, 26


def tiny(entropy: str) -> Student:
    torch.manual_seed(0)
    student = Student(replace(ARCH, entropy=entropy), LMBDAS).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        student.linear_a.weight *= 50  # type: ignore[union-attr]  # latents worth coding
    student.update(force=True, update_quantiles=True)
    return student


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


@pytest.fixture(scope="module", params=["mean-scale", "checkerboard"])
def student(request: pytest.FixtureRequest) -> Student:
    return tiny(request.param)


@pytest.fixture(scope="module")
def small(student: Student) -> bytes:
    return encode(student, image(5, 7), 1)


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
    assert said["header_bytes"] == 30 + 4 * (len(y) + 1) + 4
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
        with pytest.raises(BitstreamError, match="truncated|starts with"):
            decode(student, small[:length])


def test_bytes_after_the_end_are_refused(student: Student, small: bytes):
    with pytest.raises(BitstreamError, match="1 bytes follow"):
        decode(student, small + b"\0")


@pytest.mark.parametrize(
    ("at", "layout", "value", "message"),
    [
        (0, "<B", 0, "starts with"),
        (4, "<B", 2, "version 2"),
        (HEIGHT_AT, "<I", 2**32 - 1, "must have 1 to"),
        (WIDTH_AT, "<I", MAX_PIXELS // 64 + 1, "must have 1 to"),
        (HEIGHT_AT, "<I", 0, "must have 1 to"),
        (LEVEL_AT, "<f", 0.5, "levels 1 to 3"),
        (LEVEL_AT, "<f", 3.01, "levels 1 to 3"),
        (LEVEL_AT, "<f", float("nan"), "levels 1 to 3"),
        (PARTS_AT, "<B", 200, "200 parts"),
        (LATENTS_AT, "<I", 1, "latents"),
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
    "bad", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), image(8, 8)[..., :2]]
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
