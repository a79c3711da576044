"""CompressAI's models from files, as its zoo serves them and as its training example writes them.

A served file is named ``<name>-<quality>-<8 hex of its sha256>.pth.tar`` and holds a state dict; a checkpoint of
training is any file with a state dict, or with one under ``state_dict``. What torch hub's folder lacks is fetched,
where the user agrees.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nas_kd.lic  # noqa: F401  (the light import of CompressAI)
from nas_kd.errors import TeacherError
from nas_kd.fetch import supply
from nas_kd.zoo_files import (
    DIGEST,
    NO_HYPER_LATENTS,
    WAY_OUT,
    ZOO_NAMES,
    file_in,
    hub_folder,
    order_of,
    parsed,
)

SERVED = re.compile(r"(?P<prefix>.+)-(?P<quality>[1-8])-[0-9a-f]{8}\.pth\.tar")


@dataclass(frozen=True)
class Member:
    """One model of a file; ``quality`` is None where the file's name does not say it."""

    name: str
    quality: int | None
    model: Any
    sha256: str


def zoo_members(spec: str, folder: str | None) -> list[Member]:
    """The models of a zoo name, one per quality, from ``folder``.

    By default that is torch hub's, and what it lacks is fetched. Raises TeacherError naming what is missing and
    the ways out.
    """
    name, qualities = parsed(spec)
    if folder is None and (lacking := order_of(spec)) is not None:
        supply([lacking])
    return [zoo_member(name, quality, folder) for quality in qualities]


def zoo_member(name: str, quality: int, folder: str | None) -> Member:
    """A zoo model from its file in ``folder``, by default torch hub's cache.

    Raises TeacherError naming what is missing and the ways out.
    """
    if folder is not None and not Path(folder).is_dir():
        raise TeacherError(f"--weights {folder}: no such folder; give one with CompressAI's files")
    return load_member(_zoo_file(name, quality, folder), name)


def _zoo_file(name: str, quality: int, folder: str | None) -> Path:
    place = hub_folder() if folder is None else Path(folder)
    official = file_in(place, name, quality)
    if official.is_file():
        return official
    found = sorted(f for f in place.glob("*.pth.tar") if _says(f) == (name, quality))
    if len(found) > 1:
        names = ", ".join(f.name for f in found)
        raise TeacherError(f"{place}: several files for {name} {quality} ({names}); keep one")
    if not found:
        raise TeacherError(_ways_out(name, quality, official))
    return found[0]


def _ways_out(name: str, quality: int, file: Path) -> str:
    return (
        f"teacher {name}: weights of quality {quality} are not in that folder ({file.name} in {file.parent}); "
        f"run `nas-kd fetch {name}:{quality} --to {file.parent}`, or name another (--weights DIR), {WAY_OUT}"
    )


def family_members(folder: Path) -> list[Member]:
    """The models of a folder of files named as the zoo's, by quality; none where there are no such files.

    Raises TeacherError unless they are of one name, one per quality.
    """
    found = [(f, *_says(f)) for f in sorted(folder.glob("*.pth.tar"))]
    served = [(name, quality, f) for f, name, quality in found if name and quality]
    kinds = sorted({(name, quality) for name, quality, _ in served})
    if len({name for name, _ in kinds}) > 1 or len(kinds) < len(served):
        names = ", ".join(f.name for _, _, f in served)
        raise TeacherError(
            f"{folder}: holds several families, or two files of one quality ({names}); "
            "name one, as NAME:QUALITY with --weights, or keep one of each quality"
        )
    return [load_member(f, name) for name, _, f in sorted(served, key=lambda one: one[1])]


def _says(file: Path) -> tuple[str | None, int | None]:
    """Zoo name and quality that a file's name begins with, each None where it does not say."""
    # The zoo has one file stem that is not the model's name: cheng2020_attn-mse.
    stem = file.name.replace("cheng2020_attn-mse", "cheng2020-attn")
    named = [n for n in ZOO_NAMES if re.match(re.escape(n) + r"([-_.]|$)", stem)]
    name = max(named, key=len, default=None)
    served = SERVED.fullmatch(stem)
    exact = served is not None and served["prefix"] == name
    return name, int(served["quality"]) if served is not None and exact else None


def load_member(file: Path, name: str | None = None) -> Member:
    """The model in a file, its hash checked where its name carries one.

    Args:
        file: a served file or a checkpoint.
        name: the architecture; by default what the file's name begins with, else the first that fits.
    """
    sha256 = _checked_digest(file)
    state = _state_dict(file)
    says, quality = _says(file)
    names = [name] if name else [says] if says else list(ZOO_NAMES)
    for candidate in names:
        if (model := _fitted(candidate, state)) is not None:
            if candidate == NO_HYPER_LATENTS:
                raise TeacherError(f"{file}: {candidate} has no hyper-latents to distil")
            return Member(candidate, quality, model, sha256)
    raise TeacherError(f"{file}: its tensors do not fit {' or '.join(names)}; give another file")


def _checked_digest(file: Path) -> str:
    try:
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise TeacherError(
            f"{file}: cannot be read ({error.strerror}); give another file"
        ) from error
    named = DIGEST.search(file.name)
    if named and not sha256.startswith(named[1]):
        raise TeacherError(
            f"{file}: its sha256 begins with {sha256[:8]}, its name says {named[1]}: "
            "damaged or renamed; copy it again"
        )
    return sha256


def _state_dict(file: Path) -> dict[str, Tensor]:
    from compressai.zoo.image import load_pretrained

    try:
        data = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        line = (str(error).splitlines() or [""])[0][:80]
        raise TeacherError(
            f"{file}: cannot be loaded as weights ({type(error).__name__}: {line}); copy it again"
        ) from error
    state = data.get("state_dict", data) if isinstance(data, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise TeacherError(f"{file}: holds no state dict; give a checkpoint of CompressAI")
    return load_pretrained(state)


def _fitted(name: str, state: dict[str, Tensor]) -> Any | None:
    from compressai.zoo.image import model_architectures

    try:
        return model_architectures[name].from_state_dict(state)
    except (KeyError, RuntimeError, AttributeError, IndexError, ValueError, TypeError):
        return None
