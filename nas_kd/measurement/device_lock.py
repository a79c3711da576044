"""Who may use a device: training shares it, a measurement has it alone.

Two locks of flock per device, in a folder of this user: ``use``, held shared while training and
exclusive while measuring, and ``gate``, which a measurement closes before it waits for ``use``, so
that trainings which come and go cannot keep it waiting. The kernel frees both when a process dies.
"""

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from nas_kd.device import synchroniser
from nas_kd.errors import UsageError
from nas_kd.measurement.meters import cuda_uuid
from nas_kd.turns import TURNS


def lock_folder() -> Path:
    """A folder of this user alone: in XDG_RUNTIME_DIR, or else in the folder for temporary files.

    Raises:
        UsageError: it is another user's, or cannot be made.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and Path(runtime).is_dir() and os.access(runtime, os.W_OK | os.X_OK):
        folder = Path(runtime) / "nas-kd"
    else:
        folder = Path(tempfile.gettempdir()) / f"nas-kd-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
    except OSError as error:
        raise UsageError(f"{folder}: no place for locks ({error.strerror}); set TMPDIR") from error
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise UsageError(f"{folder}: not a folder of this user; remove it, or set TMPDIR")
    return folder


class Device:
    """A device that processes share or have alone, by its UUID.

    Args:
        uuid: any name; every process of this user that says it means the same device.
        folder: where the locks are.
    """

    def __init__(self, uuid: str, folder: Path | None = None):
        folder = folder or lock_folder()
        name = hashlib.sha256(uuid.encode()).hexdigest()[:16]
        self._use, self._gate = folder / f"{name}.use", folder / f"{name}.gate"

    @contextmanager
    def shared(
        self, synchronise: Callable[[], None] = lambda: None
    ) -> Iterator[Callable[[], None]]:
        """Use it beside others; call what this yields between steps, to let a measurement in.

        Args:
            synchronise: waits for what this process has queued on the device.
        """
        with _opened(self._use) as use, _opened(self._gate) as gate:

            def enter() -> None:
                fcntl.flock(gate, fcntl.LOCK_SH)
                fcntl.flock(use, fcntl.LOCK_SH)
                fcntl.flock(gate, fcntl.LOCK_UN)

            def between_steps() -> None:
                try:
                    fcntl.flock(gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    fcntl.flock(gate, fcntl.LOCK_UN)
                except BlockingIOError:
                    synchronise()
                    fcntl.flock(use, fcntl.LOCK_UN)
                    enter()

            enter()
            yield between_steps

    @contextmanager
    def exclusive(self, unless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Have it alone; waits until every process that shares it is between two steps.

        Never inside this process's own ``shared``: it would wait for itself.

        Args:
            unless: asked once no other measurement is under way; where it holds, nobody is disturbed and the block
                runs without the device (it gets False).
        """
        with _opened(self._gate) as gate, _opened(self._use) as use:
            fcntl.flock(gate, fcntl.LOCK_EX)
            if unless():
                fcntl.flock(gate, fcntl.LOCK_UN)
                yield False
            else:
                fcntl.flock(use, fcntl.LOCK_EX)
                yield True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Closing frees the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def in_use(device: str) -> Device:
    """The lock of a device: by UUID on a GPU, one for all processors."""
    return Device(cuda_uuid(device) if device.startswith("cuda") else "CPU")


def training_on(device: str) -> AbstractContextManager[Callable[[], None]]:
    """Share a device while training; yields what to call between steps."""
    synchronise = synchroniser(device)

    def settle() -> None:
        with TURNS:  # no other thread of this process may be capturing a graph
            synchronise()

    return in_use(device).shared(settle)
