"""The distillation loss, term by term.

Ours::

    L = R + lmbda 255^2 [(1 - kd_x) MSE(x_hat, x) + kd_x MSE(x_hat, x_hat_T)]
          + kd_y MSE(A_l(y), y_T) + kd_z MSE(B_l(z), z_T)

Output distillation is scaled as a distortion; latents are matched before quantisation, through one
1x1 adapter per level, which is not part of the student. The paper's form (arXiv 2509.10366, Eq. 1 and 2) is
kept for comparison: noisy student latents against rounded teacher latents, an unscaled output term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nas_kd.errors import UsageError


@dataclass(frozen=True)
class Weights:
    """What the terms weigh; all zero in our form is the control without distillation.

    form "kd": kd_x in [0, 1], kd_y and kd_z >= 0, as in the module's equation.
    form "paper": kd_y, kd_x and the rest 1 - kd_x - kd_y weigh latents, output and R-D.
    """

    kd_x: float = 0.5
    kd_y: float = 0.05
    kd_z: float = 0.0
    form: Literal["kd", "paper"] = "kd"

    def __post_init__(self) -> None:
        if not 0 <= self.kd_x <= 1:
            raise UsageError(f"kd_x = {self.kd_x}: must lie between 0 and 1")
        for name in ("kd_y", "kd_z"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} = {getattr(self, name)}: must not be negative")
        if self.form not in ("kd", "paper"):
            raise UsageError(f"form = {self.form!r}: must be 'kd' or 'paper'")
        if self.form == "paper" and self.kd_x + self.kd_y > 1:
            raise UsageError(
                f"kd_x + kd_y = {self.kd_x + self.kd_y}: must be at most 1 in form 'paper', "
                "where the R-D term weighs the rest"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher's outputs."""
        return self.kd_x > 0 or self.kd_y > 0 or self.kd_z > 0


CONTROL = Weights(0.0, 0.0, 0.0)


class Adapters(nn.Module):
    """A_l and B_l: one linear map of channels per level, from the student's y and z to the teacher's."""

    def __init__(self, levels: int, student: tuple[int, int], teacher: tuple[int, int]):
        super().__init__()
        self.y = nn.Parameter(_leading_identity(levels, teacher[0], student[0]))
        self.z = nn.Parameter(_leading_identity(levels, teacher[1], student[1]))

    @staticmethod
    def apply_at(maps: Tensor, level: Tensor, latents: Tensor) -> Tensor:
        """[B, C_student, h, w] to [B, C_teacher, h, w] with the maps of whole levels [B]."""
        return torch.einsum("bts,bshw->bthw", maps[level.long() - 1], latents)


def _leading_identity(levels: int, rows: int, columns: int) -> Tensor:
    return torch.eye(rows, columns).repeat(levels, 1, 1)


@dataclass(frozen=True)
class Batch:
    """One step's pictures and, where a term asks for them, the teacher's outputs on them."""

    x: Tensor
    level: Tensor
    lmbda: Tensor
    x_hat_T: Tensor | None = None
    y_T: Tensor | None = None
    z_T: Tensor | None = None


def rate_bpp(likelihoods: dict[str, Tensor], pixels: int) -> Tensor:
    """Estimated bits per pixel of each picture [B]."""
    bits = [-torch.log2(p).flatten(1).sum(1) for p in likelihoods.values()]
    return torch.stack(bits).sum(0) / pixels


def _mse(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(1)


def distillation_loss(
    out: dict[str, Any], batch: Batch, weights: Weights, adapters: Adapters | None
) -> dict[str, Tensor]:
    """The loss of a batch and its terms, each a scalar mean over pictures.

    Args:
        out: what ``Student.forward`` returned.
        batch: pictures and targets.
        weights: which terms count how much.
        adapters: needed where kd_y or kd_z is positive.

    Returns:
        loss, bpp (estimated), mse, rd (bpp + lmbda 255^2 mse), and kd_x, kd_y, kd_z where they are weighed.
    """
    pixels = batch.x.shape[-1] * batch.x.shape[-2]
    scale = batch.lmbda * 255**2
    terms = {"bpp": rate_bpp(out["likelihoods"], pixels), "mse": _mse(out["x_hat"], batch.x)}
    terms["rd"] = terms["bpp"] + scale * terms["mse"]
    if weights.kd_x > 0:
        terms["kd_x"] = _mse(out["x_hat"], _given(batch.x_hat_T, "x_hat"))
    terms |= _latent_terms(out, batch, weights, adapters)
    if weights.form == "paper":
        rd = (1 - weights.kd_x - weights.kd_y) * terms["rd"]
        loss = rd + weights.kd_x * terms.get("kd_x", 0.0)
    else:
        distortion = (1 - weights.kd_x) * terms["mse"] + weights.kd_x * terms.get("kd_x", 0.0)
        loss = terms["bpp"] + scale * distortion
    loss = loss + weights.kd_y * terms.get("kd_y", 0.0) + weights.kd_z * terms.get("kd_z", 0.0)
    return {"loss": loss.mean()} | {name: term.mean() for name, term in terms.items()}


def _latent_terms(
    out: dict[str, Any], batch: Batch, weights: Weights, adapters: Adapters | None
) -> dict[str, Tensor]:
    terms = {}
    for name, weight, target in (("y", weights.kd_y, batch.y_T), ("z", weights.kd_z, batch.z_T)):
        if weight > 0:
            target, latents = _given(target, name), out[name]
            if weights.form == "paper":
                latents = latents + torch.rand_like(latents) - 0.5
                target = torch.round(target)
            maps = getattr(adapters, name)
            terms[f"kd_{name}"] = _mse(Adapters.apply_at(maps, batch.level, latents), target)
    return terms


def _given(target: Tensor | None, name: str) -> Tensor:
    if target is None:
        raise ValueError(f"the loss weighs the teacher's {name}, and the batch has none")
    return target
