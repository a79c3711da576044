"""Which teachers are at hand: built in, in CompressAI's files by their names, or on disk; nothing is loaded."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from nas_kd.errors import TeacherError
from nas_kd.places import TEACHERS

ZOO_NAMES = (
    "bmshj2018-factorized",
    "bmshj2018-hyperprior",
    "mbt2018-mean",
    "mbt2018",
    "cheng2020-anchor",
    "cheng2020-attn",
)
ALIASES = {"cheng2020": "cheng2020-anchor"}
NO_HYPER_LATENTS = "bmshj2018-factorized"
ZOO_QUALITIES = 6
SERVED = re.compile(r"(?P<prefix>.+)-(?P<quality>[1-8])-[0-9a-f]{8}\.pth\.tar")
"""A file that CompressAI serves: name, quality, and the first digits of its sha256."""


class TeacherSpec(NamedTuple):
    """Which teacher: what ``load_teacher`` takes.

    name: ``mini``, a codec's folder, a CompressAI checkpoint, or a zoo name with ``:quality``. weights: folder of
    CompressAI's zoo files, by default torch hub's. lmbda: what the students of a one-level teacher are trained
    for, by default the teacher's own. second: another teacher, for the hyper-latents.
    """

    name: str
    weights: str | None = None
    lmbda: float | None = None
    second: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of both teachers, where there are two."""
        return (self.name,) if self.second is None else (self.name, self.second)


def hub_folder() -> Path:
    """Where torch keeps what CompressAI has downloaded (as torch.hub.get_dir has it, without torch)."""
    cache = os.getenv("XDG_CACHE_HOME", "~/.cache")
    home = os.getenv("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def file_says(file: Path) -> tuple[str | None, int | None]:
    """Zoo name and quality that a file's name begins with, each None where it does not say."""
    # The zoo has one file stem that is not the model's name: cheng2020_attn-mse.
    stem = file.name.replace("cheng2020_attn-mse", "cheng2020-attn")
    named = [n for n in ZOO_NAMES if re.match(re.escape(n) + r"([-_.]|$)", stem)]
    name = max(named, key=len, default=None)
    served = SERVED.fullmatch(stem)
    exact = served is not None and served["prefix"] == name
    return name, int(served["quality"]) if served is not None and exact else None


def zoo_qualities(spec: str) -> tuple[str, list[int]] | None:
    """The zoo name and qualities of ``NAME`` or ``NAME:QUALITY``; None where it is no name of the zoo."""
    name, colon, quality = spec.partition(":")
    if (name := ALIASES.get(name, name)) not in ZOO_NAMES:
        return None
    if name == NO_HYPER_LATENTS:
        raise TeacherError(f"teacher {name}: has no hyper-latents to distil; choose another")
    if colon and not (quality.isdecimal() and 1 <= int(quality) <= ZOO_QUALITIES):
        raise TeacherError(f"teacher {name}:{quality}: quality must be 1 to {ZOO_QUALITIES}")
    return name, [int(quality)] if colon else list(range(1, ZOO_QUALITIES + 1))


def is_built_in(spec: str) -> bool:
    """Whether that is the name of a teacher that comes with nas-kd."""
    return any(spec == folder.name for folder in TEACHERS.iterdir())


def folder_of(spec: str) -> Path:
    """Where the codec of a built-in teacher lies, or one of one's own."""
    return TEACHERS / spec if is_built_in(spec) else Path(spec)


def family_of(spec: str) -> str | None:
    """The fingerprint of the space whose archs were trained as slices of a teacher, if any were."""
    try:
        said = json.loads((folder_of(spec) / "arch.json").read_text())
    except (OSError, ValueError):
        return None  # one of CompressAI's, or none: whoever loads it says so
    about = said.get("about") if isinstance(said, dict) else None
    return about.get("family") if isinstance(about, dict) else None


def is_compressai(spec: str) -> bool:
    """Whether that is a zoo name, or a file or folder of CompressAI's models; whether they are there is not asked."""
    path = Path(spec)
    if path.is_dir():
        return any(None not in file_says(file) for file in path.glob("*.pth.tar"))
    return path.is_file() or zoo_qualities(spec) is not None


def require_at_hand(spec: str, weights: str | None) -> None:
    """Raise TeacherError, naming all that is missing and the ways out, where a teacher cannot be had."""
    asked = zoo_qualities(spec)
    if asked is not None:
        require_files(*asked, weights)
    elif not any(spec == folder.name for folder in TEACHERS.iterdir()) and not Path(spec).exists():
        known = ", ".join(["mini", *ALIASES, *ZOO_NAMES])
        raise TeacherError(
            f"teacher '{spec}': neither a folder, nor a file, nor one of {known}; give one of these"
        )


def require_files(name: str, qualities: list[int], weights: str | None) -> None:
    """Raise TeacherError unless there is a file for every quality, by its name."""
    if weights is not None and not Path(weights).is_dir():
        raise TeacherError(f"weights {weights}: no such folder; give one with CompressAI's files")
    place = hub_folder() if weights is None else Path(weights)
    there = {file_says(file) for file in place.glob("*.pth.tar")}
    missing = [str(q) for q in qualities if (name, q) not in there]
    if missing:
        which = "quality" if len(missing) == 1 else "qualities"
        raise TeacherError(
            f"teacher {name}: weights of {which} {', '.join(missing)} are not on this machine "
            f"({name}-{missing[0]}-HASH.pth.tar in {place}); run `nas-kd fetch {name} --to {place}`, or name another "
            "folder (--set weights=DIR; for eval --weights DIR), or give a folder that `nas-kd teacher train` wrote, "
            "or take the built-in one (--teacher mini)"
        )
