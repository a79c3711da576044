"""Evaluation: one analysis for all levels, batches, and real coding spread over processes, all with equal figures."""

import importlib
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from nas_kd.codec.arch import prim
from nas_kd.codec.checkpoint import ready
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import Student
from nas_kd.data import images as data
from nas_kd.data.images import ImageSet, held
from nas_kd.data.metrics import padded
from nas_kd.data.similarity import ms_ssim
from nas_kd.errors import EarlyStop, TrialFailed
from nas_kd.evaluation.rate_distortion import Measured, StudentCodec, batches, evaluate_real
from nas_kd.teachers.teacher import load_teacher

evaluation = importlib.import_module("nas_kd.evaluation.rate_distortion")

LMBDAS = (0.0018, 0.013, 0.0483)


def images(*sizes: tuple[int, int]) -> ImageSet:
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 256, (H // 8 + 1, W // 8 + 1, 3), np.uint8) for H, W in sizes]
    large = [np.kron(c, np.ones((8, 8, 1), np.uint8)) for c in coarse]
    cut = [image[:H, :W] for image, (H, W) in zip(large, sizes, strict=True)]
    return ImageSet("made", cut, tuple(map(str, range(len(sizes)))), sizes, "f")


def student(entropy: str) -> Student:
    torch.manual_seed(0)
    found = Student(replace(load_space("demo").extreme(largest=False), entropy=entropy), LMBDAS)
    found.start_from(torch.rand(8, 3, 64, 64))
    return found.eval()


@pytest.mark.parametrize("entropy", ["mean-scale", "checkerboard", "dual"])
@torch.no_grad()
def test_one_analysis_serves_all_levels_bit_for_bit(entropy):
    codec, x = StudentCodec(student(entropy)), torch.rand(2, 3, 64, 128)
    found = list(codec.every_level(x))
    for level, (x_hat, bits) in enumerate(found, start=1):
        alone = codec.reconstruct(x, level)
        assert torch.equal(x_hat, alone[0])
        assert torch.equal(bits, alone[1])
    assert len({float(bits.sum()) for _, bits in found}) == 3


@torch.no_grad()
def test_a_teacher_has_its_levels_in_order():
    teacher, x = load_teacher("mini"), torch.rand(1, 3, 64, 64)
    for level, (x_hat, bits) in enumerate(teacher.every_level(x), start=1):
        assert torch.equal(x_hat, teacher.reconstruct(x, level)[0])
        assert float(bits) == float(teacher.reconstruct(x, level)[1])


def test_the_analysis_runs_once_per_picture(monkeypatch):
    one, ran = student("mean-scale"), []
    analysis = one.analysis
    monkeypatch.setattr(one, "analysis", lambda x: ran.append(x.shape) or analysis(x))
    evaluation.evaluate(StudentCodec(one), images((64, 64), (60, 100)))
    assert ran == [(1, 3, 64, 64), (1, 3, 64, 128)]


def test_batches_hold_pictures_of_one_padded_size():
    some = images((64, 64), (60, 128), (64, 60), (128, 64), (10, 50), (33, 100))
    assert batches(some, 0) == [[0], [2], [4], [1], [5], [3]]
    assert batches(some, 2 * 64 * 64) == [[0, 2], [4], [1], [5], [3]]
    assert batches(some, 10**9) == [[0, 2, 4], [1, 5], [3]]


def test_a_batch_gives_every_picture_its_own_figures(monkeypatch):
    some, codec = images((64, 64), (60, 128), (50, 60)), StudentCodec(student("checkerboard"))
    alone = evaluation.evaluate(codec, some)
    monkeypatch.setattr(evaluation, "batches", lambda images, most_px: [[0, 2], [1]])
    together = evaluation.evaluate(codec, some)
    assert np.allclose(alone.rate, together.rate, rtol=1e-4)
    assert np.allclose(alone.psnr_db, together.psnr_db, rtol=1e-4)
    assert len({round(rate, 6) for rate in alone.rate[0]}) == 3


def test_what_is_not_finite_names_its_level():
    broken = student("mean-scale")
    with torch.no_grad():
        broken.gain_y.log_gain[1] = 1000.0
    with pytest.raises(TrialFailed, match="level 2: .*not finite"):
        evaluation.evaluate(StudentCodec(broken), images((64, 64)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_code_as_one_does(monkeypatch):
    one, some = ready(student("checkerboard")), images((64, 64), (60, 100), (70, 64))
    assert evaluate_real(one, some, 2) == evaluate_real(one, some, 1)
    monkeypatch.setattr(evaluation, "PROCESSES_PX", 0)
    monkeypatch.setattr(evaluation, "cores", lambda: 2)
    monkeypatch.setattr(evaluation, "_code", _disagree)
    with pytest.raises(TrialFailed, match="disagree") as told:
        evaluate_real(one, some)
    assert told.value.reason == "mismatch"


def _disagree(image):
    raise TrialFailed("mismatch", "level 1: decoder and encoder disagree")


UNGUARDED = """
from dataclasses import replace
import torch
from nas_kd.codec.arch import prim
from nas_kd.codec.checkpoint import ready
from nas_kd.codec.student import Student
from nas_kd.data.images import open_images
from nas_kd.evaluation.rate_distortion import evaluate_real
print("begun")
torch.manual_seed(0)
images = open_images("builtin", "eval")
few = replace(images, images=[i[:64, :64] for i in images.images][:2], names=images.names[:2], sizes=((64, 64),) * 2)
student = ready(Student(prim(8, 8), (0.01,)))
print(evaluate_real(student, few, processes=2).curve().bpp == evaluate_real(student, few, processes=1).curve().bpp)
"""


@pytest.mark.thorough
def test_a_script_without_a_guard_is_run_once_and_not_by_its_processes(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    words = [sys.executable, "-W", "ignore", str(tmp_path / "script.py")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["begun", "True"], done.stderr


def test_failures_travel_between_processes():
    for failure in (TrialFailed("nan", "loss is nan"), EarlyStop("stopped at step 3", "slow")):
        back = pickle.loads(pickle.dumps(failure))
        assert (type(back), back.reason, str(back)) == (type(failure), failure.reason, str(failure))


def test_pictures_are_decoded_once_where_they_fit(tmp_path, monkeypatch):
    from PIL import Image

    for name in "ab":
        Image.fromarray(images((64, 64)).images[0]).save(tmp_path / f"{name}.png")
    opened, decoded = data.open_images(str(tmp_path), "eval"), []
    decode = data._decode
    monkeypatch.setattr(data, "_decode", lambda raw: decoded.append(raw) or decode(raw))
    kept = held(opened)
    assert len(decoded) == 2
    assert all(np.array_equal(a, b) for a, b in zip(kept.images, opened.images, strict=True))
    decoded.clear()
    list(kept.images)
    assert not decoded
    monkeypatch.setattr(data, "HELD_BYTES", 64 * 64 * 3)
    assert held(opened) is opened


def test_padding_repeats_edges_to_a_multiple_of_64():
    x = torch.rand(1, 3, 65, 64)
    assert padded(x).shape == (1, 3, 128, 64)
    assert torch.equal(padded(x)[:, :, -1], x[:, :, -1])


def test_a_student_without_gains_has_one_level():
    torch.manual_seed(0)
    codec = StudentCodec(Student(prim(16), (0.01,)).eval())
    with torch.no_grad():
        assert len(list(codec.every_level(torch.rand(1, 3, 64, 64)))) == 1


def test_ms_ssim_is_taken_where_asked_for_and_of_the_same_pictures():
    codec, shown = StudentCodec(student("mean-scale")), images((161, 170), (64, 64))
    plain, asked = (evaluation.evaluate(codec, shown, similar=similar) for similar in (False, True))
    assert plain == replace(asked, ms_ssim=None)
    x_hat, _ = codec.reconstruct(padded(data.to_tensor(shown.images[0])), 2)
    restored = data.to_image(x_hat[..., :161, :170])
    assert asked.ms_ssim[1] == [pytest.approx(ms_ssim(restored, shown.images[0])), None]
    assert asked.similarity_per_image()[0].bpp == asked.per_image()[0].bpp
    assert Measured.from_json(asked.to_json()) == asked
