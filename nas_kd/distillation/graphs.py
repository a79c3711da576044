"""How the phases of a training step run: as they come, or each captured once as a CUDA graph and replayed.

The phases are ``draw`` (a batch), ``clear`` (gradients), ``backward`` (forward and backward through one
codec; several may follow each other) and ``update``. A step of a small codec launches hundreds of kernels, and a GPU
waits for the launches; a graph is one launch. What graphs hand to each other (batch, gradients, terms) lies outside of
their memory, so that they share one pool and may be replayed in any order.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from nas_kd.data.images import to_device
from nas_kd.distillation.loss import Batch
from nas_kd.turns import uncollected

logger = logging.getLogger("nas_kd")

MOST = 64
"""Graphs that are kept: those of 48 archs took 2.9 GiB on an H200 (demo, 8 crops of 256 px)."""
SEEN = 256
"""Works that are remembered after their first run; one that comes later counts as new."""

Terms = dict[str, Tensor]
Numbers = tuple[Tensor, Tensor, Tensor]
"""Which crops, at which levels, with which lambdas, each [B], on the host."""
Gather = Callable[[Tensor, Tensor, Tensor], Batch]
Work = Callable[[], Any]


class Way(Protocol):
    """How phases run."""

    ahead: bool
    """Whether batches from afar are worth a thread that draws ahead."""

    def here(self) -> AbstractContextManager[None]:
        """Where all of a run's phases run."""

    def draw(self, numbers: Numbers, gather: Gather, far: bool, pattern: Hashable = None) -> Batch:
        """What ``gather`` makes of the numbers; they stay on the host where the pictures are far.

        Its work is the same for all batches of a ``pattern``.
        """

    def clear(self) -> None:
        """No gradients."""

    def backward(self, forward: Any, loss: Callable[[], Terms]) -> Terms:
        """Add the gradients of ``loss``, which passes through ``forward``; the terms, detached."""

    def update(self, work: Work) -> None:
        """Change the weights by their gradients; parameters without any have None."""


class Eager:
    """Phases as they come: on CPUs."""

    ahead = True

    def __init__(self, parameters: Sequence[Tensor]):
        self._parameters = parameters

    def here(self) -> AbstractContextManager[None]:
        """On the current stream."""
        return nullcontext()

    def draw(self, numbers: Numbers, gather: Gather, far: bool, pattern: Hashable = None) -> Batch:
        """The batch, gathered."""
        return gather(*numbers)

    def clear(self) -> None:
        """Gradients become None."""
        for p in self._parameters:
            p.grad = None

    def backward(self, forward: Any, loss: Callable[[], Terms]) -> Terms:
        """The backward pass of the loss."""
        terms = loss()
        terms["loss"].backward()
        return {name: term.detach() for name, term in terms.items()}

    def update(self, work: Work) -> None:
        """The update."""
        work()


