"""A codec on disk: ``student.safetensors`` and ``arch.json`` in one folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from nas_kd.codec.arch import Arch
from nas_kd.codec.student import Student
from nas_kd.errors import UsageError
from nas_kd.files import write_bytes, write_text

FORMAT = 1
WEIGHTS, ARCH = "student.safetensors", "arch.json"
TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")
"""Buffers that ``update()`` derives from the weights; they are not stored."""


def stored_tensors(student: Student) -> dict[str, torch.Tensor]:
    """The tensors that make this codec, on the CPU, without what ``update()`` derives."""
    state = student.state_dict().items()
    return {k: v.detach().cpu().contiguous() for k, v in state if not k.endswith(TABLES)}


def weights_digest(student: Student) -> str:
    """sha256 over arch, lambdas and every stored tensor."""
    digest = hashlib.sha256(json.dumps([student.arch.key, student.lmbdas]).encode())
    for name, tensor in sorted(stored_tensors(student).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def require_unfinished(folder: Path, checkpoint: Path) -> None:
    """Raise UsageError where a finished codec lies, which a new one would replace; a checkpoint is gone on from."""
    if (folder / WEIGHTS).exists() and not checkpoint.exists():
        raise UsageError(
            f"{folder}: holds a finished codec already ({WEIGHTS}); give another folder, or delete it"
        )


def save_student(student: Student, folder: Path, about: dict[str, Any] | None = None) -> None:
    """Write the codec into a folder; ``about`` is kept in ``arch.json`` beside the arch.

    Its quantiles are searched first if they were not: they are stored, since another machine's search
    could end elsewhere.
    """
    if student.coder is None:
        _make_tables(student, update_quantiles=True)
    folder.mkdir(parents=True, exist_ok=True)
    # Not by its save_file, which makes files that only their owner may read.
    write_bytes(folder / WEIGHTS, save(_compact(stored_tensors(student))))
    data = {
        "format": FORMAT,
        "arch": student.arch.to_json(),
        "lmbdas": list(student.lmbdas),
        "sha256": weights_digest(student),
        "about": about or {},
    }
    write_text(folder / ARCH, json.dumps(data, indent=1) + "\n")


def _compact(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In half precision where that loses nothing."""
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    exact = {name for name, half in halves.items() if torch.equal(half.float(), tensors[name])}
    return {name: halves[name] if name in exact else tensors[name] for name in tensors}


@torch.no_grad()
def in_half_precision(student: Student) -> Student:
    """The student with every weight rounded to half precision, in which it is then stored; ready to compress."""
    ready(student)
    for p in student.parameters():
        p.copy_(p.half().float())
    _make_tables(student, update_quantiles=False)
    return student


def load_student(folder: str | Path) -> Student:
    """A trained codec from its folder, ready to compress (tables are made).

    Raises UsageError naming the file and the rule.
    """
    folder = Path(folder)
    data = read_arch_file(folder)
    student = Student(Arch.from_json(data["arch"], f"{folder / ARCH}: arch"), tuple(data["lmbdas"]))
    try:
        tensors = load_file(folder / WEIGHTS)
        missing, unexpected = torch.nn.Module.load_state_dict(student, tensors, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise UsageError(
            f"{folder / WEIGHTS}: cannot be loaded ({line}); export it again"
        ) from error
    wanted = [name for name in missing if not name.endswith(TABLES)]
    if wanted or unexpected:
        raise UsageError(
            f"{folder / WEIGHTS}: does not fit arch.json ({[*wanted, *unexpected][0]}); export it again"
        )
    if weights_digest(student) != data["sha256"]:
        raise UsageError(f"{folder / WEIGHTS}: checksum differs from arch.json; export it again")
    require_finite(tensors, folder / WEIGHTS)
    _make_tables(student.eval(), update_quantiles=False)
    return student


def read_arch_file(folder: Path) -> dict[str, Any]:
    """``arch.json`` of a codec's folder, checked for its keys."""
    try:
        data = json.loads((folder / ARCH).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder}: no codec there ({_what_is_wrong(folder, error)}); "
            "give a folder that `nas-kd export` or `nas-kd distill` wrote"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UsageError(f"{folder / ARCH}: format must be {FORMAT}; export the student again")
    if lacking := sorted({"arch", "lmbdas", "sha256"} - data.keys()):
        raise UsageError(f"{folder / ARCH}: {lacking[0]} is missing; export the student again")
    return data


def _what_is_wrong(folder: Path, error: OSError | ValueError) -> str:
    if not folder.exists():
        return "no such folder"
    if not folder.is_dir():
        return "a file, no folder"
    if isinstance(error, FileNotFoundError):
        return f"{ARCH} is missing"
    return f"{ARCH}: {error.strerror}" if isinstance(error, OSError) else f"{ARCH} is damaged"


def require_finite(
    tensors: dict[str, torch.Tensor], file: Path, error: type[UsageError] = UsageError
) -> None:
    """Raise the error where a file's weights hold what is no finite number."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise error(
                f"{file}: {name} holds NaN or infinite values: its training went wrong; give another"
            )


def ready(student: Student) -> Student:
    """Evaluation mode, with the entropy coder's tables made from the weights."""
    _make_tables(student.eval(), update_quantiles=True)
    return student


def _make_tables(student: Student, update_quantiles: bool) -> None:
    with torch.no_grad():
        student.update(force=True, update_quantiles=update_quantiles)
