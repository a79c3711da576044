"""CompressAI's models from files, as its zoo serves them and as its training example writes them.

A served file is named ``<name>-<quality>-<8 hex of its sha256>.pth.tar`` and holds a state dict; a checkpoint of
training is any file with a state dict, or with one under ``state_dict``; what lies beside it is not looked at.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

import nas_kd.codec.compressai_light  # noqa: F401  (the light import of CompressAI)
from nas_kd.codec.checkpoint import require_finite
from nas_kd.errors import TeacherError
from nas_kd.teachers.overheard import hyper_analysis
from nas_kd.teachers.served import ZOO_NAMES, file_says, hub_folder, require_files
from nas_kd.teachers.zoo_files import DIGEST, file_in

COMPILED = "_orig_mod."
"""What torch.compile puts into the names of a model's tensors."""


@dataclass(frozen=True)
class Member:
    """One model of a file; ``quality`` is None where the file's name does not say it."""

    name: str
    quality: int | None
    model: Any
    sha256: str


def zoo_member(name: str, quality: int, folder: str | None) -> Member:
    """A zoo model from its file in ``folder``, by default torch hub's cache.

    Raises TeacherError naming what is missing and the ways out.
    """
    require_files(name, [quality], folder)
    return load_member(_zoo_file(name, quality, folder), name)


def _zoo_file(name: str, quality: int, folder: str | None) -> Path:
    place = hub_folder() if folder is None else Path(folder)
    official = file_in(place, name, quality)
    if official.is_file():
        return official
    found = sorted(f for f in place.glob("*.pth.tar") if file_says(f) == (name, quality))
    if len(found) > 1:
        names = ", ".join(f.name for f in found)
        raise TeacherError(f"{place}: several files for {name} {quality} ({names}); keep one")
    return found[0]


def family_members(folder: Path) -> list[Member]:
    """The models of a folder of files named as the zoo's, by quality; none where there are no such files.

    Raises TeacherError unless they are of one name, one per quality.
    """
    found = [(f, *file_says(f)) for f in sorted(folder.glob("*.pth.tar"))]
    served = [(name, quality, f) for f, name, quality in found if name and quality]
    kinds = sorted({(name, quality) for name, quality, _ in served})
    if len({name for name, _ in kinds}) > 1 or len(kinds) < len(served):
        names = ", ".join(f.name for _, _, f in served)
        raise TeacherError(
            f"{folder}: holds several families, or two files of one quality ({names}); "
            "name one, as NAME:QUALITY with --set weights=DIR, or keep one of each quality"
        )
    return [load_member(f, name) for name, _, f in sorted(served, key=lambda one: one[1])]


def load_member(file: Path, name: str | None = None) -> Member:
    """The model in a file, its hash checked where its name carries one.

    Args:
        file: a served file or a checkpoint.
        name: the architecture; by default what the file's name begins with, else the first that fits.
    """
    sha256 = _checked_digest(file)
    state = _state_dict(file)
    says, quality = file_says(file)
    names = [name] if name else [*([says] if says else ZOO_NAMES), *newer_names()]
    for candidate in names:
        if (model := fitted(candidate, state)) is not None:
            if hyper_analysis(model) is None:
                raise TeacherError(f"{file}: {candidate} has no hyper-latents to distil")
            return Member(candidate, quality, model, sha256)
    others = "" if name else f", and CompressAI {_version()}, which is installed, has no others"
    raise TeacherError(
        f"{file}: its tensors do not fit {' or '.join(names)}{others}; give another file"
    )


def newer_names() -> list[str]:
    """CompressAI's models, as many as are installed, that have their h_a inside a latent codec."""
    from compressai.models.base import SimpleVAECompressionModel
    from compressai.registry import MODELS

    return [name for name, model in MODELS.items() if issubclass(model, SimpleVAECompressionModel)]


def _version() -> str:
    return importlib.metadata.version("compressai")


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

    data = _loaded(file)
    state = data.get("state_dict", data) if isinstance(data, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise TeacherError(f"{file}: holds no state dict; give a checkpoint of CompressAI")
    require_finite(state, file, TeacherError)
    return load_pretrained({k.replace(COMPILED, ""): v for k, v in state.items()})


class _Ignored:
    """Stands for an object that is no tensor: nothing of it is kept, and no code of it runs."""

    def __init__(self, *given: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _loaded(file: Path) -> Any:
    """What a file holds: tensors and plain values, an ``_Ignored`` for anything else."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:
        return _loaded_without(_others(file), file)
    except Exception as error:  # a damaged pickle can raise anything
        raise _damaged(file) from error


def _others(file: Path) -> list[str]:
    """Names of what a file holds beside tensors and plain values; it is read and not run."""
    try:
        return get_unsafe_globals_in_checkpoint(file)
    except Exception as error:
        raise _damaged(file) from error


def _loaded_without(names: list[str], file: Path) -> Any:
    try:
        with safe_globals([(_Ignored, name) for name in names]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TeacherError(
            f"{file}: holds objects that cannot be left out ({', '.join(names)}); save its state dict alone"
        ) from error


def _damaged(file: Path) -> TeacherError:
    return TeacherError(
        f"{file}: cannot be loaded as weights: damaged, or not written by torch.save; copy it again, or give "
        "another file"
    )


def fitted(name: str, state: dict[str, Tensor]) -> Any | None:
    """The family's model that has these weights; None where they do not fit."""
    from compressai.registry import MODELS

    try:
        return MODELS[name].from_state_dict(state)
    except (KeyError, RuntimeError, AttributeError, IndexError, ValueError, TypeError):
        return None
