"""What dies or fills up, for real; whole searches are killed in the slow tests and in benchmarks/chaos.py."""

import json
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from driver import SETTINGS
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from PIL import Image

from nas_kd.data import open_images
from nas_kd.pace import outcome_of
from nas_kd.space import Arch, Transform
from nas_kd.student import Student
from nas_kd.study import Study
from nas_kd.train import CropPool, Recipe, Run
from nas_kd.trial import Outcome

ROOT = Path(__file__).parents[1]
SIDE = Transform("unshuffle4", (8, 8, 8), activation="leaky_relu", kernel=3)
TINY = Arch(SIDE, SIDE, M=16, hyper=8, shortcut=True)


@contextmanager
def full_disk(size_bytes):
    """No file can grow past this size: a write fails as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def training(checkpoint, steps):
    torch.manual_seed(0)
    crops = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    return Run(Student(TINY), CropPool(crops), Recipe(steps, batch=1), checkpoint=checkpoint)


def test_a_full_disk_interrupts_a_trial_and_its_last_checkpoint_stays(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    training(checkpoint, 1).run()
    longer = training(checkpoint, 2)
    with full_disk(20_000):
        outcome = outcome_of(lambda: Outcome([longer.run()["loss"]]))
    assert outcome.reason == "interrupted", outcome.attrs
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert training(checkpoint, 2).step == 1


def test_a_full_disk_under_the_storage_loses_no_trial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(SETTINGS)
    number, arch = study.ask(3)
    with full_disk(4096), pytest.raises(StorageInternalError):
        study.tell(number, Outcome([1.0, 1.0]))
    assert study.trials[number].state == TrialState.RUNNING
    study.reap()
    again, same = study.ask(3)
    assert same == arch
    assert study.tell(again, Outcome([1.0, 1.0])) == TrialState.COMPLETE


def test_an_image_that_is_corrupted_later_interrupts_a_trial(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    images = open_images(str(tmp_path), "eval")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n, and then nothing")
    assert outcome_of(lambda: Outcome([images.images[0].mean()])).reason == "interrupted"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("victim", ["driver", "worker", "raylet", "ctrl-c"])
def test_a_search_that_is_killed_loses_nothing(victim):
    chaos = [sys.executable, ROOT / "benchmarks" / "chaos.py", "--quick", "--victims", victim]
    done = subprocess.run(chaos, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kills"] + said["missed"] == 1
    zeros = ("lost", "duplicated", "stale_running", "hung", "last_exit_code")
    assert {name: said[name] for name in zeros} == dict.fromkeys(zeros, 0)
