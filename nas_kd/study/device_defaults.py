"""What a device changes of the settings that nobody says: on a GPU larger batches, and steps by the time they take.

A study that is begun keeps what was chosen for it, wherever it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_kd.measurement.meters import likely_device
from nas_kd.places import HERE
from nas_kd.study.settings import Asked, Settings

KEYS = ("batch", "steps")
BATCH = 16
"""On a GPU, where a step waits for launches and not for arithmetic: 34 ms with 2 crops, 37 with 8 (H200, `mini`)."""
TRIAL_S = 60.0
"""Of training, alone on a GPU."""
LEAST_STEPS = 100

Chosen = dict[str, Any]


def chosen(
    asked: Asked,
    device: str,
    stored: Mapping[str, Any] | None = None,
    step_s: Callable[[Settings], float] | None = None,
) -> tuple[Settings, str | None]:
    """The settings with what was not said, and in words what was chosen, if anything was.

    Args:
        asked: the settings, and which of them were said.
        device: that trials train on.
        stored: the settings that the study was begun with, if it was.
        step_s: seconds of a training step with given settings; measured on this machine's device by default.
    """
    free = [key for key in KEYS if key not in asked.said]
    if stored is not None:
        kept = {key: stored[key] for key in free if key in stored}
        differ = [f"{k} = {v}" for k, v in kept.items() if v != getattr(asked.settings, k)]
        begun = f"as the study was begun: {', '.join(differ)}" if differ else None
        return replace(asked.settings, **kept), begun
    if device == "cpu" or not free:
        return asked.settings, None
    found, words = asked.settings, list[str]()
    if "batch" in free:
        found = replace(found, batch=BATCH)
        words.append(f"batch = {BATCH}")
    if "steps" in free:
        took_s = (step_s or _measured)(found)
        found = replace(found, steps=steps_of(took_s))
        words.append(f"steps = {found.steps} ({TRIAL_S:.0f} s a trial at {took_s * 1e3:.1f} ms)")
    return found, f"by the GPU: {', '.join(words)}"


def steps_of(step_s: float) -> int:
    """Steps in TRIAL_S, to two digits."""
    steps = TRIAL_S / step_s
    digit = 10 ** max(len(str(int(steps))) - 2, 0)
    return max(LEAST_STEPS, int(steps // digit * digit))


def _measured(s: Settings) -> float:
    from nas_kd.device import best_device
    from nas_kd.study.forecast import measured_step_s, middling
    from nas_kd.study.plan import question_of

    return measured_step_s(middling(question_of(s, None), s), s, best_device())


def settled(
    asked: Asked,
    storage: str | None = None,
    root: Path = HERE,
    device: str | None = None,
) -> tuple[Settings, str | None]:
    """The same of a study that may lie in a storage, on this machine's device by default."""
    if all(key in asked.said for key in KEYS):
        return asked.settings, None
    stored = None
    if storage is not None or (root / asked.settings.folder).is_dir():
        from nas_kd.study.study import begun_with

        stored = begun_with(asked.settings.name, storage, root)
    return chosen(asked, device or likely_device(), stored)
