"""The batches of a run, in order; where they come from afar, the next one is fetched while a step runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from nas_kd.distillation.loss import Batch


class Feed:
    """Batches by step.

    Args:
        make: the batch of a step, whatever was made before; called from one thread at a time.
        ahead: whether the next batch is made in a thread. It costs more than it saves where batches
            are at hand.
    """

    def __init__(self, make: Callable[[int], Batch], ahead: bool):
        self._make = make
        self._thread = ThreadPoolExecutor(1) if ahead else None
        self._next: tuple[int, Future[Batch]] | None = None

    def at(self, step: int) -> Batch:
        """The batch of a step; raises what making it raised."""
        if self._thread is None:
            return self._make(step)
        foreseen, self._next = self._next, None
        known = foreseen is not None and foreseen[0] == step
        made = foreseen[1] if foreseen is not None and known else self._submit(step)
        batch = made.result()
        self._next = (step + 1, self._submit(step + 1))
        return batch

    def _submit(self, step: int) -> Future[Batch]:
        assert self._thread is not None
        return self._thread.submit(self._make, step)

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
