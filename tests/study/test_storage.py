import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from driver import SETTINGS, drive
from optuna.trial import TrialState
from postgres import missing, server

import nas_kd
from nas_kd.errors import StudyError
from nas_kd.study.record import Outcome
from nas_kd.study.storage import (
    FileLocks,
    PostgresLocks,
    constraints_set,
    full_url,
    is_postgresql,
    lined_up,
    live_trial,
    set_attr,
    set_constraints,
    shown,
)
from nas_kd.study.study import Study, open_study, storage_url

PRIVATE = ("._trial_id", "._storage", "._study_id", ".system_attrs", "set_trial_", "optuna._")


def test_what_is_taken_of_the_inside_of_optuna_5_0_0_still_works_and_by_one_door():
    """Where this fails with another version of Optuna, mend the part of storage.py that says so."""
    study = optuna.create_study()
    study.enqueue_trial({"N": 3})
    study.ask()
    frozen = study.trials[0]
    live_trial(study, frozen).suggest_int("N", 1, 4)
    set_attr(study, frozen, "arch_key", "a")
    set_constraints(study, frozen, [1.5, 0.0])
    now = study.trials[0]
    assert (now.params, lined_up(now)) == ({"N": 3}, {"N": 3}), optuna.__version__
    assert (now.user_attrs, constraints_set(now)) == ({"arch_key": "a"}, [1.5, 0.0])
    assert now.constraints == {"0": 1.5, "1": 0.0}, optuna.__version__
    package = Path(nas_kd.__file__).parent
    users = {p.name for p in package.rglob("*.py") if any(w in p.read_text() for w in PRIVATE)}
    assert users == {"storage.py"}


KINDS = [
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.skipif(bool(missing()), reason=str(missing()))),
]


@pytest.fixture(scope="module")
def postgresql():
    with server() as url:
        yield url


@pytest.fixture
def storage(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return request.getfixturevalue("postgresql") if request.param == "postgresql" else None


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nas_kd.study.study"])
    return context


def locks_of(storage, name):
    return PostgresLocks(full_url(storage), name) if storage else FileLocks(Path("locks"))


@pytest.mark.parametrize("storage", KINDS, indirect=True)
@pytest.mark.thorough
def test_drivers_share_a_study_and_one_that_is_killed_costs_nothing(storage, tmp_path, processes):
    budget, log = 12, tmp_path / "asked"
    first, *others = [
        processes.Process(target=drive, args=(str(tmp_path), storage, budget, 0.1))
        for _ in range(3)
    ]
    for process in (first, *others):
        process.start()
    until = time.monotonic() + 120
    while not log.exists() or log.read_text().count(f"{first.pid} ") < 2:
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    for process in (first, *others):
        process.join(120)
    assert [p.exitcode for p in (first, *others)] == [-signal.SIGKILL, 0, 0]

    trials = open_study("s", storage).trials
    states = Counter(t.state for t in trials)
    assert states[TrialState.COMPLETE] == budget
    assert states[TrialState.RUNNING] == states[TrialState.WAITING] == 0
    lost = [t for t in trials if t.state == TrialState.FAIL]
    retried = {t.user_attrs["retry_of"]: t for t in trials if "retry_of" in t.user_attrs}
    assert set(retried) == {t.number for t in lost if t.params}
    assert all(retried[t.number].params == t.params for t in lost if t.params)

    begun = [line.split() for line in log.read_text().splitlines()]
    numbers = [int(number) for _, number, _ in begun]
    assert len(numbers) == len(set(numbers))
    assert len({pid for pid, _, _ in begun}) == 3
    again = {t.user_attrs.get("arch_key") for t in lost}
    trained = Counter(key for _, _, key in begun if key not in again)
    assert set(trained.values()) == {1}


@pytest.mark.parametrize("storage", KINDS, indirect=True)
def test_a_driver_lives_until_it_leaves(storage):
    one, other = locks_of(storage, "a"), locks_of(storage, "a")
    assert not other.lives("d")
    one.join("d")
    assert other.lives("d")
    assert one.lives("d")
    assert not other.lives("e")
    one.leave("d")
    assert not other.lives("d")


@pytest.mark.parametrize("storage", KINDS, indirect=True)
def test_one_at_a_time_is_inside_the_lock_and_another_study_has_its_own(storage):
    one, other = locks_of(storage, "b"), locks_of(storage, "b")
    order = []

    def second():
        with other.exclusive():
            order.append("second")

    with one.exclusive():
        thread = threading.Thread(target=second)
        thread.start()
        if storage:
            with locks_of(storage, "c").exclusive():
                order.append("other study")
        time.sleep(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["other study"] * bool(storage) + ["first", "second"]


@pytest.mark.parametrize("storage", [KINDS[1]], indirect=True)
def test_a_driver_whose_connection_is_cut_takes_its_lock_up_again(storage):
    one, other = locks_of(storage, "d"), locks_of(storage, "d")
    one.join("d")
    other._call("pg_advisory_lock", "connects")
    with other._engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
    with one.exclusive():
        assert locks_of(storage, "d").lives("d")
    one.leave("d")


@pytest.mark.parametrize("locked_s", [6.0, pytest.param(30.0, marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_a_database_that_is_locked_is_waited_for(tmp_path, monkeypatch, locked_s):
    monkeypatch.chdir(tmp_path)
    study = Study(SETTINGS)
    begun, _ = study.ask(2)
    blocker = sqlite3.connect(study.folder / "study.db", check_same_thread=False)
    blocker.execute("BEGIN EXCLUSIVE")
    # Longer than the five seconds that sqlite3 waits by default.
    free = threading.Timer(locked_s, blocker.rollback)
    free.start()
    assert study.tell(begun, Outcome([1.0, 1.0])) == TrialState.COMPLETE
    free.join()
    blocker.close()
    number, _ = study.ask(2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    study.reap()
    assert study.counted() == 1
    assert study.trials[number].state == TrialState.FAIL


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://u:secret@h/db", "must be sqlite:// or postgresql://"),
        ("nonsense", "no database URL"),
        ("postgresql://u:secret@/db?host=/nowhere", "nowhere"),
    ],
)
def test_a_storage_that_cannot_serve_is_one_line_without_the_password(
    url, says, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=says) as caught:
        Study(SETTINGS, url)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("v2.6.0.a", "optuna storage upgrade --storage sqlite"),
        ("v99.0.0.a", "pip install -U optuna"),
    ],
)
def test_a_database_of_another_optuna_is_one_line_with_the_way_out(
    version, says, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Study(SETTINGS).ask(1)
    with closing(sqlite3.connect(SETTINGS.folder / "study.db")) as database, database:
        database.execute("update alembic_version set version_num = ?", (version,))
    for opens in (lambda: open_study("s"), lambda: Study(SETTINGS)):
        with pytest.raises(StudyError, match=f"another version of Optuna.*{says}") as caught:
            opens()
        assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SETTINGS.folder.mkdir(parents=True)
    (SETTINGS.folder / "study.db").write_text("no database at all, and long enough to be looked at")
    with pytest.raises(StudyError, match="file is not a database") as caught:
        open_study("s")
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").write_text("a file in the folder's place")
    with pytest.raises(StudyError, match="studies/s: cannot be written"):
        Study(SETTINGS)


def test_a_storage_that_is_refused_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match="unable to open database file"):
        Study(SETTINGS, f"sqlite:///{tmp_path}/nowhere/a.db")
    assert not list(tmp_path.iterdir())


def test_a_study_that_the_storage_lacks_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(StudyError, match=r"study 's': there is none in sqlite"):
        open_study("s", url)
    assert not list(tmp_path.iterdir())  # asking makes no database
    Study(SETTINGS, url)
    with pytest.raises(StudyError, match="study 'another': there is none in sqlite"):
        open_study("another", url)
    assert open_study("s", url).settings == SETTINGS
    assert not is_postgresql(storage_url(tmp_path))
    assert shown("postgresql://u:secret@h/db") == "postgresql://u:***@h/db"
