"""Energy is read of what may be on the front; what is not read is said so, and read once that changes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from optuna.trial import TrialState

from nas_kd.cluster.worker import Order
from nas_kd.codec.arch import prim
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.data.images import ImageSet
from nas_kd.distillation.training import CropPool
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.measurement.reading import Reading
from nas_kd.recipe import Recipe, Weights
from nas_kd.report.live import Watch
from nas_kd.report.tables import _caption
from nas_kd.report.trial_rows import entry
from nas_kd.study.anchor import Anchor
from nas_kd.study.domination import (
    Bound,
    absences,
    bound_of,
    drop_checkpoints,
    line_up_undominated,
)
from nas_kd.study.energy_guess import work
from nas_kd.study.front import pareto_front
from nas_kd.study.prepared import Prepared
from nas_kd.study.record import CHECKPOINT, Outcome, record
from nas_kd.study.sampler import history_of
from nas_kd.study.settings import Settings
from nas_kd.study.study import Study, open_study
from nas_kd.study.trial import Task, run_trial

DEMO = load_space("demo")
OBJECTIVES = ("rd_cost", "flops", "energy")
READ = 12


def energy_mj(arch) -> float:
    done = work(arch, "both")
    return 2e-9 * done.macs + 1e-8 * done.bytes + 2e-2 * done.kernels


def cost_bpp(arch, seed: int) -> float:
    """Falls with the MACs, and as much by chance."""
    return (arch_cost(arch).total.macs / 1e9) ** -0.3 + np.random.default_rng(seed).uniform()


def outcome(values, mj: float, quality_alone: bool = False) -> Outcome:
    if quality_alone:
        absent = Reading.unavailable("not read: trial 0").to_json()
        attrs = {"quality": {"rd_cost": values[0]}, "energy": absent}
        return Outcome(None, "dominated: trial 0", attrs=attrs)
    return Outcome(values, attrs={"energy": Reading.measured(mj, 0.1, "mJ", "nvml").to_json()})


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a study with so many trials that were read."""
    root = tmp_path_factory.mktemp("begun")
    study = Study(Settings("s", "demo", objectives=OBJECTIVES, sampler="random"), root=root)
    for seed in range(READ):
        number, arch = study.ask(99)
        mj, macs = energy_mj(arch), float(arch_cost(arch).total.macs)
        study.tell(number, outcome([cost_bpp(arch, seed), macs, mj], mj))
    return root


