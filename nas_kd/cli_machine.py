"""Commands about this machine: doctor."""

from __future__ import annotations

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
