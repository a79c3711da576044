import numpy as np
import pytest
import torch
from PIL import Image

from nas_kd.codec.search_space import load_space
from nas_kd.errors import NasKdError, StudyError
from nas_kd.study.front import dominates
from nas_kd.study.prepare import prepare
from nas_kd.study.ranking import Scored, draws, rank, score
from nas_kd.study.record import Lost, Outcome
from nas_kd.study.study import Settings, Study, open_study
from nas_kd.study.task import task_of
from nas_kd.teachers.teacher import load_teacher

torch.set_num_threads(1)


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(noise).resize((128, 96)).save(tmp_path / "pictures" / "a.png")
    small = {"steps": 1, "warmup": 1, "crops": 16, "crop_size": 64, "batch": 1}
    pictures = {"data": "pictures", "eval_data": "pictures"}
    return Settings("s", "demo", objectives=("bd_rate", "flops"), rank=4, **small, **pictures)


@pytest.mark.thorough
def test_the_best_ranked_archs_are_tried_first_and_a_resumed_study_keeps_the_order(settings):
    study, heard = Study(settings), []
    prepared = prepare(study, load_teacher("mini"), lambda kind, detail: None)
    task = task_of(prepared)

    def scores(points):
        return (score(task, "demo", point) for point in points)

    rank(study, 6, scores, lambda kind, detail: heard.append(detail))
    points = [(r["rd_cost"], r["macs"]) for r in study.ranked]
    assert len(points) == 4
    for place, point in enumerate(points):
        assert not any(dominates(later, point) for later in points[place + 1 :])
    wanted = [study.space.arch(r["params"]).key for r in study.ranked]
    asked = []
    for _ in range(2):
        number, arch = study.ask(9)
        study.tell(number, Outcome([1.0, 1.0]))
        asked.append(arch.key)
    again = open_study("s")
    rank(again, 6, scores, lambda kind, detail: pytest.fail("ranked twice"))
    for _ in range(3):
        number, arch = again.ask(9)
        again.tell(number, Outcome([1.0, 1.0]))
        asked.append(arch.key)
    assert asked[:4] == wanted  # the fifth is the sampler's
    assert heard[-1] == "ranked by their slices: 4 of 4 archs"


def test_an_arch_whose_slice_is_no_number_is_left_out_and_the_others_are_ranked(settings):
    study, heard = Study(settings), []
    nan = Lost("nan", "level 1: rate is not finite")

    def scores(points):
        return [nan, *(Scored(p, 1.0, i) for i, p in enumerate(points[1:]))]

    rank(study, 6, scores, lambda kind, detail: heard.append(detail))
    assert [one["macs"] for one in study.ranked] == [0, 1, 2]
    assert heard == [
        "ranked by their slices: 4 of 4 archs, 1 left out (nan: level 1: rate is not finite)"
    ]


def test_a_ranking_that_was_interrupted_is_done_again(settings):
    study, full = Study(settings), Lost("interrupted", "No space left on device")
    with pytest.raises(NasKdError, match="interrupted .No space left on device.; mend"):
        rank(study, 6, lambda points: [full for _ in points], lambda kind, detail: None)
    assert study.ranked is None


def test_draws_are_different_archs_and_end_with_the_space():
    space = load_space("prim")
    keys = [arch.key for arch in draws(space, 100, 0)]
    assert len(set(keys)) == len(keys) <= space.size
    first = draws(space, 3, 0)
    assert first[:2] == [space.extreme(True), space.extreme(False)]
    assert len(first) == 3


def test_ranking_needs_slices():
    with pytest.raises(StudyError, match="take init = 'shared'"):
        Settings("s", "demo", init="scratch", rank=5)
