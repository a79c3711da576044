"""Teachers: frozen codecs to distil from. Built in (``mini``), a nas-kd codec's folder, or CompressAI's zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nas_kd.distill import rate_bpp
from nas_kd.errors import TeacherError, UsageError
from nas_kd.student import LMBDAS, Student
from nas_kd.weights import load_student, weights_digest

BUILT_IN = Path(__file__).parent / "teachers"
ZOO_NAMES = (
    "bmshj2018-factorized",
    "bmshj2018-hyperprior",
    "mbt2018-mean",
    "mbt2018",
    "cheng2020-anchor",
    "cheng2020-attn",
)
ALIASES = {"cheng2020": "cheng2020-anchor"}
ZOO_QUALITIES = 6


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

    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, float]:
        """x_hat and estimated bits of one padded picture [1, 3, H, W]."""

    def outputs(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat, y and z (before quantisation) of pictures [B, 3, H, W]."""

    def to(self, device: str) -> Teacher:
        """Move the weights."""


class VariableRateTeacher:
    """A nas-kd codec as a teacher: one set of weights; y and z are the same at every level."""

    shared_latents = True

    def __init__(self, name: str, student: Student):
        self.name, self.student = name, student.eval().requires_grad_(False)
        self.fingerprint = weights_digest(student)
        self.lmbdas = student.lmbdas
        self.latent_widths = (student.arch.M, student.arch.hyper)

    @property
    def levels(self) -> int:
        """Number of rate points."""
        return len(self.lmbdas)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, float]:
        """x_hat and estimated bits of one padded picture."""
        out = self.student(x, level)
        pixels = x.shape[-1] * x.shape[-2]
        return out["x_hat"], float(rate_bpp(out["likelihoods"], pixels)) * pixels

    @torch.no_grad()
    def outputs(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat, y and z of pictures."""
        out = self.student(x, level)
        return out["x_hat"], out["y"], out["z"]

    def to(self, device: str) -> VariableRateTeacher:
        """Move the weights."""
        self.student.to(device)
        return self


class FixedRateTeacher:
    """CompressAI models, one per level."""

    shared_latents = False

    def __init__(self, name: str, members: list[Any], lmbdas: tuple[float, ...], fingerprint: str):
        self.name, self.fingerprint, self.lmbdas = name, fingerprint, lmbdas
        self.members = [member.eval().requires_grad_(False) for member in members]
        _, y, z = self.outputs(torch.zeros(1, 3, 64, 64), 1)
        self.latent_widths = (y.shape[1], z.shape[1])

    @property
    def levels(self) -> int:
        """Number of rate points."""
        return len(self.members)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, float]:
        """x_hat and estimated bits of one padded picture."""
        out = self.members[level - 1](x)
        pixels = x.shape[-1] * x.shape[-2]
        return out["x_hat"], float(rate_bpp(out["likelihoods"], pixels)) * pixels

    @torch.no_grad()
    def outputs(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat, y and z of pictures."""
        member = self.members[level - 1]
        y = member.g_a(x)
        # CompressAI's ScaleHyperprior feeds |y| to h_a, its descendants y itself.
        of_magnitudes = type(member).__name__ == "ScaleHyperprior"
        return member(x)["x_hat"], y, member.h_a(y.abs() if of_magnitudes else y)

    def to(self, device: str) -> FixedRateTeacher:
        """Move the weights."""
        for member in self.members:
            member.to(device)
        return self


def load_teacher(spec: str) -> Teacher:
    """A teacher by name or folder: ``mini``, a codec's folder, or a zoo name with ``:quality``.

    Raises TeacherError naming what is missing and the ways out.
    """
    if (BUILT_IN / spec).is_dir():
        return VariableRateTeacher(spec, load_student(BUILT_IN / spec))
    name, _, quality = spec.partition(":")
    if (name := ALIASES.get(name, name)) in ZOO_NAMES:
        return _from_zoo(name, quality)
    if Path(spec).is_dir():
        try:
            return VariableRateTeacher(spec, load_student(spec))
        except UsageError as error:
            raise TeacherError(str(error)) from error
    known = ", ".join(["mini", *ALIASES, *ZOO_NAMES])
    raise TeacherError(f"teacher '{spec}': neither a folder nor one of {known}; give one of these")


def _from_zoo(name: str, quality: str) -> FixedRateTeacher:
    if quality and not (quality.isdigit() and 1 <= int(quality) <= ZOO_QUALITIES):
        raise TeacherError(f"teacher {name}:{quality}: quality must be 1 to {ZOO_QUALITIES}")
    qualities = [int(quality)] if quality else list(range(1, ZOO_QUALITIES + 1))
    if name == "bmshj2018-factorized":
        raise TeacherError(f"teacher {name}: has no hyper-latents to distil; choose another")
    from compressai.zoo.image import load_pretrained, model_architectures, model_urls

    import nas_kd.lic  # noqa: F401  (the light import of CompressAI)

    members, files = [], []
    for q in qualities:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(model_urls[name]["mse"][q]).name
        if not file.is_file():
            raise TeacherError(_three_ways_out(name, q, file))
        state = load_pretrained(torch.load(file, map_location="cpu", weights_only=True))
        members.append(model_architectures[name].from_state_dict(state))
        files.append(file.name)
    lmbdas = tuple(LMBDAS[q - 1] for q in qualities)
    return FixedRateTeacher(name, members, lmbdas, "+".join(files))


def _three_ways_out(name: str, quality: int, file: Path) -> str:
    return (
        f"teacher {name}: weights of quality {quality} are not on this machine ({file.name}); "
        f"put that file of CompressAI's zoo into {file.parent}, or give a folder that "
        "`nas-kd teacher train` wrote, or take the built-in one (--teacher mini)"
    )
