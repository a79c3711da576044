import numpy as np
import pytest
import torch
from tiny_codec import tiny

from nas_kd.cli.codec import MOST_EFFORT
from nas_kd.codec import iterative_encoding
from nas_kd.codec.bitstream import Analysed, analyse, decode, encode, info
from nas_kd.codec.iterative_encoding import (
    STEPS,
    Annealed,
    _cost,
    encode_with_effort,
    improved,
    sought,
)
from nas_kd.codec.rate_control import file_of_bpp
from nas_kd.codec.student import Student
from nas_kd.data.images import to_tensor
from nas_kd.errors import UsageError

EFFORT = 3


def grain(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(90, 160, (height, width, 3), np.uint8)


def cost(student: Student, picture: Analysed, image: np.ndarray, level: float) -> float:
    """Of the student's own forward pass in evaluation."""
    with torch.no_grad():
        return float(_cost(student, to_tensor(image), picture.y, picture.z, level))


@pytest.mark.parametrize("entropy", ["mean-scale", "checkerboard", "dual"])
def test_what_is_sought_costs_less_and_the_students_weights_stay(entropy: str):
    student, image = tiny(entropy), grain(60, 100)
    before = [p.clone() for p in student.parameters()]
    picture = analyse(student, image)
    better = sought(student, picture, image, 2.0, EFFORT)
    assert cost(student, better, image, 2.0) < 0.998 * cost(student, picture, image, 2.0)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert "quantize" not in vars(student.gaussian_conditional)


def test_effort_0_is_the_plain_file_and_a_bad_path_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    student, image = tiny("mean-scale"), grain(60, 100)
    plain = encode(student, image, 1.5)
    assert encode_with_effort(student, image, 1.5, 0) == plain
    assert improved(student, image, plain, 0, lambda data: True) == plain
    monkeypatch.setattr(iterative_encoding, "RATE", 1e6)
    assert encode_with_effort(student, image, 1.5, EFFORT) == plain


def test_rounding_is_drawn_between_neighbours_and_cold_it_is_rounding():
    values = torch.linspace(-3, 3, 601)
    warm, cold = (Annealed(t, 0)(values) for t in (0.5, 1e-3))
    assert ((warm - values).abs() <= 1).all()
    assert torch.equal(Annealed(0.5, 0)(values), warm)
    decided = (values - values.floor() - 0.5).abs() > 0.02
    assert torch.allclose(cold[decided], values.round()[decided], atol=1e-3)


def test_tiles_are_sought_apart_and_every_latent_may_move(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(iterative_encoding, "SIDE", 1)
    student, image = tiny("mean-scale"), grain(100, 130)
    picture = analyse(student, image)
    better = sought(student, picture, image, 3.0, EFFORT)
    moved = (better.y - picture.y).abs().sum((0, 1))
    cells = moved.reshape(2, 4, 3, 4).sum((1, 3))
    assert (cells[:, :2] > 0).all()  # the third column has two pixels of picture
    assert cost(student, better, image, 3.0) < cost(student, picture, image, 3.0)


def test_a_grey_picture_stays_grey():
    student, image = tiny("mean-scale"), grain(60, 100)[..., 0]
    assert decode(student, encode_with_effort(student, image, 2.0, 1)).ndim == 2


def test_a_target_holds_with_effort():
    student, image = tiny("mean-scale"), grain(60, 100)
    plain = file_of_bpp(student, image, 6.0).data
    better = file_of_bpp(student, image, 6.0, EFFORT).data
    assert better != plain
    assert info(better)["level"] == info(plain)["level"]
    assert info(better)["bpp"] <= 6.0


@pytest.mark.parametrize("effort", [-1, 10])
def test_an_effort_that_there_is_not_is_refused(effort: int):
    student, image = tiny("mean-scale"), grain(20, 20)
    with pytest.raises(UsageError, match=f"--effort {effort}: must be 0"):
        encode_with_effort(student, image, 1.0, effort)
    assert len(STEPS) == MOST_EFFORT + 1
