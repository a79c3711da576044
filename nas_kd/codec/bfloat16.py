"""What is inside of residual blocks in bfloat16, in training, on processors with instructions for it.

Such a step takes little more than half of the time. The trunk, which the blocks add to, and all else stay in
float32: what is rounded is the correction alone. Students are judged, and write and read files, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""Without one of these, bfloat16 on a processor is slower than float32 by far."""

_taken = ContextVar("bfloat16", default=False)


@lru_cache
def is_quick() -> bool:
    """Whether this machine's processor multiplies in bfloat16."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name, False) for name in INSTRUCTIONS)


@contextmanager
def bfloat16(taken: bool) -> Iterator[None]:
    """Whether ``inside`` works in bfloat16, in this thread."""
    token = _taken.set(taken)
    try:
        yield
    finally:
        _taken.reset(token)


def inside(branch: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``branch(x)`` in float32, worked out in bfloat16 where that is taken."""
    if not _taken.get():
        return branch(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        return branch(x).float()
