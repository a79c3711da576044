"""Commands about this machine: doctor, measure, cache."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nas_kd.cli.common import require_there
from nas_kd.errors import UsageError

app = typer.Typer()


def _above_zero(gb: float | None) -> float | None:
    if gb is not None and not gb > 0:
        raise UsageError(f"--limit {gb:g}: must be above 0 GB; inf lifts the limit")
    return gb


@app.command()
def doctor() -> None:
    """What this machine has, and what follows for a search.

    Example: nas-kd doctor
    """
    from nas_kd.cli.doctor import findings

    for what, finding in findings():
        print(f"{what + ':':19}{finding}")


@app.command()
def measure(
    codec: Annotated[
        str,
        typer.Argument(
            metavar="CODEC",
            help="a student's folder, an arch file, or a teacher such as cheng2020:3",
        ),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="shorter windows, fewer runs")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON, a line for each model")
    ] = False,
) -> None:
    """MACs, memory, latency and energy on this machine, beside the built-in teacher's.

    Example: nas-kd measure students/trial-0003 --quick
    """
    from nas_kd.teachers.served import is_built_in, zoo_qualities

    if zoo_qualities(codec) is None and not is_built_in(codec):
        require_there(Path(codec))
    from nas_kd.measurement.codec_report import in_lines, measured
    from nas_kd.teachers.subjects import subjects

    for one in subjects(codec):
        figures = measured(one, quick)
        for line in [json.dumps(figures)] if as_json else in_lines(figures):
            print(line, flush=True)


@app.command()
def cache(
    drop: Annotated[
        bool, typer.Option("--drop", help="delete the teachers' outputs that no process works with")
    ] = False,
    limit: Annotated[
        float | None,
        typer.Option(
            callback=_above_zero,
            metavar="GB",
            help="that teachers' outputs may take together, from now on; inf lifts the limit",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """What studies share on disk: teachers' outputs and shared weights of this folder, sets of pictures of this user.

    Example: nas-kd cache --drop
    """
    from nas_kd.places import CACHE
    from nas_kd.teachers.targets import TARGETS, limit_gb, limit_pools
    from nas_kd.teachers.targets import drop as drop_pools

    if limit is not None:
        limit_pools(CACHE / TARGETS, limit)
    if drop and (CACHE / TARGETS).is_dir():
        drop_pools(CACHE / TARGETS)
    found = _entries(CACHE) + _picture_sets()
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["used_at"]))
        print(f"{one['bytes'] / 1e6:10.1f} MB  {used}  {one['folder']}  {one['holds']}".rstrip())
    print(f"{sum(one['bytes'] for one in found) / 1e6:10.1f} MB  in all")
    if math.isfinite(most_gb := limit_gb(CACHE / TARGETS)):
        print(f"{most_gb * 1e3:10.1f} MB  is what teachers' outputs may take")


def _entries(root: Path) -> list[dict[str, Any]]:
    """Folder, bytes, last use (seconds since 1970) and contents of all that lies in the cache, by kind."""
    from nas_kd.teachers.targets import TARGETS, pools, stats

    of_pools = {folder: about for folder, _, about in pools(root / TARGETS)}
    found = []
    for folder in sorted(folder for folder in root.glob("*/*") if folder.is_dir()):
        files = stats(folder)
        if not files:
            continue  # another process has just deleted it
        used_at = max(file.st_mtime for file in files)
        said, holds = of_pools.get(folder, {}), ""
        if {"teacher", "crops", "size", "data"} <= set(said):
            crops = "all crops" if said.get("anew") else f"{said['crops']} crops"
            holds = f"{said['teacher']}, {crops} of {said['size']} px of {said['data']}"
        size = sum(file.st_size for file in files)
        entry = {"folder": f"{folder.parent.name}/{folder.name}", "bytes": size}
        found.append(entry | {"used_at": used_at, "holds": holds})
    return found


def _picture_sets() -> list[dict[str, Any]]:
    """The same of sets that were fetched for ``--data``, their folders in full."""
    from nas_kd.data.picture_sets import fetched

    return [
        {
            "folder": str(folder),
            "bytes": sum(sizes.values()),
            "used_at": folder.stat().st_mtime,
            "holds": f"{len(sizes)} pictures, for --data {folder.name}",
        }
        for folder, sizes in fetched()
    ]
