"""Commands about this machine: doctor, measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def doctor() -> None:
    """What this machine has, and what follows for a search.

    Example: nas-kd doctor
    """
    from nas_kd.doctor import findings

    for what, finding in findings():
        print(f"{what + ':':19}{finding}")


@app.command()
def measure(
    codec: Annotated[
        Path, typer.Argument(metavar="STUDENT_OR_ARCH", help="a student's folder, or an arch file")
    ],
    quick: Annotated[bool, typer.Option("--quick", help="shorter windows, fewer runs")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """MACs, memory, latency and energy on this machine, beside the built-in teacher's.

    Example: nas-kd measure students/trial-0003 --quick
    """
    from nas_kd.measure import in_lines, measure_codec

    figures = measure_codec(codec, quick)
    for line in [json.dumps(figures)] if as_json else in_lines(figures):
        print(line)
