"""The command line; every command's imports stand inside it, so that --help is quick."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer

from nas_kd import __version__
from nas_kd.cli import codec as cli_codec
from nas_kd.cli import fetch as cli_fetch
from nas_kd.cli import machine as cli_machine
from nas_kd.cli import search as cli_search
from nas_kd.cli import share as cli_share
from nas_kd.cli import study as cli_study
from nas_kd.cli import train as cli_train
from nas_kd.cli.common import WholeHelp
from nas_kd.errors import NasKdError, Stopped, UsageError

GO_ON = ("search", "warmup", "distill", "teacher", "fetch")
"""Commands that keep what is done: the same command again goes on from there."""


class Commands(WholeHelp):
    """All commands; one of an earlier version says what replaced it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As usual, but for ``table``."""
        if args[0] == "table" and not ctx.resilient_parsing:
            now = ["nas-kd paper", *(word for word in args[1:] if word != "--paper")]
            raise UsageError(f"nas-kd {' '.join(args)}: now {' '.join(now)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Search for small, frugal learned image codecs, distilled from a large one.",
)
for part in (cli_search, cli_study, cli_codec, cli_share, cli_train, cli_fetch, cli_machine):
    app.add_typer(part.app)


def main() -> None:
    """Run a command; errors are one line, exit codes 0, 1 (failed), 2 (usage) and 130 (stopped)."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        app()
    except NasKdError as error:
        print(f"nas-kd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as ended:  # what typer makes of Ctrl-C
        if ended.code == Stopped.exit_code:
            again = "; run the same command again to go on" if sys.argv[1] in GO_ON else ""
            print(f"nas-kd: stopped{again}", file=sys.stderr)
        raise


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass
