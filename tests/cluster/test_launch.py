import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from optuna.trial import TrialState
from PIL import Image
from safetensors.torch import load_file, save_file

from nas_kd.cluster import launch, raylet
from nas_kd.cluster.gpu_sharing import Placement
from nas_kd.cluster.launch import Machine, search
from nas_kd.cluster.raylet import temporary_folder
from nas_kd.cluster.tune import ray_up, start_ray
from nas_kd.cluster.worker import is_fault
from nas_kd.device import one_thread
from nas_kd.errors import DataError, NasKdError, UsageError
from nas_kd.places import CACHE
from nas_kd.reasons import Reason
from nas_kd.study.polish import best_folder, gained
from nas_kd.study.prepare import prepare
from nas_kd.study.progress import EVENTS, NOW
from nas_kd.study.record import Outcome, record
from nas_kd.study.study import COUNTED, Settings, Study, open_study
from nas_kd.study.task import task_of
from nas_kd.study.trial import run_trial
from nas_kd.supernet.warmup import SHARED
from nas_kd.teachers.targets import TARGETS, limit_pools
from nas_kd.teachers.teacher import load_teacher


@pytest.fixture(scope="module")
def ray():
    """One Ray for all searches here: it takes long to start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        start_ray(1)
        yield ray
        ray.shutdown()


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, columns = np.mgrid[0:96, 0:128]
    red = 128 + 90 * np.sin(rows / 9.0) * np.cos(columns / 13.0)
    picture = np.stack([red, red[::-1], 255 - red], axis=2).astype(np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(picture).save(tmp_path / "pictures" / "waves.png")

    def make(**changes):
        given = {"name": "s", "space": "demo", "objectives": ("bd_rate", "flops"), "steps": 2}
        given |= {"crops": 16, "crop_size": 64, "batch": 1, "warmup": 2}
        given |= {"data": str(tmp_path / "pictures"), "eval_data": str(tmp_path / "pictures")}
        return Settings(**given | changes)

    return make


def test_outputs_above_the_limit_end_a_search_before_anything_is_written(settings):
    limit_pools(CACHE / TARGETS, 1e-4)
    with pytest.raises(UsageError, match="more than the 0.0001 GB that .* raise the limit"):
        search(settings(), 1, Machine(1), lambda kind, detail: None)
    assert [path.name for path in Path("studies").iterdir()] == [CACHE.name]


def test_pictures_that_cannot_serve_leave_no_study_that_refuses_the_corrected_command(
    settings, tmp_path
):
    (tmp_path / "empty").mkdir()
    for key in ("data", "eval_data"):
        with pytest.raises(DataError, match="no image files in it"):
            search(settings(**{key: str(tmp_path / "empty")}), 1, Machine(1), lambda *heard: None)
        assert not Path("studies/s").exists()
    assert Study(settings()).begun_here


@pytest.mark.parametrize(
    ("folder", "short", "chosen"),
    [("/tmp", "/tmp", None), ("/t" * 60, "/tmp", "/tmp/ray"), ("/ö" * 18, "/tmp", "/tmp/ray")],
)
def test_rays_sockets_have_room_in_their_paths(folder, short, chosen):
    assert temporary_folder(folder, short) == chosen


def test_a_long_folder_and_no_short_one_say_what_to_set():
    with pytest.raises(UsageError, match="set RAY_TMPDIR to a short folder"):
        temporary_folder("/t" * 60, "/nowhere")


def test_ray_leaves_sigterm_to_the_command(ray):
    (mask,) = re.findall(r"SigCgt:\s+(\w+)", Path("/proc/self/status").read_text())
    caught = bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)
    handler = signal.getsignal(signal.SIGTERM)
    assert handler in (signal.SIG_DFL, signal.default_int_handler)
    assert caught == (handler != signal.SIG_DFL)


def test_a_search_on_a_real_ray_spends_its_budget_and_then_has_nothing_to_do(ray, settings):
    heard = []
    search(settings(), 2, Machine(1), lambda kind, detail: heard.append((kind, detail)))
    study = open_study("s")
    assert study.counted() == 2
    assert [detail.number for kind, detail in heard if kind == "trial"] == [0, 1]
    for trial in study.trials:
        assert len(trial.user_attrs["rd"]["bpp_est"]) == 6
        assert (study.student_folder(trial) / "student.safetensors").is_file()
        assert not (study.student_folder(trial) / "checkpoint.pt").exists()
        assert not (study.student_folder(trial) / NOW).exists()
        (events,) = (study.folder / EVENTS / f"trial-{trial.number:04d}").iterdir()
        assert b"train/loss" in events.read_bytes()
    heard.clear()
    search(settings(), 2, Machine(1), lambda kind, detail: heard.append((kind, detail)))
    assert heard == []


@pytest.mark.thorough
def test_trials_at_once_in_one_worker_end_as_they_do_alone(ray, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "placed", lambda *given: Placement(1, 2, 0.0, 1, 0.0))
    study = search(settings(steps=4), 3, Machine(1), lambda kind, detail: None)
    prepared = prepare(study, load_teacher("mini"), lambda kind, detail: None)
    with one_thread():
        for trial in study.trials:
            found = record(trial)
            alone = run_trial(task_of(prepared), found.arch, tmp_path / f"alone-{trial.number}")
            assert trial.user_attrs["rd"] == alone.attrs["rd"]
    assert len({record(trial).arch_key for trial in study.trials}) == 3


def poisoned(folder, part):
    """Shared weights of which one part is no number: of some archs the slices are none, of others they are."""
    tensors = load_file(folder / SHARED)
    for name, tensor in tensors.items():
        tensors[name] = tensor * float("nan") if part in name else tensor
    save_file(tensors, folder / SHARED)


@pytest.mark.slow
def test_a_nan_in_ranking_or_polish_loses_that_student_alone_and_the_search_ends(ray, settings):
    asked = settings(objectives=("rd_cost", "flops"), rank=6, warmup=0, steps=0, polish=2, lr=1e30)
    prepared = prepare(Study(asked), load_teacher("mini"), lambda kind, detail: None)
    poisoned(prepared.shared, ".checkerboard-")
    heard = []
    study = search(asked, 1, Machine(1), lambda kind, detail: heard.append(str(detail)))
    kinds = {study.space.arch(one["params"]).entropy for one in study.ranked}
    assert (kinds, 0 < len(study.ranked) < 6) == ({"mean-scale"}, True)
    left_out = f"{6 - len(study.ranked)} left out (nan: "
    assert [said for said in heard if said.startswith("ranked") and left_out in said]
    (member,) = study.front()
    assert (gained(study, member), best_folder(study, member)) == (
        None,
        study.student_folder(member),
    )
    told = "trial 0 keeps its unpolished student (nan: loss is "
    assert [said for said in heard if said.startswith("polished: 1 of 1") and told in said]
    heard.clear()
    search(asked, 1, Machine(1), lambda kind, detail: heard.append(str(detail)))
    assert heard == []


def test_ray_ends_with_its_search_or_with_the_last_of_several(settings, monkeypatch):
    log = []

    @contextmanager
    def ray():
        log.append("up")
        yield
        log.append("down")

    def run(study, budget, machine, prepared, listen, up):
        up.enter_context(ray())
        log.append(study.settings.name)

    monkeypatch.setattr(launch, "prepare", lambda *given: None)
    monkeypatch.setattr(launch, "_run", run)
    search(settings(name="a"), 1, Machine(1), print)
    assert log == ["up", "a", "down"]
    log.clear()
    with ExitStack() as after:
        for name in ("b", "c"):
            search(settings(name=name), 1, Machine(1), print, after)
            assert "down" not in log
    assert log[-2:] == ["down", "down"]


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs on each of which four trials are best."""
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 2)
    found = {"trials": 4, "measured": []}
    monkeypatch.setattr(launch, "trials_per_gpu", lambda *given: found)


def placed(study, budget=99, **given):
    place = launch.placed(Machine(6, **given), study, (0.01,), lambda kind, detail: None, budget)
    return place.workers, place.lanes, place.gpus


def test_trials_share_gpus_in_one_process_each_as_measured_or_as_told(settings, gpus):
    study = Study(settings())
    assert placed(study) == (2, 3, 1.0)
    assert study.optuna.user_attrs["packing"]["trials"] == 4
    assert placed(study, trials_per_gpu=2) == (2, 2, 1.0)
    assert placed(study, trials_per_gpu=1) == (2, 1, 1.0)
    assert placed(study, trials_per_gpu=0) == (6, 1, 0.0)
    assert placed(study, address="head:6379") == (6, 1, 0.0)
    assert placed(study, address="head:6379", trials_per_gpu=1) == (6, 1, 1.0)
    assert placed(study, address="head:6379", trials_per_gpu=4) == (2, 4, 1.0)


def test_a_few_trials_are_spread_over_all_gpus(settings, gpus):
    assert placed(Study(settings()), budget=3) == (2, 2, 1.0)
    assert placed(Study(settings()), budget=2) == (2, 1, 1.0)


def test_without_a_gpu_trials_train_on_the_cpu(settings, monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 0)
    assert placed(Study(settings())) == (6, 1, 0.0)


@pytest.mark.parametrize("trials", [2, "auto"])
def test_trials_that_are_to_share_a_gpu_that_is_not_there_are_refused(
    settings, monkeypatch, trials
):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match=f"--trials-per-gpu {trials}: PyTorch sees no GPU"):
        search(settings(), 1, Machine(1, trials_per_gpu=trials), lambda kind, detail: None)
    assert not Path("studies").exists()


def saved():
    return Path("studies/s/students").glob("*/checkpoint.pt")


def is_past_step_20(checkpoint):
    return torch.load(checkpoint, weights_only=True)["step"] > 20


def kill_the_worker_once_it_has_saved(killed):
    until = time.monotonic() + 120
    while time.monotonic() < until and not any(map(is_past_step_20, saved())):
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::ResourceTrainable"):
            process.kill()
            killed.append(process.pid)


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_goes_on_from_its_checkpoint(ray, settings):
    killed = []
    killer = threading.Thread(target=kill_the_worker_once_it_has_saved, args=(killed,))
    killer.start()
    long = settings(steps=300, checkpoint_s=0.0)
    search(long, 1, Machine(1), lambda kind, detail: None)
    killer.join()
    assert len(killed) == 1
    first, second = open_study("s").trials
    assert first.state == TrialState.FAIL
    assert second.state in COUNTED
    assert first.user_attrs["reason"] == "worker_died"
    assert second.user_attrs["retry_of"] == first.number
    assert second.user_attrs["first_step"] > 20


@pytest.mark.slow
def test_a_picture_that_goes_bad_ends_the_search_and_once_mended_the_trial_goes_on(
    ray, settings, monkeypatch
):
    picture = Path("eval/waves.png")
    picture.parent.mkdir()
    whole = Path("pictures/waves.png").read_bytes()
    picture.write_bytes(whole)
    trials_begin = launch._run

    def spoilt(*given):  # between what the driver reads and what the workers do
        picture.write_bytes(whole[:200])
        trials_begin(*given)

    given = settings(eval_data=str(picture.parent.resolve()), steps=20)
    monkeypatch.setattr(launch, "_run", spoilt)
    with pytest.raises(NasKdError, match="3 trials in a row failed .*eval"):
        search(given, 1, Machine(1), lambda kind, detail: None)
    monkeypatch.setattr(launch, "_run", trials_begin)
    failed = open_study("s").trials
    assert {t.state for t in failed[:3]} == {TrialState.FAIL}
    assert len({t.user_attrs["arch_key"] for t in failed[:3]}) == 1
    picture.write_bytes(whole)
    study = search(given, 1, Machine(1), lambda kind, detail: None)
    assert study.counted() == 1
    assert {t.state for t in study.trials} <= {TrialState.FAIL, *COUNTED}
    (ended,) = (t for t in study.trials if t.state in COUNTED)
    assert ended.user_attrs["arch_key"] == failed[0].user_attrs["arch_key"]


