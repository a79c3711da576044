"""Ray's processes as a search sees them from outside: where they keep their sockets, and whether they live."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from nas_kd.errors import UsageError

SOCKET_ROOM = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""Bytes of a temporary folder that leave room for the longest of Ray's socket paths."""

RAY_DIED = signal.SIGUSR2
"""Raised here, by ourselves, once the raylet is dead. Not SIGINT: a shell's background jobs ignore it."""


class RayDied(BaseException):
    """The raylet is dead; no ``Exception``, for Tune goes on after one."""


def watch_raylet(ended: threading.Event) -> None:
    """Interrupt the main thread once the raylet is dead: Tune would wait for it for ever."""
    children = psutil.Process().children(recursive=True)
    raylets = [c for c in children if c.name() == "raylet"]
    while raylets and all(map(_is_alive, raylets)):
        if ended.wait(1.0):
            return
    if raylets and not ended.is_set():
        os.kill(os.getpid(), RAY_DIED)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def temporary_folder(default: str | None = None, short: str = "/tmp") -> str | None:
    """Where Ray keeps its sockets: None is its own choice, ``short`` is for where that is too long.

    The kernel takes 107 bytes of a socket's path. Raises UsageError where neither will do.
    """
    chosen = default or os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or short
    if len(os.fsencode(chosen)) <= SOCKET_ROOM:
        return None
    if os.access(short, os.W_OK | os.X_OK):
        return f"{short}/ray"
    raise UsageError(
        f"TMPDIR {chosen}: Ray's sockets need a folder of at most {SOCKET_ROOM} bytes, and {short} cannot be "
        "written; set RAY_TMPDIR to a short folder"
    )


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM: Ray's prints its C++ stack."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
