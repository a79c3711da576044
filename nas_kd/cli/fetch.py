"""The command that brings weights and pictures from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas_kd.cli.common import Yes
from nas_kd.errors import UsageError

if TYPE_CHECKING:
    from nas_kd.data.fetch import Order

app = typer.Typer()


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="zoo teachers, sets of pictures; none lists what there is"),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="another folder than their own, to be carried elsewhere")
    ] = None,
    yes: Yes = False,
) -> None:
    """Fetch a teacher's weights or a set of pictures; run again to go on after a break.

    Example: nas-kd fetch cheng2020 kodak
    """
    from nas_kd.data.fetch import supply
    from nas_kd.data.picture_files import require_writable

    if not names:
        _list()
        return
    if to is not None:
        require_writable(to, "--to", folder=True)
    found = [(name, _lacking(name, to)) for name in names]
    supply([order for _, order in found if order is not None], yes)
    for name, order in found:
        print(f"{name}: {_place(name, to)}{'' if order else ', there already'}")


def _lacking(name: str, to: Path | None) -> Order | None:
    from nas_kd.data import picture_sets
    from nas_kd.teachers import zoo_files
    from nas_kd.teachers.served import ZOO_QUALITIES, zoo_qualities

    if zoo_qualities(name):
        zoo_files.drop_damaged(name, to)
        return zoo_files.order_of(name, to)
    known = picture_sets.known()
    if name not in known:
        raise UsageError(
            f"{name}: nothing to fetch is known by that name; there are {', '.join(zoo_files.TEACHERS)} (a quality "
            f"with :1 to :{ZOO_QUALITIES}), {', '.join(known)}, and what {picture_sets.own_file()} adds"
        )
    return picture_sets.order_of(known[name], to)


def _place(name: str, to: Path | None) -> Path:
    from nas_kd.data import picture_sets
    from nas_kd.teachers.served import hub_folder, zoo_qualities

    if zoo_qualities(name):
        return hub_folder() if to is None else to
    return (picture_sets.home() if to is None else to) / name


def _list() -> None:
    from nas_kd.data import picture_sets
    from nas_kd.teachers import zoo_files

    for name in zoo_files.TEACHERS:
        order = zoo_files.order_of(name)
        lacking = f"{len(order.files)} files lacking, {order.size_in_words}" if order else "there"
        print(f"{name + ':':22} a teacher; {lacking}")
    for one in picture_sets.known().values():
        there = "there" if picture_sets.is_there(one) else "lacking"
        print(f"{one.name + ':':22} {one.title or 'pictures'}; {one.in_words}; {there}")
