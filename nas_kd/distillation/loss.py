"""The distillation loss, term by term.

Ours::

    L = R + lmbda 255^2 [(1 - kd_x) MSE(x_hat, x) + kd_x MSE(x_hat, x_hat_T)]
          + kd_y MSE(A_l(y), y_T) + kd_z MSE(B_l(z), z_T)

Output distillation is scaled as a distortion; latents are matched before quantisation, in units of the teacher's
deviation per channel (else a weight would mean something for one teacher only), through one 1x1 adapter per level,
which is not part of the student.

The paper's forms (arXiv 2509.10366, Eq. 1 and 2) are kept for comparison, as its published code computes them::

    L = kd_y D(y_hat, y_hat_T) + kd_z D(z_hat, z_hat_T) + kd_x MSE(x_hat, x_hat_T)
          + (1 - kd_y - kd_z - kd_x) [R + lmbda 255^2 MSE(x_hat, x)]

Student latents carry uniform noise, teacher latents are rounded, the output term is not scaled; where
widths agree there is no adapter. D is the mean squared error in "paper"; in "paper-kld" it is the
Kullback-Leibler divergence from teacher to student of the softmax over channels,
sum_c p_T (log p_T - log p) / C, mean over positions (torch's KLDivLoss with its default reduction).
What is wrong with "paper" can be put right one by one: "paper-scaled" weighs the output term by lmbda 255^2 as the
distortion is, "paper-clean" compares latents before quantisation and noise, "paper-corrected" does both.
Two departures: z_T is rounded to whole numbers, not to its medians' grid, and the noise is drawn apart from
that of the rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.recipe import Weights

SCALED = ("paper-scaled", "paper-corrected")
CLEAN = ("kd", "paper-clean", "paper-corrected")


CONTROL = Weights(0.0, 0.0, 0.0)
ABSENT = -1e4
"""Logit of a channel that is not there: its softmax is 0, and stays finite as a logarithm."""


class Adapters(nn.Module):
    """A_l and B_l: one linear map of channels per level, from the student's y and z to the teacher's."""

    def __init__(self, levels: int, student: tuple[int, int], teacher: tuple[int, int]):
        super().__init__()
        self.y = nn.Parameter(_leading_identity(levels, teacher[0], student[0]))
        self.z = nn.Parameter(_leading_identity(levels, teacher[1], student[1]))

    @staticmethod
    def apply_at(maps: Tensor, level: Tensor, latents: Tensor) -> Tensor:
        """[B, C_student, h, w] to [B, C_teacher, h, w] with the maps of whole levels [B].

        A narrower student's latents are mapped by the leading columns.
        """
        used = maps[level.long() - 1, :, : latents.shape[1]]
        return torch.einsum("bts,bshw->bthw", used, latents)


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
        adapters: needed where kd_y or kd_z is positive (in the paper's forms: and widths differ).

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
    if weights.form != "kd":
        rd = weights.rest * terms["rd"]
        output = terms.get("kd_x", 0.0) * (scale if weights.form in SCALED else 1.0)
        loss = rd + weights.kd_x * output
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
            if weights.form not in CLEAN:
                latents = latents + torch.rand_like(latents) - 0.5
                target = torch.round(target)
            if weights.form == "kd" or latents.shape != target.shape:
                latents = Adapters.apply_at(_maps(adapters, name), batch.level, latents)
            terms[f"kd_{name}"] = latent_distance(latents, target, weights.form)
    return terms


def latent_distance(latents: Tensor, target: Tensor, form: str) -> Tensor:
    """D of each picture [B]; channels that a narrow teacher lacks are NaN and left out."""
    given = ~target.isnan()
    if form == "paper-kld":
        log_p, log_p_T = (torch.where(given, t, ABSENT).log_softmax(1) for t in (latents, target))
        each = log_p_T.exp() * (log_p_T - log_p)
    else:
        each = torch.where(given, latents - target, 0.0).square()
    return each.flatten(1).sum(1) / given.flatten(1).sum(1)


def _maps(adapters: Adapters | None, name: str) -> Tensor:
    if adapters is None:
        raise ValueError(
            f"the loss weighs {name} (kd_{name} > 0), and no adapters to the teacher's {name} were given"
        )
    return adapters.y if name == "y" else adapters.z


def _given(target: Tensor | None, name: str) -> Tensor:
    if target is None:
        raise ValueError(f"the loss weighs the teacher's {name}, and the batch has none")
    return target
