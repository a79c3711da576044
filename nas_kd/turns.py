"""Trainings at once in one process: threads that take turns, a step each, and each with noise of its own.

Torch's noise belongs to the process: a step seeds it and draws from it, and nobody may come between. On a GPU a
step is a few launches, and the steps of several threads overlap there, each on the stream of its run; on a CPU they
follow each other. Either way a training takes the very steps that it would take alone.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

Failure = type[BaseException] | None


class Turns:
    """A lock that threads have in the order in which they asked for it, so that none is left behind."""

    def __init__(self) -> None:
        self._guard, self._waiting = threading.Lock(), deque[threading.Lock]()
        self._taken = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # until the one before hands it over

    def __exit__(self, kind: Failure, error: object, trace: TracebackType | None) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


TURNS = Turns()
"""Had by whoever seeds this process's noise or draws from it while other threads may train."""


class Turn:
    """A training's turn: it waits for it, and has noise of its own on a GPU.

    A graph reads the seed of its noise when it runs, from memory that belongs to the generator's state: with one state
    for all, another training would overwrite it before that.

    Args:
        generator: the default one of the training's GPU; None on a CPU, where the turn is enough.
    """

    def __init__(self, generator: Any = None):
        self._generator = generator
        self._own = None if generator is None else generator.clone_state()
        self._outside: Any = None

    def __enter__(self) -> None:
        TURNS.__enter__()
        if self._generator is not None:
            self._outside = self._generator.graphsafe_get_state()
            self._generator.graphsafe_set_state(self._own)

    def __exit__(self, kind: Failure, error: object, trace: TracebackType | None) -> None:
        if self._generator is not None:
            self._generator.graphsafe_set_state(self._outside)
        TURNS.__exit__(kind, error, trace)


def turn_of(device: Any) -> Turn:
    """The turn of a training on a torch.device."""
    import torch

    if device.type != "cuda":
        return Turn()
    index = torch.cuda.current_device() if device.index is None else device.index
    return Turn(torch.cuda.default_generators[index])


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected: a graph of a training that is over may not be freed while another is captured."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def side_by_side(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the works return, each in a thread of its own; in place of one that failed its error."""
    found: list[Any] = [None] * len(works)

    def do(place: int) -> None:
        try:
            found[place] = works[place]()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=do, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