class Graphs:
    """Phases that are captured when they come again, and replayed from then on: on GPUs.

    Args:
        parameters: all that are trained.
        always: those that ``update`` itself differentiates: the quantiles.
        capture: what records a work and returns its replay.
    """

    ahead = False  # the host is free while the device replays

    def __init__(self, parameters: Sequence[Tensor], always: Sequence[Tensor], capture: Capture):
        self._parameters, self._capture = parameters, capture
        self._gradients = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        own = {id(p) for p in always}
        self._always = frozenset(i for i, p in enumerate(parameters) if id(p) in own)
        self._touched = self._always
        self._replayed = Replayed(capture)
        self._numbers: tuple[Tensor, ...] | None = None
        self._batch: Batch | None = None
        self._terms: Tensor | None = None

    def here(self) -> AbstractContextManager[None]:
        """On the stream that is captured."""
        return self._capture.here()

    def draw(self, numbers: Numbers, gather: Gather, far: bool, pattern: Hashable = None) -> Batch:
        """The batch, in the same memory at every step; a graph for each pattern."""
        if far:
            self._keep(gather(*numbers))
        else:
            index, level, lmbda = self._place(numbers)
            self._replayed(("draw", pattern), lambda: self._keep(gather(index, level, lmbda)))
        assert self._batch is not None
        return self._batch

    def _place(self, numbers: Numbers) -> tuple[Tensor, ...]:
        device = self._gradients[0].device
        if self._numbers is None:
            self._numbers = tuple(torch.empty_like(n, device=device) for n in numbers)
        for kept, given in zip(self._numbers, numbers, strict=True):
            kept.copy_(to_device(given, device))
        return self._numbers

    def _keep(self, batch: Batch) -> None:
        given = {f.name: t for f in fields(batch) if (t := getattr(batch, f.name)) is not None}
        if self._batch is None:
            self._batch = replace(batch, **{name: t.clone() for name, t in given.items()})
        for name, tensor in given.items():
            getattr(self._batch, name).copy_(tensor)

    def clear(self) -> None:
        """Gradients become zero, where they are."""
        self._touched = self._always
        self._replayed("clear", lambda: torch._foreach_zero_(self._gradients))

    def backward(self, forward: Any, loss: Callable[[], Terms]) -> Terms:
        """Gradients are added to those that are there.

        Forwards are told apart by their ``key``, or by what object they are.
        """
        key = getattr(forward, "key", id(forward))
        names, touched = self._replayed(("backward", key), lambda: self._accumulate(loss()))
        self._touched |= touched
        assert self._terms is not None
        return dict(zip(names, self._terms.clone(), strict=True))

    def _accumulate(self, terms: Terms) -> tuple[tuple[str, ...], frozenset[int]]:
        found = torch.autograd.grad(terms["loss"], self._parameters, allow_unused=True)
        there = [i for i, gradient in enumerate(found) if gradient is not None]
        torch._foreach_add_([self._gradients[i] for i in there], [found[i] for i in there])
        values = torch.stack([term.detach() for term in terms.values()])
        if self._terms is None:
            self._terms = values.clone()
        self._terms.copy_(values)
        return tuple(terms), frozenset(there)

    def update(self, work: Work) -> None:
        """As its gradients are: one graph for each set of parameters that a step has touched."""
        for i, (p, gradient) in enumerate(zip(self._parameters, self._gradients, strict=True)):
            p.grad = gradient if i in self._touched else None
        self._replayed(("update", self._touched), work)


class Replayed:
    """Works by key: run as they are at first, captured when they come again, replayed from then on.

    The first run is what a capture needs before it: libraries are loaded, an optimiser has its moments. A work returns
    the same at every run. What comes once, as most archs of a large space do, is not captured.
    """

    def __init__(self, capture: Callable[[Work], Work], most: int = MOST):
        self._capture, self._most = capture, most
        self._seen: OrderedDict[Hashable, Any] = OrderedDict()
        # The work is kept as well: it holds what its graph reads.
        self._captured: OrderedDict[Hashable, tuple[Work, Any, Work]] = OrderedDict()

    def __call__(self, key: Hashable, work: Work) -> Any:
        """What the work returns."""
        if key in self._captured:
            self._captured.move_to_end(key)
        elif key not in self._seen:
            return self._first(key, work)
        else:
            self._captured[key] = self._capture(work), self._seen.pop(key), work
            if len(self._captured) > self._most:
                self._captured.popitem(last=False)
        replay, result, _ = self._captured[key]
        replay()
        return result

    def _first(self, key: Hashable, work: Work) -> Any:
        self._seen[key] = result = work()
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        return result


class Capture(Protocol):
    """Records a work, without doing it, and returns its replay."""

    def here(self) -> AbstractContextManager[None]:
        """Where the work has to be done."""

    def __call__(self, work: Work) -> Work:
        """The replay of a work that has been done once before."""


class CudaCapture:
    """Works as CUDA graphs of one stream and one pool of memory; where one cannot be, it is done as it is."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def here(self) -> Iterator[None]:
        """On this stream, between what the caller's stream has to do before and after."""
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_stream(self._stream)

    def __call__(self, work: Work) -> Work:
        """The replay of its graph."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of a worker are none of this capture's concern.
            with uncollected(), torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
                work()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            logger.warning("a part of the step runs without a CUDA graph, slower: %s", reason)
            return work
        return graph.replay
