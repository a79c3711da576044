"""Commands about many exported students, and giving one away: leaderboard, push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

app = typer.Typer()


@app.command()
def leaderboard(
    students: Annotated[list[Path], typer.Argument(help="folders of students, or folders of such")],
    data: Annotated[str, typer.Option(help="builtin or a folder of pictures")] = "builtin",
    versus: Annotated[
        str, typer.Option(help="the codec that all stand against; on Kodak a published one too")
    ] = "jpeg",
    as_json: AsJson = False,
) -> None:
    """One table of many students: BD-rate on one set, MACs of each side, time and memory here, energy.

    Example: nas-kd leaderboard students my-student --data photographs --versus webp
    """
    from rich.console import Console

    from nas_kd.report.leaderboard import board_json, board_table
    from nas_kd.report.leaderboard import leaderboard as table_of

    board = table_of(students, data, versus)
    if as_json:
        print(json.dumps(board_json(board)))
    else:
        Console(soft_wrap=False).print(board_table(board))


@app.command()
def push(
    student: Annotated[Path, typer.Argument(help="folder of a student")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="where to")],
    public: Annotated[
        bool, typer.Option("--public", help="let everybody see it [default: its owner alone]")
    ] = False,
) -> None:
    """Upload a student to Hugging Face, with a token of your own; needs nas-kd[hub].

    Example: nas-kd push students/trial-0003 me/small-codec
    """
    from nas_kd.report.hub import push as upload

    print(upload(student, repository, public))
