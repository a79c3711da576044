"""One file from a web server: gone on with after a break, renamed once its checksum is right.

It grows as ``.NAME.part`` beside its place, by one process at a time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from nas_kd.errors import NasKdError, UsageError
from nas_kd.files import is_still, put_in_place

TRIES = 3
"""Of one address, one after the other without a byte gained."""
CHUNK_BYTES = 2**18
LATER = (408, 429, 500, 502, 503, 504)
"""Answers of a server that may be other ones in a moment."""

NOWHERE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED)

Tell = Callable[[int, int | None], None]
"""Hears (bytes there, bytes in all, where known)."""


@dataclass(frozen=True)
class Patience:
    """Seconds without a byte until a connection counts as broken, and seconds before the next try."""

    timeout_s: float = 30.0
    pause_s: float = 1.0


PATIENT = Patience()


@dataclass(frozen=True)
class Wanted:
    """A file, and where it can be had.

    Args:
        path: where it is to lie.
        addresses: tried in this order; the same file everywhere.
        sha256: its first hex digits or all of them; empty where nobody publishes them.
        size: its bytes; None where not known.
        exact: whether ``size`` is known to the byte.
    """

    path: Path
    addresses: tuple[str, ...]
    sha256: str = ""
    size: int | None = None
    exact: bool = False

    @property
    def part(self) -> Path:
        """Where it grows."""
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def size_in_words(self) -> str:
        """Its size for people."""
        return in_mb(self.size, self.exact)


def in_mb(size: int | None, exact: bool = True) -> str:
    """Bytes for people."""
    if size is None:
        return "of unknown size"
    number = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
    return number if exact else f"about {number}"


class Unreachable(NasKdError):
    """No address gave a file."""


class _Failed(Exception):
    """An address did not give the file; the next one may."""


def download(
    wanted: Wanted, tell: Tell = lambda there, whole: None, patience: Patience = PATIENT
) -> None:
    """Bring one file, from the first address that gives it; nothing is done where it lies already.

    Raises NasKdError with every address's reason; what grew so far stays where a checksum can tell it is right.
    """
    with _growing(wanted) as part:
        if part is None:
            return
        reasons = []
        for address in wanted.addresses:
            try:
                _whole(address, wanted, part, tell, patience)
                put_in_place(wanted.part, wanted.path)
                return
            except _Failed as failed:
                reasons.append(f"{address}: {failed}")
        raise Unreachable(
            f"{wanted.path.name} could not be fetched ({'; '.join(reasons)}){_kept(wanted)}"
        )


def _kept(wanted: Wanted) -> str:
    if not wanted.sha256:
        wanted.part.unlink(missing_ok=True)
    here = grown(wanted)
    if not here:
        wanted.part.unlink(missing_ok=True)
        return ""
    return f"; {in_mb(here)} are kept and not fetched again"


@contextmanager
def _growing(wanted: Wanted) -> Iterator[FileIO | None]:
    """The growing file, this process's alone; None where another process has finished it meanwhile."""
    while not wanted.path.exists():
        with _opened(wanted.part) as part:
            fcntl.flock(part, fcntl.LOCK_EX)  # whoever comes second waits, and finds the file
            if is_still(wanted.part, part):
                yield part
                return
    yield None


def _opened(path: Path) -> FileIO:
    try:
        return open(path, "a+b", buffering=0)  # a full disk is told by the write, not at the end
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); allow it") from error


def _whole(address: str, wanted: Wanted, part: FileIO, tell: Tell, patience: Patience) -> None:
    """The whole file in ``part``, its checksum right."""
    if not wanted.sha256:
        part.truncate(0)  # what is there could be of another file, and nothing would tell
    begun = _size(part)
    _receive_all(address, wanted, part, tell, patience)
    if begun and not _is_right(wanted, part):
        part.truncate(0)  # what was there may have been wrong
        _receive_all(address, wanted, part, tell, patience)
    if not _is_right(wanted, part):
        found = _digest(part)
        part.truncate(0)
        raise _Failed(
            f"its sha256 begins with {found[:8]}, it must be {wanted.sha256[:8]}; thrown away"
        )


def _size(part: FileIO) -> int:
    return os.fstat(part.fileno()).st_size


def _is_right(wanted: Wanted, part: FileIO) -> bool:
    return not wanted.sha256 or _digest(part).startswith(wanted.sha256)


def _digest(part: FileIO) -> str:
    part.seek(0)
    return hashlib.file_digest(part, "sha256").hexdigest()


def _receive_all(
    address: str, wanted: Wanted, part: FileIO, tell: Tell, patience: Patience
) -> None:
    """Ask again and again from where it broke off, as long as something comes."""
    idle, most = 0, _size(part)
    while not (wanted.exact and _size(part) == wanted.size):
        try:
            _receive(address, wanted, part, tell, patience)
            return
        except (_Broken, OSError, http.client.HTTPException) as error:
            idle, most = (0 if _size(part) > most else idle + 1), max(most, _size(part))
            if (
                idle == TRIES
                or isinstance(error, urllib.error.HTTPError)
                or _is_nowhere(error, most)
            ):
                raise _Failed(_reason(error)) from error
            time.sleep(patience.pause_s * idle)


def _is_nowhere(error: Exception, come: int) -> bool:
    """Whether there is no way to the server, and nothing has come of it yet: then waiting is of no use."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else None
    lost = isinstance(reason, socket.gaierror) or getattr(reason, "errno", None) in NOWHERE
    return lost and not come


class _Broken(Exception):
    """A connection ended before the file did."""


def _receive(address: str, wanted: Wanted, part: FileIO, tell: Tell, patience: Patience) -> None:
    """One connection's worth of the file, appended."""
    with _connected(address, part, patience) as response:
        there, length = _size(part), response.headers.get("Content-Length")
        whole = there + int(length) if length and length.isdecimal() else None
        if wanted.exact and whole is not None and whole != wanted.size:
            raise _Failed(f"has {whole} bytes there, it must have {wanted.size}")
        tell(there, whole)
        while data := response.read1(CHUNK_BYTES):
            _append(part, data, wanted)
            there += len(data)
            tell(there, whole)
    if whole is not None and there < whole:
        raise _Broken(f"broke off at {there} of {whole} bytes")


def _connected(address: str, part: FileIO, patience: Patience) -> Any:
    """The answer from where ``part`` ends; ``part`` is emptied where the server sends the beginning."""
    there = _size(part)
    headers = {"User-Agent": "nas-kd"} | ({"Range": f"bytes={there}-"} if there else {})
    try:
        request = urllib.request.Request(address, headers=headers)
        response = urllib.request.urlopen(request, timeout=patience.timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416 and there:
            part.truncate(0)  # longer than the file there
            raise _Broken("has fewer bytes than were here") from error
        if error.code in LATER:
            raise _Broken(_reason(error)) from error
        raise
    begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    if there and not (response.status == 206 and begins and int(begins[1]) == there):
        part.truncate(0)
        if response.status == 206:
            response.close()
            raise _Broken("gave another part than was asked for")
    return response


def _append(part: FileIO, data: bytes, wanted: Wanted) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[part.write(left) :]
    except OSError as error:
        raise NasKdError(
            f"{wanted.path}: cannot be written ({error.strerror}); {in_mb(grown(wanted))} are kept: free some "
            "room and run the same command again"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"answers {error.code} ({error.reason})"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "silent for too long"
    words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return str(words).splitlines()[0]


def grown(wanted: Wanted) -> int:
    """Bytes of a file that are here from earlier tries."""
    return wanted.part.stat().st_size if wanted.part.is_file() else 0
