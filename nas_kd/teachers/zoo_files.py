"""The files of CompressAI's zoo: their names and addresses by CompressAI's own table, and where they lie here.

The table is read from the installed package's source, so that what is lacking is told before PyTorch is loaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
from functools import cache
from pathlib import Path

from nas_kd.data.download import Wanted
from nas_kd.data.fetch import Order, supply
from nas_kd.errors import NasKdError, TeacherError
from nas_kd.teachers.served import NO_HYPER_LATENTS, ZOO_NAMES, file_says, hub_folder, zoo_qualities

TEACHERS = tuple(name for name in ZOO_NAMES if name != NO_HYPER_LATENTS)
"""Those with hyper-latents to distil."""
ABOUT_MB = {
    "bmshj2018-factorized": (5, 12, 28),
    "bmshj2018-hyperprior": (5, 20, 47),
    "mbt2018-mean": (4, 28, 70),
    "mbt2018": (4, 64, 122),
    "cheng2020-anchor": (3, 51, 114),
    "cheng2020-attn": (3, 56, 126),
}
"""Last quality of the narrow model, and 10^6 bytes of its state dict and of the wide one's: the table has no sizes."""
DIGEST = re.compile(r"-([0-9a-f]{8})\.pth(\.tar)?$")
WAY_OUT = (
    "or take a folder that `nas-kd teacher train` wrote, or the built-in teacher (--teacher mini)"
)


@cache
def addresses() -> dict[str, dict[int, str]]:
    """Of the models trained for MSE, by name and quality.

    Raises NasKdError where the installed CompressAI has no such table.
    """
    spec = importlib.util.find_spec("compressai")
    places = (spec.submodule_search_locations or ()) if spec else ()
    source = next((p for at in places if (p := Path(at, "zoo", "image.py")).is_file()), None)
    if source is None:
        raise NasKdError("CompressAI's table of addresses is not found; reinstall compressai 1.2.8")
    return {name: _table(source)[name]["mse"] for name in ZOO_NAMES}


def _table(source: Path) -> dict[str, dict[str, dict[int, str]]]:
    """``model_urls`` of the file, whose addresses begin with its ``root_url``."""
    found = {
        target.id: node.value
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("root_url", "model_urls")
    }
    names = {"root_url": ast.literal_eval(found["root_url"])}
    plain = _Spelt(names).visit(found["model_urls"])
    return ast.literal_eval(plain)


class _Spelt(ast.NodeTransformer):
    """Formatted strings of known names as plain ones."""

    def __init__(self, names: dict[str, str]):
        self.names = names

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        """``f"{root_url}/file"``, spelt out."""
        parts = [
            str(part.value) if isinstance(part, ast.Constant) else self.names[part.value.id]  # type: ignore[attr-defined]
            for part in node.values
        ]
        return ast.Constant("".join(parts))


def file_in(folder: Path, name: str, quality: int) -> Path:
    """Where a model's file lies in a folder, under the name that CompressAI serves it by."""
    return folder / Path(addresses()[name][quality]).name


def order_of(spec: str, folder: Path | None = None) -> Order | None:
    """What is lacking of a zoo teacher in a folder, by default torch hub's.

    None where nothing is, or where the teacher is not of the zoo. A model of that name and quality that the user made
    himself serves as well.
    """
    asked = zoo_qualities(spec)
    place = hub_folder() if folder is None else folder
    there = {file_says(file) for file in place.glob("*.pth.tar")}
    name, qualities = asked or ("", [])
    lacking = tuple(_wanted(place, name, q) for q in qualities if (name, q) not in there)
    if not lacking:
        return None
    return Order(
        f"teacher {spec}",
        spec,
        lacking,
        place,
        "served by CompressAI (BSD 3-Clause Clear)",
        carried="--set weights=DIR",
        way_out=WAY_OUT,
        refusal=TeacherError,
    )


def fetch_lacking(spec: str) -> None:
    """Fetch what torch hub's folder lacks of a zoo teacher, where the user agrees; nothing for another teacher."""
    if (lacking := order_of(spec)) is not None:
        supply([lacking])


def drop_damaged(spec: str, folder: Path | None = None) -> None:
    """Delete the zoo's files whose contents are not those of their name, so that they are fetched anew."""
    name, qualities = zoo_qualities(spec) or ("", [])
    place = hub_folder() if folder is None else folder
    for path in (file_in(place, name, quality) for quality in qualities):
        digest = DIGEST.search(path.name)
        if path.is_file() and digest and not _sha256(path).startswith(digest[1]):
            path.unlink()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wanted(folder: Path, name: str, quality: int) -> Wanted:
    path = file_in(folder, name, quality)
    digest = DIGEST.search(path.name)
    last_narrow, narrow_mb, wide_mb = ABOUT_MB[name]
    size = (narrow_mb if quality <= last_narrow else wide_mb) * 10**6
    return Wanted(path, (addresses()[name][quality],), digest[1] if digest else "", size)
