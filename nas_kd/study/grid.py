"""Points of a space: the combinations of a grid, an explicit list of archs, and a random one under limits."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from nas_kd.codec.arch import Arch, Choice, load_arch
from nas_kd.codec.search_space import SearchSpace
from nas_kd.errors import StudyError
from nas_kd.study.limits import Limits

Grid = tuple[tuple[str, tuple[Choice, ...]], ...]
TRIES = 5000
"""Random archs that are looked at for one under the limits."""


def frozen_grid(grid: Any) -> Grid:
    """From a table, or from the pairs that JSON made of it."""
    try:
        pairs = dict(grid)
    except (TypeError, ValueError):
        pairs = {}
    if not pairs or not all(
        values and isinstance(values, (list, tuple)) for values in pairs.values()
    ):
        raise StudyError(f"grid = {grid!r}: must be a table of lists, such as N = [16, 32]")
    return tuple((str(name), tuple(values)) for name, values in pairs.items())


def grid_points(space: SearchSpace, grid: dict[str, tuple[Choice, ...]]) -> list[dict[str, Choice]]:
    """The combinations of a grid, each arch once; names it leaves out take all their values."""
    for name in grid:
        if name not in space.vary:
            raise StudyError(
                f"grid.{name}: search space {space.name} has no such name; it varies {', '.join(space.vary)}"
            )
    points = SearchSpace(space.name, space.vary | grid, space.template).grid()
    return list({space.arch(point).key: point for point in points}.values())


def listed(archs: Any) -> tuple[str, ...]:
    """The entries of a list of archs as JSON texts: tables of choices, or the archs of the files they name."""
    if not isinstance(archs, (list, tuple)) or not archs:
        raise StudyError(
            f"archs = {archs!r}: must be a list of tables of choices ({{N = 16}}) or of arch files"
        )
    return tuple(_entry(entry) for entry in archs)


def _entry(entry: Any) -> str:
    if isinstance(entry, str) and not entry.startswith("{"):
        return json.dumps(load_arch(Path(entry)).to_json(), sort_keys=True)
    if isinstance(entry, dict):
        return json.dumps(entry, sort_keys=True)
    if isinstance(entry, str):
        return entry
    raise StudyError(f"archs: {entry!r}: must be a table of choices or the name of an arch file")


def listed_points(space: SearchSpace, archs: tuple[str, ...]) -> list[dict[str, Choice]]:
    """The choices of each entry, in order, each arch once."""
    points = [_point(space, json.loads(entry)) for entry in archs]
    return list({space.arch(point).key: point for point in points}.values())


def _point(space: SearchSpace, entry: dict[str, Any]) -> dict[str, Choice]:
    if "encoder" not in entry:
        space.arch(entry)  # raises where a choice is missing or no choice
        if unknown := sorted(set(entry) - set(space.vary)):
            raise StudyError(f"archs: search space {space.name} has no {unknown[0]}")
        return entry
    arch = Arch.from_json(entry, where="archs")
    params = space.params_of(arch)
    if params is None:
        raise StudyError(f"archs: {arch} is not in search space {space.name}")
    return params


def under(space: SearchSpace, limits: Limits, levels: int, seed: int) -> dict[str, Choice]:
    """A random point under the limits known in advance; raises StudyError where none is found."""
    generator = random.Random(seed)
    for _ in range(TRIES):
        point = {name: generator.choice(choices) for name, choices in space.vary.items()}
        if limits.over(space.arch(point), levels) <= 0:
            return point
    raise StudyError(
        f"{limits.in_words}: none of {TRIES} random archs of space {space.name} is under that; raise "
        "the limit, or take a space with smaller archs"
    )