@pytest.mark.slow
def test_early_stopping_prunes_at_a_rung_and_keeps_the_checkpoint(ray, settings):
    study = search(
        settings(steps=180, early_stopping=True), 9, Machine(1), lambda kind, detail: None
    )
    assert study.counted() == 9
    reasons = {t.number: t.user_attrs.get("reason") or "" for t in study.trials}
    stopped = [t for t in study.trials if Reason.of(reasons[t.number]) == Reason.STOPPED]
    assert stopped, reasons
    for trial in stopped:
        assert trial.state == TrialState.PRUNED
        step = reasons[trial.number].removeprefix(Reason.STOPPED).strip()
        assert step in trial.user_attrs["rungs"]
        assert (study.student_folder(trial) / "checkpoint.pt").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_joins_a_cluster_and_trains_on_both_of_its_nodes(settings):
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        machine = Machine(2, address=cluster.address)
        study = search(settings(steps=100), 6, machine, lambda kind, detail: None)
    finally:
        cluster.shutdown()
    assert study.counted() == 6
    assert len({t.user_attrs["ray_node"] for t in study.trials}) == 2
    for trial in study.trials:
        assert (study.student_folder(trial) / "student.safetensors").is_file()


NODE = """
mount -t tmpfs none {students}
mount -t tmpfs none {cache}
mount -t tmpfs none {pictures}
mount -t tmpfs none {scratch}
exec {ray} start --address={address} --num-cpus=1 --block
"""


def hidden_node(address):
    """A node in a mount namespace of its own, to which the study's folders are empty."""
    folders = {"students": "studies/s/students", "cache": "studies/.cache"}
    folders |= {"pictures": "pictures", "scratch": "scratch"}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    paths = {name: Path(folder).resolve() for name, folder in folders.items()}
    script = NODE.format(ray=Path(sys.executable).with_name("ray"), address=address, **paths)
    return subprocess.Popen(["unshare", "--mount", "sh", "-ec", script], stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="mount namespaces need root",
)
def test_a_node_with_a_disk_of_its_own_fetches_what_it_needs_and_brings_its_students_home(
    settings, monkeypatch
):
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    node = hidden_node(cluster.address)
    monkeypatch.setattr(tempfile, "tempdir", str(Path("scratch").resolve()))  # Tune's, too
    try:
        machine = Machine(1, address=cluster.address)
        study = search(settings(steps=4, rank=3), 3, machine, lambda kind, detail: None)
    finally:
        node.terminate()
        node.wait()
        cluster.shutdown()
    assert len(study.ranked) == 3
    assert study.counted() == 3
    for trial in study.trials:
        names = {p.name for p in study.student_folder(trial).iterdir()}
        assert {"student.safetensors", "arch.json"} <= names
        assert "checkpoint.pt" not in names


def kill_the_raylet_and_wait():
    for process in psutil.Process().children(recursive=True):
        if process.name() == "raylet":
            process.kill()
    time.sleep(100)


@pytest.mark.slow
def test_a_search_ends_with_its_raylet_also_where_ctrl_c_is_ignored():
    import ray

    if ray.is_initialized():
        ray.shutdown()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background job
    try:
        with pytest.raises(NasKdError, match="Ray died"), ray_up(1, None):
            kill_the_raylet_and_wait()
    finally:
        signal.signal(signal.SIGINT, before)


class Raylet:
    """A child process that dies when it is looked at for the second time."""

    looks = 0

    def name(self):
        return "raylet"

    def status(self):
        self.looks += 1
        return psutil.STATUS_RUNNING if self.looks == 1 else psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("over", [False, True])
def test_only_a_raylet_that_dies_before_its_ray_is_over_interrupts(monkeypatch, over):
    sent, ended = [], threading.Event()
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [Raylet()])
    monkeypatch.setattr(raylet.os, "kill", lambda *given: sent.append(given))
    monkeypatch.setattr(ended, "wait", lambda seconds: over)
    raylet.watch_raylet(ended)
    assert sent == ([] if over else [(os.getpid(), raylet.RAY_DIED)])


@pytest.mark.parametrize(
    ("reason", "state", "fault"),
    [
        (None, TrialState.COMPLETE, False),
        ("nan", TrialState.PRUNED, False),
        ("worker_died", TrialState.FAIL, False),
        ("worker_died", TrialState.PRUNED, True),
        ("interrupted", TrialState.FAIL, True),
        ("crash", TrialState.FAIL, True),
        ("energy: noisy", TrialState.FAIL, False),
    ],
)
def test_what_counts_towards_giving_up(reason, state, fault):
    assert is_fault(Outcome(None, reason), state) == fault
