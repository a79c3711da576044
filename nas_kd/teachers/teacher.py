"""Teachers: frozen codecs to distil from. Built in (``mini``), a nas-kd codec's folder, or CompressAI's models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nas_kd.codec.checkpoint import load_student, read_arch_file, weights_digest
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.errors import TeacherError, UsageError
from nas_kd.evaluation.rate_distortion import StudentCodec, spent
from nas_kd.places import TEACHERS
from nas_kd.teachers.overheard import HeardAll, latent_widths, overheard
from nas_kd.teachers.served import ZOO_QUALITIES, require_at_hand, zoo_qualities
from nas_kd.teachers.zoo import Member, family_members, load_member, zoo_member
from nas_kd.teachers.zoo_files import fetch_lacking


class Teacher(Protocol):
    """A frozen codec with one rate point per level."""

    name: str
    fingerprint: str
    lmbdas: tuple[float, ...]
    latent_widths: tuple[int, int]
    shared_latents: bool

    @property
    def levels(self) -> int:
        """Number of rate points."""

    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """x_hat and estimated bits [B] of padded pictures [B, 3, H, W]."""

    def every_level(self, x: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """The same at each level, ascending."""

    def outputs(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat, y and z (before quantisation) of pictures [B, 3, H, W]."""

    def latents(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The same y and z alone, which is a fraction of the work."""

    def to(self, device: str) -> Teacher:
        """Move the weights."""


class VariableRateTeacher:
    """A nas-kd codec as a teacher: one set of weights; y and z are the same at every level.

    family: fingerprint of the search space whose archs were trained with it as slices of its weights, if any were.
    """

    shared_latents = True

    def __init__(self, name: str, student: Student, family: str | None = None):
        self.name, self.student = name, student.eval().requires_grad_(False)
        self.family = family
        self.codec = StudentCodec(self.student)
        self.fingerprint = weights_digest(student)
        self.lmbdas = student.lmbdas
        self.latent_widths = (student.arch.M, student.arch.hyper)

    @property
    def levels(self) -> int:
        """Number of rate points."""
        return len(self.lmbdas)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """x_hat and estimated bits [B] of padded pictures."""
        return self.codec.reconstruct(x, level)

    def every_level(self, x: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """The same at each level, from one analysis."""
        return self.codec.every_level(x)

    @torch.no_grad()
    def outputs(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat, y and z of pictures."""
        # Made on the device: what a CUDA graph records takes no number from the host.
        out = self.student(x, torch.full((1,), float(level), device=x.device))
        return out["x_hat"], out["y"], out["z"]

    @torch.no_grad()
    def latents(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Y and z of pictures, the same at every level."""
        return self.student.latents(x)

    def to(self, device: str) -> VariableRateTeacher:
        """Move the weights."""
        self.student.to(device)
        return self


class FixedRateTeacher:
    """CompressAI models, one per level.

    Zoo models of one name differ in width between qualities: the latents of a narrow one are filled up with
    channels of NaN, which the loss leaves out.
    """

    shared_latents = False

    def __init__(self, name: str, members: list[Member], lmbdas: tuple[float, ...]):
        self.name, self.lmbdas = name, lmbdas
        self.fingerprint = "+".join(member.sha256 for member in members)
        self.families = [member.name for member in members]
        self.members = [member.model.eval().requires_grad_(False) for member in members]
        widths = [latent_widths(model) for model in self.members]
        self.latent_widths = (max(y for y, _ in widths), max(z for _, z in widths))

    @property
    def levels(self) -> int:
        """Number of rate points."""
        return len(self.members)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """x_hat and estimated bits [B] of padded pictures."""
        return spent(self.members[level - 1](x), x)

    def every_level(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The same at each level, by its own model."""
        return (self.reconstruct(x, level) for level in range(1, self.levels + 1))

    @torch.no_grad()
    def outputs(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat, y and z of pictures."""
        with overheard(self.members[level - 1]) as heard:
            x_hat = self.members[level - 1](x)["x_hat"]
        return x_hat, *self._filled_up(heard)

    @torch.no_grad()
    def latents(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Y and z of pictures."""
        with overheard(self.members[level - 1], only=True) as heard, suppress(HeardAll):
            self.members[level - 1](x)
        return self._filled_up(heard)

    def _filled_up(self, heard: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        y, z = self.latent_widths
        return _fill_up(heard["g_a"], y), _fill_up(heard["h_a"], z)

    def to(self, device: str) -> FixedRateTeacher:
        """Move the weights."""
        for member in self.members:
            member.to(device)
        return self


def _fill_up(latents: Tensor, C: int) -> Tensor:
    missing = (0, 0, 0, 0, 0, C - latents.shape[1])
    return torch.nn.functional.pad(latents, missing, value=float("nan"))


class HybridTeacher:
    """Two teachers: x_hat and y of one, z of another (arXiv 2509.10366, hybrid distillation).

    The curve and the lambdas are the first one's. The second has as many levels, or one for all.
    """

    def __init__(self, main: Teacher, other: Teacher):
        if other.levels not in (1, main.levels):
            raise TeacherError(
                f"teacher_z {other.name}: has {other.levels} levels and the teacher "
                f"{main.name} {main.levels}; give one with as many, or with one"
            )
        self.main, self.other = main, other
        self.name = f"{main.name}, z of {other.name}"
        self.fingerprint = f"{main.fingerprint} z {other.fingerprint}"
        self.lmbdas = main.lmbdas
        self.latent_widths = (main.latent_widths[0], other.latent_widths[1])
        self.shared_latents = main.shared_latents and (other.shared_latents or other.levels == 1)

    @property
    def levels(self) -> int:
        """Number of rate points."""
        return self.main.levels

    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """x_hat and estimated bits [B] of padded pictures, the first teacher's."""
        return self.main.reconstruct(x, level)

    def every_level(self, x: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """The same at each level."""
        return self.main.every_level(x)

    def outputs(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat and y of the first teacher, z of the second."""
        x_hat, y, _ = self.main.outputs(x, level)
        return x_hat, y, self._other_z(x, level)

    def latents(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Y of the first teacher, z of the second."""
        return self.main.latents(x, level)[0], self._other_z(x, level)

    def _other_z(self, x: Tensor, level: int) -> Tensor:
        return self.other.latents(x, min(level, self.other.levels))[1]

    def to(self, device: str) -> HybridTeacher:
        """Move the weights."""
        self.main.to(device)
        self.other.to(device)
        return self


def load_teacher(
    spec: str, weights: str | None = None, lmbda: float | None = None, spec_z: str | None = None
) -> Teacher:
    """A teacher by name, folder or file.

    Args:
        spec: ``mini``, a codec's folder, a CompressAI checkpoint, or a zoo name with ``:quality``.
        weights: folder of CompressAI's zoo files, by default torch hub's.
        lmbda: what the student of a one-level teacher is trained for, by default the teacher's own.
        spec_z: another teacher, for the hyper-latents.

    Raises TeacherError naming what is missing and the ways out.
    """
    main = _with_lmbda(_load(spec, weights, lmbda), lmbda)
    # The second teacher's own lambda plays no part.
    return main if spec_z is None else HybridTeacher(main, _load(spec_z, weights, LMBDAS[0]))


def _load(spec: str, weights: str | None, lmbda: float | None) -> Teacher:
    if weights is None:
        fetch_lacking(spec)
    require_at_hand(spec, weights)
    if any(spec == folder.name for folder in TEACHERS.iterdir()):
        return _variable_rate(spec, TEACHERS / spec)
    if asked := zoo_qualities(spec):
        return _from_zoo(*asked, weights)
    if members := family_members(Path(spec)):
        lmbdas = tuple(LMBDAS[m.quality - 1] for m in members if m.quality)
        return FixedRateTeacher(spec, members, lmbdas)
    if Path(spec).is_dir():
        try:
            return _variable_rate(spec, Path(spec))
        except UsageError as error:
            raise TeacherError(str(error)) from error
    return _from_file(Path(spec), lmbda)


def _variable_rate(name: str, folder: Path) -> VariableRateTeacher:
    family = read_arch_file(folder).get("about", {}).get("family")
    return VariableRateTeacher(name, load_student(folder), family)


def _with_lmbda(teacher: Teacher, lmbda: float | None) -> Teacher:
    if lmbda is None:
        return teacher
    if not 0 < lmbda < float("inf"):
        raise TeacherError(f"lmbda = {lmbda}: must be positive, such as 0.025")
    if teacher.levels > 1:
        raise TeacherError(
            f"lmbda = {lmbda}: teacher {teacher.name} has {teacher.levels} levels, each with its own; "
            "give a teacher of one quality, such as bmshj2018-hyperprior:5"
        )
    teacher.lmbdas = (lmbda,)
    return teacher


def _from_zoo(name: str, qualities: list[int], weights: str | None) -> FixedRateTeacher:
    members = [zoo_member(name, q, weights) for q in qualities]
    lmbdas = tuple(LMBDAS[q - 1] for q in qualities)
    one = f":{qualities[0]}" if len(qualities) == 1 else ""
    return FixedRateTeacher(name + one, members, lmbdas)


def _from_file(file: Path, lmbda: float | None) -> FixedRateTeacher:
    """One quality: its lambda is that of the quality in the file's name, or has to be given."""
    member = load_member(file)
    own = LMBDAS[member.quality - 1 : member.quality] if member.quality else ()
    if lmbda is None and not own:
        raise TeacherError(
            f"teacher {file}: its name does not say for which lambda it was trained "
            f"(NAME-QUALITY-HASH.pth.tar does, to quality {ZOO_QUALITIES}); give lmbda, such as --set lmbda=0.025"
        )
    return FixedRateTeacher(str(file), [member], own if lmbda is None else (lmbda,))
