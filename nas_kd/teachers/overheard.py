"""What a model of CompressAI's makes of a picture on its way: y and z, wherever its hyper-analysis stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

LATENT_CODEC = "latent_codec"
"""Where CompressAI's newer models have all that is not g_a or g_s."""


class HeardAll(Exception):
    """Ends the forward pass of a model of which no more is wanted."""


def hyper_analysis(model: Any) -> Any | None:
    """The h_a of a model: its own, or the one inside its latent codec; None where there is none, or are several."""
    if hasattr(model, "h_a"):
        return model.h_a
    inside = getattr(model, LATENT_CODEC, torch.nn.Module())
    found = [part for name, part in inside.named_modules() if name.split(".")[-1] == "h_a"]
    return found[0] if len(found) == 1 else None


@contextmanager
def overheard(model: Any, only: bool = False) -> Iterator[dict[str, Tensor]]:
    """What g_a and h_a return while a model runs: y and z, without computing them twice.

    How a model makes z of y differs between families, so its own forward pass does it; with ``only`` it ends
    there, by raising HeardAll.
    """
    heard: dict[str, Tensor] = {}

    def listen(name: str, part: Any) -> Any:
        def hook(part: Any, given: Any, out: Tensor) -> None:
            heard[name] = out
            if only and len(heard) == 2:
                raise HeardAll

        return part.register_forward_hook(hook)

    hooks = [listen("g_a", model.g_a), listen("h_a", hyper_analysis(model))]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def latent_widths(model: Any) -> tuple[int, int]:
    """Channels of a model's y and z."""
    with overheard(model, only=True) as heard, suppress(HeardAll):
        model(torch.zeros(1, 3, 64, 64))
    return heard["g_a"].shape[1], heard["h_a"].shape[1]
