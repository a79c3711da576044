"""Where a study is kept, which of its drivers live, one lock around its changes, and the door to Optuna's inside.

A driver is a process that searches. It holds a lock of its own for as long as it lives: on a file
beside a SQLite storage (the kernel frees it when the process dies), or an advisory lock of its
PostgreSQL session (the server frees it when the connection ends). No clock is compared.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from nas_kd.errors import StudyError
from nas_kd.files import is_still

LOCKED_S = 60.0
"""How long a locked SQLite database is waited for; backups and copies hold it for seconds."""

ALL = "all"
"""The file of the lock that one process at a time holds."""

CONSTRAINTS, FIXED = "constraints", "fixed_params"
"""Attributes of trials that Optuna keeps for itself."""

KEEPALIVE = "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
"""Asks the server to notice within 30 s that a driver's machine is gone; its default is hours."""


def open_storage(url: str) -> RDBStorage:
    """The Optuna storage of a URL, patient where it is locked.

    Raises StudyError where it is neither SQLite nor PostgreSQL, or cannot be reached.
    """
    options: dict[str, Any] = {"connect_args": {"timeout": LOCKED_S}}
    if is_postgresql(url):
        options = {"pool_pre_ping": True}
    try:
        return RDBStorage(url, engine_kwargs=options)
    except (SQLAlchemyError, ImportError) as error:
        raise _unreachable(url, error) from error
    except RuntimeError as error:  # what Optuna raises of tables that another version of it made
        raise StudyError(f"storage {shown(url)}: {_other_version(url, str(error))}") from error


def _other_version(url: str, said: str) -> str:
    if "storage upgrade" in said:
        way_out = f"keep a copy, then run `optuna storage upgrade --storage {shown(url)}`"
    else:
        way_out = "open it with that version, or update Optuna: pip install -U optuna"
    return f"its tables are those of another version of Optuna than {optuna.__version__}; {way_out}"


def full_url(url: str) -> str:
    """The URL with its client library named: which one ``postgresql://`` means varies."""
    if not is_postgresql(url):
        return url
    named = sqlalchemy.make_url(url)
    if named.drivername == "postgresql":
        named = named.set(drivername="postgresql+psycopg2")
    return named.render_as_string(hide_password=False)


def is_postgresql(url: str) -> bool:
    """Whether a URL names PostgreSQL; anything but that and SQLite is refused."""
    try:
        backend = sqlalchemy.make_url(url).get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise StudyError(
            f"storage '{url}': no database URL; write postgresql://user@host/database"
        ) from error
    if backend not in ("sqlite", "postgresql"):
        raise StudyError(f"storage {shown(url)}: must be sqlite:// or postgresql://")
    return backend == "postgresql"


def is_there(url: str) -> bool:
    """Whether a storage can be read: a SQLite file that is not there would be made by opening it."""
    return is_postgresql(url) or Path(sqlalchemy.make_url(url).database or "").is_file()


def shown(url: str) -> str:
    """The URL without its password."""
    return sqlalchemy.make_url(url).render_as_string(hide_password=True)


def _unreachable(url: str, error: Exception) -> StudyError:
    if isinstance(error, ImportError):
        why = "its driver is not installed: pip install 'nas-kd[postgresql]'"
    else:
        why = (str(error).splitlines() or [type(error).__name__])[0]
    return StudyError(f"storage {shown(url)}: {why}")


# --- what Optuna keeps to itself ------------------------------------------------------------------------
# Its public interface cannot write to a trial that was asked for elsewhere, nor tell which was lined up.


def storage_of(study: optuna.Study) -> BaseStorage:
    """The storage of an open study, with Optuna's cache before it."""
    return study._storage


