"""The shared part of a study's trials, opened in a worker's process."""

from __future__ import annotations

import json
import threading
from functools import lru_cache
from pathlib import Path

from nas_kd.codec.search_space import load_space
from nas_kd.data.images import held, open_images
from nas_kd.study.prepared import Prepared
from nas_kd.study.settings import Settings
from nas_kd.study.trial import Task
from nas_kd.supernet.from_teacher import Inherited, load_inherited
from nas_kd.supernet.shared_weights import Shared
from nas_kd.supernet.warmup import SHARED, load_shared
from nas_kd.teachers.lessons import lessons

SLICE_LR = 0.2
"""Share of the learning rate for a trial that starts from its slice: the whole rate undid some of the warm-up
within 75 steps, a tenth to a third did not (benchmarks/LOG.md)."""


_opening = threading.Lock()


def task_of(prepared: Prepared, device: str = "cpu") -> Task:
    """The shared part of every trial, from what ``prepare`` returned; kept for the next trial of the same study."""
    with _opening:  # trials that begin at once open one
        return _kept(json.dumps(prepared.to_json(), sort_keys=True), device)


@lru_cache(maxsize=1)  # of one study: it holds pools, on a GPU in its memory
def _kept(text: str, device: str) -> Task:
    prepared = Prepared.from_json(json.loads(text))
    settings, shared = prepared.settings, prepared.shared
    return Task(
        lmbdas=prepared.lmbdas,
        recipe=settings.recipe(settings.steps, SLICE_LR if settings.init == "shared" else 1.0),
        weights=settings.loss,
        objectives=settings.objectives,
        pool=lessons(prepared.pool, device, settings.data),
        eval_images=held(open_images(settings.eval_data, "eval")),
        anchor=prepared.anchor,
        limits=settings.limits,
        device=device,
        crop_size=settings.crop_size,
        shared=_origin(settings, shared, prepared.lmbdas) if shared else None,
        large=None if prepared.large is None else lessons(prepared.large, device, settings.data),
    )


def _origin(settings: Settings, folder: Path, lmbdas: tuple[float, ...]) -> Shared | Inherited:
    if (folder / SHARED).is_file():
        return load_shared(folder, load_space(settings.space), lmbdas)
    return load_inherited(folder)
