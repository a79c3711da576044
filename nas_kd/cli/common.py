"""What the commands share: options, whole help texts, checks that are made before anything heavy is imported."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nas_kd.errors import UsageError


class WholeHelp(TyperGroup):
    """A group that lists its commands with their first paragraphs whole, where click cuts them off."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """One row per command."""
        helps = ((name, self.commands[name].help) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_paragraph(text or "")) for name, text in helps])


def _first_paragraph(text: str) -> str:
    return inspect.cleandoc(text).partition("\n\n")[0].replace("\n", " ")


def at_least_one(param: typer.CallbackParam, value: int | None) -> int | None:
    """A count that was given, or None; raises UsageError at 0 and below."""
    if value is not None and value < 1:
        raise UsageError(f"--{param.name} {value}: must be at least 1")
    return value


def require_there(path: Path) -> None:
    """Raise UsageError where there is nothing at a path to read."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder; give one that is there")


def known_study(ctx: typer.Context, spec: str) -> str:
    """A study's name, there in ``studies`` unless a storage is named; a student's folder passes as it is."""
    from nas_kd.study.settings import require_study, study_name

    if ctx.params.get("storage") is not None or (Path(spec) / "arch.json").is_file():
        return study_name(spec)
    return require_study(spec)


def say(text: Any) -> None:
    """Print what rich can draw."""
    from rich.console import Console

    Console(soft_wrap=False).print(text)


Storage = Annotated[
    str | None,
    typer.Option(
        envvar="NAS_KD_STORAGE",
        is_eager=True,  # a study's name is looked up where this says
        help="database URL that drivers share [default: SQLite in studies/NAME]",
    ),
]
StudyName = Annotated[
    str, typer.Argument(callback=known_study, help="a study's name, as in studies/NAME")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Yes = Annotated[
    bool, typer.Option("--yes", help="fetch what is lacking without asking (weights, pictures)")
]