def live_trial(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> optuna.Trial:
    """A RUNNING trial to write to, asked for by whomever; its model's proposal is made anew."""
    return optuna.Trial(study, trial._trial_id)


def set_attr(study: optuna.Study, trial: FrozenTrial | optuna.Trial, key: str, value: Any) -> None:
    """Write an attribute of a RUNNING trial."""
    storage_of(study).set_trial_user_attr(trial._trial_id, key, value)


def set_constraints(
    study: optuna.Study, trial: FrozenTrial | optuna.Trial, lacks: list[float]
) -> None:
    """Write what a trial lacks where Optuna's dashboard reads it; without it an infeasible trial looks feasible."""
    storage_of(study).set_trial_system_attr(trial._trial_id, CONSTRAINTS, lacks)


def constraints_set(trial: FrozenTrial) -> list[float] | None:
    """What `set_constraints` wrote."""
    return trial.system_attrs.get(CONSTRAINTS)


def lined_up(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that a trial was lined up with (``enqueue_trial``); none where it was not."""
    return dict(trial.system_attrs.get(FIXED, {}))


def new_driver() -> str:
    """A name that no other driver has, with host and process for people."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Locks(Protocol):
    """What a study's drivers agree through."""

    def exclusive(self) -> Any:
        """A context that one process at a time is in; others wait. Not to be nested."""

    def join(self, driver: str) -> None:
        """From now on ``driver`` lives, until ``leave`` or this process's end."""

    def leave(self, driver: str) -> None:
        """The driver lives no more."""

    def lives(self, driver: str) -> bool:
        """Whether a driver lives; ask inside ``exclusive``."""

    def tidy(self) -> None:
        """Leave no empty folder of a study that was not begun."""


def locks_of(url: str, folder: Path, study: str) -> Locks:
    """The locks that belong to a storage: files in ``folder``, or the server's own."""
    return PostgresLocks(url, study) if is_postgresql(url) else FileLocks(folder)


class FileLocks:
    """Locks on files in a study's folder, for drivers on one machine."""

    def __init__(self, folder: Path):
        self.folder = folder / ".drivers"
        self._held: dict[str, IO[str]] = {}

    def __reduce__(self) -> Any:
        # Tune pickles its searcher, and with it the study: a copy holds nothing.
        return FileLocks, (self.folder.parent,)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the study's lock; raises StudyError where its file cannot be made."""
        while True:
            with self._opened() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if is_still(self.folder / ALL, lock):  # else tidied away while it was waited for
                    yield
                    return

    def _opened(self) -> IO[str]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return open(self.folder / ALL, "w")
        except OSError as error:
            raise StudyError(
                f"{self.folder.parent}: cannot be written ({error.strerror}); search where you may write"
            ) from error

    def tidy(self) -> None:
        """Remove the lock's file and the folders it alone is in."""
        own = {self.folder, self.folder / ALL}
        with suppress(OSError, StudyError), self.exclusive():
            if not own >= set(self.folder.parent.rglob("*")):
                return
            (self.folder / ALL).unlink()
            for folder in (self.folder, *self.folder.parents[:2]):
                folder.rmdir()

    def join(self, driver: str) -> None:
        """Hold the driver's file."""
        with self.exclusive():  # so that nobody takes the file for a dead driver's
            lock = open(self.folder / driver, "w")  # noqa: SIM115
            fcntl.flock(lock, fcntl.LOCK_EX)
        self._held[driver] = lock

    def leave(self, driver: str) -> None:
        """Free the driver's file and remove it."""
        self._held.pop(driver).close()
        (self.folder / driver).unlink(missing_ok=True)

    def lives(self, driver: str) -> bool:
        """Whether somebody holds the driver's file; a dead driver's is removed."""
        path = self.folder / driver
        try:
            with open(path) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        path.unlink(missing_ok=True)
        return False


class PostgresLocks:
    """Advisory locks of one PostgreSQL session, for drivers on several machines."""

    def __init__(self, url: str, study: str):
        self.url, self.study = url, study
        self._engine: Any = None
        self._session: Any = None
        self._joined: set[str] = set()

    def __reduce__(self) -> Any:
        return PostgresLocks, (self.url, self.study)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the study's lock."""
        self._call("pg_advisory_lock", "all")
        try:
            yield
        finally:
            with suppress(DBAPIError):  # a session that is gone holds nothing
                self._call("pg_advisory_unlock", "all", again=False)

    def join(self, driver: str) -> None:
        """Hold the driver's lock."""
        self._call("pg_advisory_lock", driver)
        self._joined.add(driver)

    def leave(self, driver: str) -> None:
        """Free the driver's lock."""
        self._joined.discard(driver)
        with suppress(DBAPIError):
            self._call("pg_advisory_unlock", driver, again=False)

    def lives(self, driver: str) -> bool:
        """Whether some session holds the driver's lock."""
        if driver in self._joined:
            return True
        free = self._call("pg_try_advisory_lock", driver)
        if free:
            self._call("pg_advisory_unlock", driver)
        return not free

    def tidy(self) -> None:
        """Nothing: the server's locks leave nothing behind."""

    def _call(self, function: str, name: str, again: bool = True) -> Any:
        statement = sqlalchemy.text(f"SELECT {function}(:key)")
        try:
            return self._connection().execute(statement, {"key": self._key(name)}).scalar()
        except DBAPIError:
            self._session = None
            if not again:
                raise
        # The connection was cut: a new session takes the driver's locks up again.
        for driver in self._joined:
            self._call("pg_advisory_lock", driver, again=False)
        return self._call(function, name, again=False)

    def _connection(self) -> Any:
        if self._session is None:
            try:
                if self._engine is None:
                    pool, args = sqlalchemy.pool.NullPool, {"options": KEEPALIVE}
                    self._engine = sqlalchemy.create_engine(
                        self.url, poolclass=pool, connect_args=args, isolation_level="AUTOCOMMIT"
                    )
                self._session = self._engine.connect()
            except (SQLAlchemyError, ImportError) as error:
                raise _unreachable(self.url, error) from error
        return self._session

    def _key(self, name: str) -> int:
        digest = hashlib.sha256(f"nas-kd\0{self.study}\0{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)
