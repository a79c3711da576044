"""The files of CompressAI's zoo: their names and addresses by CompressAI's own table, and where they lie here.

The table is read from the installed package's source, so that what is lacking is told before PyTorch is loaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import sys
from functools import cache
from pathlib import Path

from nas_kd.download import Wanted
from nas_kd.errors import NasKdError, TeacherError
from nas_kd.fetch import Order

ZOO_NAMES = (
    "bmshj2018-factorized",
    "bmshj2018-hyperprior",
    "mbt2018-mean",
    "mbt2018",
    "cheng2020-anchor",
    "cheng2020-attn",
)
NO_HYPER_LATENTS = "bmshj2018-factorized"
ALIASES = {"cheng2020": "cheng2020-anchor"}
TEACHERS = tuple(name for name in ZOO_NAMES if name != NO_HYPER_LATENTS)
"""Those with hyper-latents to distil."""
QUALITIES = 6
"""Those with a lambda of their own here; some models have more."""
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


def hub_folder() -> Path:
    """Where torch keeps what CompressAI has downloaded (``torch.hub.get_dir()``), found without torch."""
    if (torch := sys.modules.get("torch")) is not None:
        return Path(torch.hub.get_dir()) / "checkpoints"
    cache_home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache_home, "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def is_zoo(spec: str) -> bool:
    """Whether a teacher is named as one of the zoo."""
    name = spec.partition(":")[0]
    return ALIASES.get(name, name) in ZOO_NAMES


def parsed(spec: str) -> tuple[str, list[int]]:
    """Name and qualities of a zoo teacher; raises TeacherError for a quality that there is not."""
    name, _, quality = spec.partition(":")
    name = ALIASES.get(name, name)
    if name == NO_HYPER_LATENTS:
        raise TeacherError(f"teacher {name}: has no hyper-latents to distil; choose another")
    if quality and not (quality.isdecimal() and 1 <= int(quality) <= QUALITIES):
        raise TeacherError(f"teacher {name}:{quality}: quality must be 1 to {QUALITIES}")
    return name, [int(quality)] if quality else list(range(1, QUALITIES + 1))


def file_in(folder: Path, name: str, quality: int) -> Path:
    """Where a model's file lies in a folder, under the name that CompressAI serves it by."""
    return folder / Path(addresses()[name][quality]).name


def order_of(spec: str, folder: Path | None = None) -> Order | None:
    """What is lacking of a zoo teacher in a folder, by default torch hub's; None where all is there."""
    name, qualities = parsed(spec)
    place = hub_folder() if folder is None else folder
    files = [_wanted(place, name, quality) for quality in qualities]
    lacking = tuple(file for file in files if not _is_there(file.path))
    if not lacking:
        return None
    licence = "served by CompressAI (BSD 3-Clause Clear)"
    return Order(
        f"teacher {spec}",
        spec,
        lacking,
        place,
        licence,
        carried="--weights DIR",
        way_out=WAY_OUT,
        refusal=TeacherError,
    )


def drop_damaged(spec: str, folder: Path | None = None) -> None:
    """Delete the zoo's files whose contents are not those of their name, so that they are fetched anew."""
    name, qualities = parsed(spec)
    place = hub_folder() if folder is None else folder
    for path in (file_in(place, name, quality) for quality in qualities):
        digest = DIGEST.search(path.name)
        if path.is_file() and digest and not _sha256(path).startswith(digest[1]):
            path.unlink()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_there(official: Path) -> bool:
    """Whether a model of that name and quality is there, the zoo's or one of the user's own, of another hash."""
    stem = DIGEST.sub("", official.name)
    return official.is_file() or any(official.parent.glob(f"{stem}-????????.pth.tar"))


def _wanted(folder: Path, name: str, quality: int) -> Wanted:
    path = file_in(folder, name, quality)
    digest = DIGEST.search(path.name)
    last_narrow, narrow_mb, wide_mb = ABOUT_MB[name]
    size = (narrow_mb if quality <= last_narrow else wide_mb) * 10**6
    return Wanted(path, (addresses()[name][quality],), digest[1] if digest else "", size)
