"""Students that start from slices of their teacher's own weights, where the teacher is of their family.

The teacher's channels are put in order first (``ordering``): its leading channels are what a slice keeps (EVC,
arXiv 2302.05071, prunes by learned masks instead).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from nas_kd.codec.arch import Arch, prim
from nas_kd.codec.checkpoint import FORMAT as CODEC_FORMAT
from nas_kd.codec.checkpoint import load_student, save_student
from nas_kd.codec.search_space import SearchSpace
from nas_kd.codec.student import Student, slice_params
from nas_kd.errors import SpaceError, UsageError
from nas_kd.files import build_once
from nas_kd.supernet.channel_order import ordered
from nas_kd.teachers.teacher import FixedRateTeacher, Teacher, VariableRateTeacher

FORMAT = 2
"""Raised when what ``inherit`` writes changes, the order of channels included."""
HYPERPRIOR = "bmshj2018-hyperprior"
WAY_OUT = "search such archs, or take --set init=shared or init=scratch"


class Inherited:
    """The teacher as one of our students, of which narrower ones are slices."""

    def __init__(self, wide: Student):
        self.wide = wide

    def student(self, arch: Arch) -> Student:
        """A student of its own that starts from the slices.

        Raises SpaceError where the arch is no part of the teacher's.
        """
        student = Student(arch, self.wide.lmbdas)
        try:
            slices = slice_params(dict(self.wide.named_parameters()), student)
        except KeyError as error:
            raise SpaceError(
                f"init = 'teacher': arch {arch} is no part of the teacher's {self.wide.arch} "
                f"({error.args[0]}); {WAY_OUT}"
            ) from error
        with torch.no_grad():
            for name, p in student.named_parameters():
                p.copy_(slices[name])
        return student


def as_student(teacher: Teacher) -> Student:
    """The teacher with our names of parameters; raises SpaceError unless it is of a family that we have.

    These are nas-kd's own codecs, and CompressAI's bmshj2018-hyperprior of one quality.
    """
    if isinstance(teacher, VariableRateTeacher):
        return teacher.student
    if isinstance(teacher, FixedRateTeacher) and teacher.levels == 1:
        member = teacher.members[0]
        if member.__class__.__name__ == "ScaleHyperprior":
            return _hyperprior(member, teacher.lmbdas)
    raise SpaceError(
        f"init = 'teacher': students are no slices of {teacher.name}; a codec of nas-kd or one quality of "
        f"{HYPERPRIOR} can be sliced: give such a teacher, or take --set init=shared or init=scratch"
    )


def _hyperprior(theirs: torch.nn.Module, lmbdas: tuple[float, ...]) -> Student:
    state = dict(theirs.named_parameters())
    N, M = state["g_a.0.weight"].shape[0], state["g_a.6.weight"].shape[0]
    ours = Student(prim(N, M), lmbdas)
    with torch.no_grad():
        for name, p in ours.named_parameters():
            p.copy_(state[name_there(name)])
    return ours


def name_there(name: str) -> str:
    """Our name of a parameter, in CompressAI's ScaleHyperprior."""
    table = {"h_a.conv0": "h_a.0", "h_a.conv1": "h_a.2", "h_a.conv2": "h_a.4"}
    table |= {"h_s.deconv0": "h_s.0", "h_s.deconv1": "h_s.2", "entropy_parameters.scales": "h_s.4"}
    table |= {"g_a.head": "g_a.6", "g_s.stem.conv": "g_s.6"}
    for i in range(3):
        for side, place in (("g_a", i), ("g_s", 2 - i)):
            table[f"{side}.stages.{i}.resample"] = f"{side}.{2 * place}"
            table[f"{side}.stages.{i}.act"] = f"{side}.{2 * place + 1}"
    for ours, theirs in table.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    return name


def is_family(teacher: Teacher, space: SearchSpace) -> bool:
    """Whether the space's archs were trained as slices of the teacher's weights."""
    return isinstance(teacher, VariableRateTeacher) and teacher.family == space.fingerprint


def require_slices(archs: Iterable[Arch], teacher: Teacher) -> None:
    """Raise SpaceError unless every one of the archs is a part of the teacher's."""
    wide = Inherited(as_student(teacher))
    for arch in archs:
        wide.student(arch)


def inherit(cache: Path, teacher: Teacher) -> Path:
    """The folder of the teacher with its channels in order, written once per teacher.

    Raises SpaceError where the teacher is of no family that we have.
    """
    wide = as_student(teacher)
    key_of = [FORMAT, CODEC_FORMAT, teacher.fingerprint]
    key = hashlib.sha256(json.dumps(key_of).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        save_student(ordered(wide), folder, {"teacher": teacher.name})

    return build_once(cache / key, build, _is_whole)


def _is_whole(folder: Path) -> bool:
    with suppress(UsageError):
        load_student(folder)
        return True
    return False


def load_inherited(folder: Path) -> Inherited:
    """What ``inherit`` wrote."""
    return Inherited(load_student(folder))
