"""What is brought from elsewhere: told with address and size, asked for once, and fetched where there is room.

Nothing is fetched without its name on the screen, and nothing at all where nobody agreed: ``--yes``,
NAS_KD_FETCH=always, or yes at a terminal.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_kd.data.download import (
    PATIENT,
    Patience,
    Tell,
    Unreachable,
    Wanted,
    download,
    grown,
    in_mb,
)
from nas_kd.errors import NasKdError, UsageError

POLICY = "NAS_KD_FETCH"
"""Environment variable: always, never, or nothing, which asks at a terminal."""


@dataclass(frozen=True)
class Order:
    """Files that belong together, and what is said of them.

    Args:
        what: ``teacher cheng2020``.
        name: what ``nas-kd fetch`` takes for it.
        files: those that are lacking.
        folder: where they are to be in the end.
        licence: of what is fetched, in a few words.
        carried: the option that takes what another machine fetched to DIR.
        way_out: what else the user can do, for the line that refuses.
        refusal: the exception that carries this line.
        unpacked_size: bytes on disk beside the files themselves.
        finish: what makes of the files what was ordered.
    """

    what: str
    name: str
    files: tuple[Wanted, ...]
    folder: Path
    licence: str = ""
    carried: str = ""
    way_out: str = ""
    refusal: type[UsageError] = UsageError
    unpacked_size: int = 0
    finish: Callable[[], None] | None = None

    @property
    def size_in_words(self) -> str:
        """Of all files together."""
        sizes = [file.size for file in self.files]
        known = [size for size in sizes if size is not None]
        exact = all(file.exact for file in self.files)
        return in_mb(sum(known) if len(known) == len(sizes) else None, exact)

    @property
    def in_words(self) -> str:
        """What is lacking, how much that is, where it can be had and where it is to lie."""
        first, more = self.files[0], len(self.files) - 1
        others = f" and {more} more" if more else ""
        return (
            f"{self.what} ({first.path.name}{others}, {self.size_in_words}, from {first.addresses[0]}{others}, "
            f"to {self.folder})"
        )


def ways_out(orders: Sequence[Order]) -> str:
    """The commands that fetch it here and elsewhere, and what the user can do instead."""
    names = " ".join(order.name for order in orders)
    carried = " ".join(order.carried for order in orders)
    others = "".join(f", {order.way_out}" for order in orders if order.way_out)
    return (
        f"`nas-kd fetch {names} --yes`, or where there is a network `nas-kd fetch {names} --yes --to DIR` and bring "
        f"DIR here ({carried}){others}"
    )


def supply(orders: Sequence[Order], yes: bool = False, patience: Patience = PATIENT) -> None:
    """Fetch what was ordered, all of it agreed to by one question.

    Raises what an order's ``refusal`` says where nobody agreed, UsageError where the disk is too small, NasKdError
    where no address gave the file; what came so far is kept, and the next call goes on from there.
    """
    if not orders:
        return
    _require_agreed(orders, yes)
    _require_room(orders)
    for order in orders:
        _say(order)
        _make_folders(order)
        with _bar() as bar, _told_how(order):
            for file in order.files:
                download(file, bar(file), patience)
        if order.finish is not None:
            order.finish()


@contextmanager
def _told_how(order: Order) -> Iterator[None]:
    """What cannot be had from here says how it can be had elsewhere."""
    try:
        yield
    except Unreachable as error:
        for folder in {file.path.parent for file in order.files}:
            with suppress(OSError):
                folder.rmdir()  # where nothing came
        told = f"{order.what} ({order.size_in_words}, to {order.folder}): {error}"
        raise NasKdError(f"{told}; run later {ways_out([order])}") from None


# --- asked for once -------------------------------------------------------------------------------------


def refusal(orders: Sequence[Order], yes: bool = False) -> UsageError | None:
    """What is said where nobody agreed and nobody can be asked, in one line; None where someone did or can."""
    policy = os.environ.get(POLICY, "")
    if policy not in ("", "always", "never"):
        return UsageError(f"{POLICY}={policy}: must be always or never; unset, a terminal is asked")
    if yes or policy == "always":
        return None
    if policy == "never":
        return _refused(orders, f"{POLICY}=never")
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return _refused(orders, f"nobody to ask here; --yes or {POLICY}=always agrees")
    return None


def _require_agreed(orders: Sequence[Order], yes: bool) -> None:
    if (refused := refusal(orders, yes)) is not None:
        raise refused
    if yes or os.environ.get(POLICY) == "always":
        return
    for order in orders:
        _say(order)
    print("Fetch this now? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise _refused(orders, "you did not agree")


def _refused(orders: Sequence[Order], why: str) -> UsageError:
    """One line for all, as the exception of the first."""
    lacking = " and ".join(order.in_words for order in orders)
    return orders[0].refusal(
        f"lacking here: {lacking}; not fetched ({why}): run {ways_out(orders)}"
    )


def _say(order: Order) -> None:
    """Names, sizes and addresses, on standard error whatever else is quiet."""
    licence = f", {order.licence}" if order.licence else ""
    n = len(order.files)
    count = f"{n} file{'s' * (n != 1)}, {order.size_in_words}"
    print(f"{order.what}: {count}, to {order.folder}{licence}", file=sys.stderr)
    for file in order.files:
        print(f"  {file.path.name}, {file.size_in_words}, {file.addresses[0]}", file=sys.stderr)
    sys.stderr.flush()


# --- room -----------------------------------------------------------------------------------------------


def _require_room(orders: Sequence[Order]) -> None:
    for order in orders:
        coming = sum(max(0, (file.size or 0) - grown(file)) for file in order.files)
        needed, free = coming + order.unpacked_size, _free(order.folder)
        if needed > free:
            raise UsageError(
                f"{order.what}: needs {in_mb(needed)} on disk and {order.folder} has {in_mb(free)} free; free "
                "some, or fetch to another place (--to DIR)"
            )


def _free(folder: Path) -> int:
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def _make_folders(order: Order) -> None:
    for folder in {file.path.parent for file in order.files}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{folder}: cannot be made ({error.strerror}); free its name"
            ) from error


# --- seen -----------------------------------------------------------------------------------------------


@contextmanager
def _bar() -> Iterator[Callable[[Wanted], Tell]]:
    """A bar per file at a terminal; elsewhere the files' names have been said, and that is all."""
    if not sys.stderr.isatty():
        yield lambda file: lambda there, whole: None
        return
    from rich import progress
    from rich.console import Console

    columns: tuple[Any, ...] = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as shown:

        def of(file: Wanted) -> Tell:
            task = shown.add_task(file.path.name, total=file.size)
            return lambda there, whole: shown.update(task, completed=there, total=whole)

        yield of
