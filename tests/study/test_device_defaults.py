"""Defaults by device: chosen, told, stored with the study, and kept by one that goes on."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nas_kd.cli.main import main
from nas_kd.codec.search_space import load_space
from nas_kd.errors import StudyError
from nas_kd.study import device_defaults
from nas_kd.study.device_defaults import BATCH, chosen, settled, steps_of
from nas_kd.study.settings import Settings, asked_studies, named
from nas_kd.study.study import Study, open_study

STEP_S = 0.005


def of_gpu(**said):
    return chosen(named("s", said), "cuda", step_s=lambda s: STEP_S)


def test_on_a_cpu_defaults_are_those_of_the_schema_and_nothing_is_told():
    assert chosen(named("s", {}), "cpu") == (Settings("s", "demo"), None)


def test_on_a_gpu_batches_are_larger_and_a_trial_takes_a_minute():
    found, words = of_gpu()
    assert found == replace(Settings("s", "demo"), batch=16, steps=12000)
    assert words == "by the GPU: batch = 16, steps = 12000 (60 s a trial at 5.0 ms)"


def test_the_step_is_measured_with_the_batch_that_was_chosen_or_said():
    batches = []

    def step_s(settings):
        batches.append(settings.batch)
        return STEP_S

    chosen(named("s", {}), "cuda", step_s=step_s)
    chosen(named("s", {"batch": 4}), "cuda", step_s=step_s)
    assert batches == [BATCH, 4]


def test_by_itself_a_step_of_a_middling_arch_is_measured(monkeypatch):
    seen = []

    def measured(arch, settings, device):
        seen.append((arch, settings.batch))
        return 2 * STEP_S

    monkeypatch.setattr("nas_kd.study.forecast.measured_step_s", measured)
    assert chosen(named("s", {}), "cuda")[0].steps == 6000
    ((arch, batch),) = seen
    assert (load_space("demo").params_of(arch) is not None, batch) == (True, BATCH)


def test_what_is_said_wins_over_the_device():
    assert of_gpu(batch=3)[0].batch == 3
    assert of_gpu(steps=7)[0].steps == 7
    assert of_gpu(batch=2, steps=2000) == (Settings("s", "demo"), None)


def test_what_a_study_file_or_an_effort_says_wins_over_the_device(tmp_path: Path):
    (tmp_path / "f.toml").write_text(
        'space = "demo"\n[[each]]\nname = "a"\nsteps = 8\n[[each]]\nname = "b"\n'
    )
    a, b = asked_studies(tmp_path / "f.toml", given={"seed": 1}, effort={"batch": 8})
    of_a, of_b = (chosen(one, "cuda", step_s=lambda s: STEP_S)[0] for one in (a, b))
    assert (of_a.steps, of_a.batch) == (8, 8)
    assert (of_b.steps, of_b.batch) == (12000, 8)


@pytest.mark.parametrize(
    ("step_s", "steps"),
    [(0.00473, 12000), (0.011, 5400), (0.3, 200), (2.0, 100), (0.0001, 600000)],
)
def test_steps_have_two_digits_and_are_a_hundred_at_least(step_s, steps):
    assert steps_of(step_s) == steps


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A machine with a GPU by name, whose steps take as long as is told here."""
    said = {"device": "cuda", "step_s": STEP_S}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(device_defaults, "likely_device", lambda: said["device"])
    monkeypatch.setattr(device_defaults, "_measured", lambda s: said["step_s"])
    return said


def test_a_study_that_goes_on_keeps_what_was_chosen_when_it_was_begun(gpu):
    first, _ = settled(named("s", {}))
    Study(first)
    stored = open_study("s").settings
    assert (stored.batch, stored.steps) == (16, 12000)
    gpu["step_s"] = 2 * STEP_S  # a slower GPU
    assert settled(named("s", {})) == (first, "as the study was begun: batch = 16, steps = 12000")
    gpu["device"] = "cpu"
    again, _ = settled(named("s", {}))
    assert again == first
    assert not Study(again).begun_here


def test_a_study_begun_on_a_cpu_keeps_its_defaults_on_a_gpu(gpu):
    gpu["device"] = "cpu"
    first, _ = settled(named("s", {}))
    Study(first)
    gpu["device"] = "cuda"
    assert settled(named("s", {})) == (first, None)


def test_what_is_said_against_a_study_that_was_begun_is_still_refused(gpu):
    study = Study(settled(named("s", {}))[0])
    study.ask(1)
    with study.driving(), pytest.raises(StudyError, match="steps = 9, but it was begun with 12000"):
        Study(settled(named("s", {"steps": 9}))[0])


@pytest.mark.parametrize(("words", "told"), [((), True), (("--trials-per-gpu", "0"), False)])
def test_the_command_tells_what_was_chosen_and_nothing_where_trials_train_on_the_cpu(
    gpu, monkeypatch, capsys, words, told
):
    monkeypatch.setattr("nas_kd.study.forecast.measured_step_s", lambda *given: STEP_S)
    asked = ("search", "--objectives", "bd_rate,flops", "--plan", *words)
    monkeypatch.setattr(sys, "argv", ["nas-kd", *asked])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    assert ("by the GPU: batch = 16, steps = 12000 (60 s" in said) == told
    assert ("of 12000 steps on 16 crops" in said) == told
