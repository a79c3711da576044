import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from nas_kd.data.images import PHOTOGRAPHS, photograph
from nas_kd.data.overlap import warn_of_overlap


@pytest.fixture
def folders(tmp_path):
    for number, name in enumerate(("train/a.png", "train/deep/b.png", "eval/c.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((20, 20, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return str(tmp_path / "train"), str(tmp_path / "eval")


def test_pictures_of_their_own_are_no_overlap_and_say_nothing(folders, caplog):
    assert warn_of_overlap(*folders) == warn_of_overlap("builtin", "builtin") == 0
    assert not caplog.records


def test_one_folder_for_both_and_copies_under_other_names_are_counted(folders, caplog, tmp_path):
    train, judged = folders
    assert warn_of_overlap(train, train) == 2
    shutil.copy(f"{train}/deep/b.png", f"{judged}/copy.png")
    (tmp_path / "eval" / "notes.txt").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        assert warn_of_overlap(train, judged) == 1
    assert "1 of 2 pictures of --eval-data" in caplog.text


def test_a_built_in_photograph_in_a_folder_is_counted(folders):
    train, judged = folders
    for split, folder, order in (("eval", train, (train, "builtin")), ("train", judged, None)):
        name = PHOTOGRAPHS[split][0]
        with open(f"{folder}/{name.rpartition('/')[2]}", "wb") as file:
            file.write(photograph(name))
        assert warn_of_overlap(*(order or ("builtin", judged))) == 1
