"""What processes would have measured on a device: who has it alone serves the others while it is there.

A wish is a file, locked while its process waits: the kernel frees the lock when a process dies, and its wish is void.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nas_kd.measurement.device_lock import lock_folder


class Wishes:
    """The wishes for one device.

    Args:
        device: its UUID.
        folder: where they lie, by default beside the device's locks.
    """

    def __init__(self, device: str, folder: Path | None = None):
        name = hashlib.sha256(device.encode()).hexdigest()[:16]
        self.folder = (folder or lock_folder()) / f"{name}.wishes"

    @contextmanager
    def filed(self, name: str, wish: dict[str, Any]) -> Iterator[None]:
        """Let a wish lie there while the block runs; ``name`` is its own among this process's."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        path = self.folder / f"{os.getpid()}-{name}"
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(wish | {"name": name}, file)
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def open(self) -> list[dict[str, Any]]:
        """The wishes of those that still wait, in the order of their coming."""
        found = []
        for path in self.folder.glob("*"):
            with suppress(OSError, ValueError), path.open() as file:
                if _is_void(file.fileno()):
                    path.unlink(missing_ok=True)
                else:
                    found.append((path.stat().st_ctime_ns, json.load(file)))
        return [wish for _, wish in sorted(found, key=lambda each: each[0])]


def _is_void(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
