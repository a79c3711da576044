import pytest
import torch
from tiny_codec import tiny

from nas_kd.codec.entropy_coding import tiles_of
from nas_kd.codec.student import Student


@pytest.fixture(scope="module", params=["scale", "mean-scale", "checkerboard", "dual", "quad"])
def student(request: pytest.FixtureRequest) -> Student:
    return tiny(request.param)


def latents(student: Student) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    y = torch.randn(1, student.arch.M, 20, 28)
    return y, torch.randn(1, student.arch.hyper, 5, 7) * 3


def test_tiles_cover_every_place_once():
    seen = torch.zeros(7, 11)
    for tile in tiles_of(7, 11, 3):
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert bool((seen == 1).all())
    assert len(tiles_of(7, 11, None)) == 1


@torch.no_grad()
@pytest.mark.parametrize("side", [1, 2, 3])
def test_tiling_changes_no_symbol_and_no_latent(student: Student, side: int):
    y, z = latents(student)
    whole = student.coder.encode(y, z, 2.4)
    tiled = student.coder.encode(y, z, 2.4, side)
    if student.passes:  # means and steps are float32, the symbols are not
        torch.testing.assert_close(tiled.y_hat, whole.y_hat)
    else:
        assert torch.equal(tiled.y_hat, whole.y_hat)
    assert len(tiled.strings) > len(whole.strings)
    decoded = student.coder.decode(tiled.strings, (5, 7), 2.4, side)
    assert torch.equal(decoded.y_hat, tiled.y_hat)
    assert decoded.checksum == tiled.checksum


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_strings_are_read_alike_with_any_threads_and_library(
    student: Student, threads: int, onednn: bool
):
    y, z = latents(student)
    coded = student.coder.encode(y, z, 1.7)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.backends.mkldnn.flags(enabled=onednn):
            decoded = student.coder.decode(coded.strings, (5, 7), 1.7)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(decoded.y_hat, coded.y_hat)
    assert student.passes or torch.equal(decoded.y_hat, coded.y_hat)
    assert decoded.checksum == coded.checksum


@torch.no_grad()
def test_where_a_narrow_table_is_predicted_symbols_are_zero_and_cost_nothing(student: Student):
    y, z = latents(student)
    everything = student.coder.encode(y, z, 1, quiet=0)
    fewer = student.coder.encode(y, z, 1, quiet=30)
    assert sum(map(len, fewer.strings)) < sum(map(len, everything.strings))
    assert fewer.strings[-1] == everything.strings[-1]
    assert torch.equal(student.coder.decode(fewer.strings, (5, 7), 1, quiet=30).y_hat, fewer.y_hat)
    nothing = student.coder.encode(y, z, 1, quiet=64)
    means = student.coder.decode(nothing.strings, (5, 7), 1, quiet=64).y_hat
    assert torch.equal(nothing.y_hat, means)
    if student.arch.entropy == "scale":
        assert not means.any()
