"""The last part of a polish: on larger crops, as many pixels a step, with the learning rate restarted."""

from __future__ import annotations

from dataclasses import replace

from nas_kd.recipe import Recipe
from nas_kd.seeds import derived_seed
from nas_kd.study.settings import Settings

SIDE_PX = 512
"""Of a larger crop."""
SHARE = 5
"""One step in so many is among the last."""
LEAST_CROPS = 16
"""As many as a chunk of the teacher's outputs has."""


def last_steps(steps: int) -> int:
    """Those of a polish whose pixels go to larger crops; none of a very short one."""
    return steps // SHARE


def has_large(settings: Settings) -> bool:
    """Whether the study's polish ends on crops that are larger than its own."""
    return settings.crop_size < SIDE_PX and last_steps(settings.polish) > 0


def large_crops(settings: Settings) -> int:
    """How many: so that each is seen as often as one of the study's own."""
    shared = settings.crops * settings.crop_size**2 / SIDE_PX**2 / (SHARE - 1)
    return max(LEAST_CROPS, round(shared))


def before(recipe: Recipe) -> Recipe:
    """A polish without its last part; its rate falls to zero by itself."""
    return replace(recipe, steps=recipe.steps - last_steps(recipe.steps))


def after(recipe: Recipe, side_px: int) -> Recipe:
    """The last part of a polish on crops of ``side_px``: as many pixels, the rate falling all the way."""
    area = (SIDE_PX / side_px) ** 2
    batch = max(1, int(recipe.batch / area))
    steps = max(1, round(last_steps(recipe.steps) * recipe.batch / batch / area))
    seed = derived_seed(recipe.seed, "large crops")
    return replace(recipe, steps=steps, batch=batch, decay=1.0, seed=seed)