@pytest.fixture
def study(begun, tmp_path):
    """A copy of its own."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    return open_study("s", root=tmp_path)


@pytest.fixture(scope="module")
def dear():
    """An arch that draws more than most."""
    return max((DEMO.draw(seed) for seed in range(100, 110)), key=energy_mj)


def test_what_is_not_read_would_not_have_been_on_the_front(study):
    known = [trial.values for trial in study.trials]
    excluded = 0
    for seed in range(100, 120):
        arch = DEMO.draw(seed)
        own = [cost_bpp(arch, seed), float(arch_cost(arch).total.macs), energy_mj(arch)]
        bound = bound_of(study, arch)
        if bound is not None and bound.excludes(own[0], None):
            excluded += 1
            assert len(known) not in pareto_front([*known, own])
            rival = study.trials[bound.trial].values
            assert all(a < b for a, b in zip(rival, own, strict=True))
    assert excluded >= 3


def test_an_arch_of_less_energy_than_all_rivals_is_read_however_bad_it_is(study):
    cheapest = DEMO.extreme(False)
    assert energy_mj(cheapest) < min(trial.values[2] for trial in study.trials)
    assert bound_of(study, cheapest) is None


@pytest.mark.parametrize(
    "objectives",
    [
        ("rd_cost", "flops", "latency"),
        ("rd_cost", "energy", "latency"),
        ("bd_rate", "flops", "energy"),  # these trials have no BD-rates by picture
    ],
)
def test_where_it_cannot_be_known_everything_is_read(study, dear, objectives):
    assert bound_of(study, dear) is not None
    study.settings = replace(study.settings, objectives=objectives)
    assert bound_of(study, dear) is None


def test_in_a_grid_and_before_there_are_eight_readings_everything_is_read(study, dear, monkeypatch):
    monkeypatch.setattr(study, "grid", [])
    assert bound_of(study, dear) is None
    monkeypatch.setattr(study, "grid", None)
    assert bound_of(study, dear) is not None
    monkeypatch.setattr(type(study), "trials", study.trials[:7])
    assert bound_of(study, dear) is None


def test_a_quality_is_excluded_where_it_is_worse_beyond_chance_picture_by_picture():
    bound = Bound(10.0, 3, [-20.0, 5.0, 15.0, 40.0])
    assert bound.excludes(11.0, [-19.0, 6.1, 15.9, 41.0])
    assert not bound.excludes(9.0, [-19.0, 6.1, 15.9, 41.0])
    assert not bound.excludes(11.0, [-21.0, 3.9, 14.1, 39.0])
    assert not bound.excludes(11.0, [-25.0, 8.0, 15.0, 46.0])
    assert not bound.excludes(50.0, [])
    assert not bound.excludes(50.0, None)


def test_an_rd_cost_is_excluded_where_it_is_worse():
    assert Bound(10.0, 3).excludes(10.1, None)
    assert not Bound(10.0, 3).excludes(10.0, None)


def tell_unread(study, cost: float):
    """A trial whose energy was not read, with a checkpoint."""
    number, arch = study.ask(99)
    folder = study.student_folder(study.trials[number])
    folder.mkdir(parents=True)
    (folder / CHECKPOINT).write_bytes(b"weights")
    state = study.tell(number, outcome([cost], 0.0, quality_alone=True))
    assert state == TrialState.PRUNED
    return number, arch, folder / CHECKPOINT


def test_what_was_not_read_is_in_the_budget_and_known_to_the_sampler_and_said(study):
    number, arch, checkpoint = tell_unread(study, 9.0)
    assert study.counted() == READ + 1
    assert absences(study) == ["energy of 1 trial absent: dominated, and so not read"]
    assert absences(study)[0] in _caption(study, None, None)
    row = entry(study, study.trials[number], False)["row"]
    assert row[1] == "not read"
    assert 9.0 in row
    assert any("dominated: trial 0" in str(cell) for cell in row)
    progress = Watch(99, None).progress(study)
    assert (progress.unread, progress.infeasible) == (1, 0)
    known = history_of(study.trials, DEMO, 0)
    assert known.quality[arch] == (9.0, 0.0)
    assert known.lacks[arch] == 0.0
    assert arch not in known.costs["energy"]
    study.optuna.enqueue_trial(study.trials[number].params)  # the same arch is known
    assert study.ask(READ + 2) is None
    assert record(study.trials[-1]).same_as == number
    assert checkpoint.exists()


def test_what_is_dominated_no_more_is_read_without_training_and_counts_once(study, monkeypatch):
    best = min(trial.values[0] for trial in study.trials)
    number, arch, checkpoint = tell_unread(study, best - 1)
    assert line_up_undominated(study) == 1
    assert line_up_undominated(study) == 0
    assert study.counted() == READ
    again, same = study.ask(READ + 1)
    assert same == arch
    assert record(study.trials[again]).retry_of == number
    assert checkpoint.exists()  # it goes on from there
    assert study.ask(READ + 1) is None
    macs, mj = float(arch_cost(arch).total.macs), energy_mj(arch)
    study.tell(again, outcome([best - 1, macs, mj], mj))
    assert study.counted() == READ + 1
    assert again in [trial.number for trial in study.front()]
    assert not checkpoint.exists()
    assert absences(study) == []
    assert line_up_undominated(study) == 0


def test_what_stays_dominated_is_not_read_and_keeps_no_checkpoint(study, dear):
    study.optuna.enqueue_trial(DEMO.params_of(dear))
    _, arch, checkpoint = tell_unread(study, 9.0)
    assert arch == dear
    assert line_up_undominated(study) == 0
    drop_checkpoints(study)
    assert not checkpoint.exists()


@pytest.mark.parametrize("bound", [None, Bound(0.0, 3), Bound(1e9, 3)])
def test_a_trial_above_its_bound_is_scored_and_not_measured(tmp_path, bound):
    asked = []

    def measure(*given):
        asked.append(given)
        return Reading.measured(5.0, 0.1, "mJ", "nvml")

    images = ImageSet("one", [np.zeros((64, 64, 3), np.uint8)], ("black",), ((64, 64),), "f")
    pool = CropPool(torch.zeros(16, 3, 64, 64, dtype=torch.uint8))
    pool.latent_widths, pool.pictures = None, lambda: pool.crops.float()
    anchor = Anchor(RDCurve((0.1, 0.2), (30.0, 33.0)), None)
    task = Task((0.01,), Recipe(0), Weights(kd_y=0), OBJECTIVES, pool, images, anchor)
    task = replace(task, measures={"energy": measure})
    found = run_trial(task, prim(8, 16), tmp_path, bound=bound)
    if bound != Bound(0.0, 3):
        assert (found.reason, found.values[2], len(asked)) == (None, 5.0, 1)
        return
    assert (found.values, asked) == (None, [])
    assert found.reason.startswith("dominated: trial 3 has less of everything")
    known = found.record
    assert known.quality == {"rd_cost": known.rd_cost}
    assert known.readings["energy"].reason.startswith("not read: trial 3")


def test_the_bound_travels_with_the_order():
    prepared = Prepared(Settings("s", "demo"), (0.01,), *["/"] * 2, ANCHOR, "/s")
    for bound in (Bound(1.5, 2), Bound(1.5, 2, [1.0, None, 2.0])):
        order = Order(3, DEMO.draw(0), prepared, bound)
        assert Order.from_json(json.loads(json.dumps(order.to_json()))).bound == bound
    assert Order.from_json(replace(order, bound=None).to_json()).bound is None


ANCHOR = Anchor(RDCurve((0.1, 0.2), (30.0, 33.0)), None)
