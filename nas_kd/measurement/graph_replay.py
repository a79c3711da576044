"""A codec's passes as CUDA graphs: their kernels without the launches that a host spends on each."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from nas_kd.codec.networks import Pass, passes
from nas_kd.codec.student import Student


def graph_replay(work: Pass) -> Pass:
    """The same work as one CUDA graph: its kernels without their launches.

    Raises RuntimeError where the work cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # What other threads do meanwhile, such as storing a student, is none of this capture's concern.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


def replayed(student: Student, frames: list[Tensor], part: str) -> Pass:
    """A part of the codec on each of the frames in turn, without the launches that a host spends on each kernel.

    Raises RuntimeError where it cannot be captured.
    """
    graphs = itertools.cycle([graph_replay(passes(student, [x])[part]) for x in frames])
    return lambda: next(graphs)()
