"""The command line; every command's imports stand inside it, so that --help is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nas_kd import __version__, cli_codec, cli_fetch, cli_machine, cli_study, cli_train
from nas_kd.errors import NasKdError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Search for small, frugal learned image codecs, distilled from a large one.",
)
for part in (cli_study, cli_codec, cli_train, cli_fetch, cli_machine):
    app.add_typer(part.app)


def main() -> None:
    """Run a command; errors are one line, exit codes 0, 1 (failed) and 2 (usage)."""
    try:
        app()
    except NasKdError as error:
        print(f"nas-kd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("nas-kd: stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass
