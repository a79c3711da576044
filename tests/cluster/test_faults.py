"""What dies or fills up, for real; whole searches are killed in the slow tests and in benchmarks/chaos.py."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from driver import SETTINGS
from fakes import full_disk
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from PIL import Image

from nas_kd.cluster.worker import outcome_of
from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.checkpoint import WEIGHTS
from nas_kd.codec.student import Student
from nas_kd.data.images import open_images
from nas_kd.distillation.training import CropPool, Recipe, Run
from nas_kd.study.record import CHECKPOINT, Outcome
from nas_kd.study.study import COUNTED, Study, open_study
from nas_kd.testing.tiny_study import write_tiny_study

ROOT = Path(__file__).parents[2]

SIDE = Transform("trunk4", (0, 8, 8), kernel=3)
TINY = Arch(SIDE, SIDE, M=16, hyper=8)


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


@contextmanager
def little_memory(more_bytes):
    """This process can have so much address space more: an allocation fails as it does where memory is spent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Study(SETTINGS)


def checkpoint_of(study, number):
    """Where the trial's checkpoint lies, with one step in it."""
    checkpoint = study.student_folder(study.trials[number]) / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    training(checkpoint, 1).run()
    return checkpoint


def test_a_trial_that_is_out_of_memory_goes_on_from_its_checkpoint(study):
    number, arch = study.ask(3)
    checkpoint = checkpoint_of(study, number)
    crops = CropPool(torch.zeros(8, 3, 64, 64, dtype=torch.uint8))
    large = Run(Student(TINY), crops, Recipe(2, batch=8192), checkpoint=checkpoint)
    with little_memory(200_000_000):
        outcome = outcome_of(lambda: Outcome([large.run()["loss"]]))
    assert outcome.reason == "out_of_memory", outcome.attrs
    assert study.tell(number, outcome) == TrialState.FAIL
    again, same = study.ask(3)
    assert same == arch
    resumed = training(checkpoint, 2)
    assert resumed.step == 1
    assert study.tell(again, Outcome([resumed.run()["loss"], 1.0])) == TrialState.COMPLETE
    assert study.counted() == 1


def test_a_trial_whose_loss_is_not_a_number_is_counted_once_and_leaves_nothing_behind(study):
    number, arch = study.ask(3)
    checkpoint = checkpoint_of(study, number)
    hot = Run(Student(TINY), training(None, 1).pictures, Recipe(40, batch=1, lr=1e30))
    outcome = outcome_of(lambda: Outcome([hot.run()["loss"]]))
    assert outcome.reason == "nan", outcome.attrs
    assert study.tell(number, outcome) == TrialState.PRUNED
    assert study.counted() == 1
    assert not checkpoint.exists()
    assert Study(SETTINGS).reap() == 0
    assert study.ask(3)[1] != arch


FULL = """
mkdir -p studies/chaos/students
mount -t tmpfs -o size=64k none studies/chaos/students
{search} && exit 10
mount -o remount,size=64m studies/chaos/students
{search} || exit 11
cp -r studies/chaos/students kept
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="a file system of one's own needs root",
)
def test_a_search_on_a_full_disk_ends_and_goes_on_once_there_is_room(tmp_path, monkeypatch):
    write_tiny_study(tmp_path, "chaos")
    monkeypatch.chdir(tmp_path)
    words = "search chaos.toml --budget 2 --workers 1"
    search = f"{sys.executable} -c 'from nas_kd.cli.main import main; main()' {words}"
    script = FULL.format(search=search)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "3 trials in a row failed" in done.stderr
    trials = open_study("chaos").trials
    states = [t.state for t in trials]
    assert TrialState.RUNNING not in states
    assert TrialState.WAITING not in states
    ended = [t for t in trials if t.state in COUNTED]
    assert len(ended) == len({t.user_attrs["arch_key"] for t in ended}) == 2
    assert trials[0].user_attrs["reason"] == "interrupted"
    assert trials[0].user_attrs["arch_key"] in {t.user_attrs["arch_key"] for t in ended}
    for trial in ended:
        assert (Path("kept") / trial.user_attrs["arch_key"] / WEIGHTS).is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("victim", ["driver", "worker", "raylet", "ctrl-c"])
def test_a_search_that_is_killed_loses_nothing_and_goes_on_from_a_checkpoint(victim):
    chaos = [sys.executable, ROOT / "benchmarks" / "chaos.py", "--quick", "--victims", victim]
    chaos += ["--workers", "1", "--after-checkpoint", "1"]
    done = subprocess.run(chaos, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kills"] == said["struck_after_checkpoint"] == 1
    zeros = ("lost", "duplicated", "stale_running", "hung", "last_exit_code")
    assert {name: said[name] for name in zeros} == dict.fromkeys(zeros, 0)
    assert said["resumed_from_checkpoint"] == 1
