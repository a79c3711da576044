"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., 2024, arXiv 2409.11321, Algorithm 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

LARGEST = 256
"""Sides of a gradient that get a basis; of a wider matrix the narrower side alone, or none."""
EVERY = 20
"""Steps between renewals of the bases; at 10 a step takes longer and learns no more."""


class Soap(torch.optim.Optimizer):
    """Moments of the weights of convolutions are kept in the eigenbases of their gradients' covariances.

    A kernel [out, in, h, w] counts as a matrix [out, in h w]. All other parameters are Adam's. ``step`` reads nothing
    on the host; ``renew`` does, and is called after each step.

    Args:
        params: what is trained.
        lr: a number, or a tensor that a schedule fills.
        betas: decay of the mean, and of the variance and covariances.
        eps: added to the deviation.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        settings = {"lr": lr, "betas": betas, "eps": eps, "capturable": isinstance(lr, Tensor)}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay as they are."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)

    def _step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        state, grad = self._state(p), as_matrix(grad)
        state["step"] += 1
        turned = turn(state, grad)
        state["mean"].lerp_(turned, 1 - beta1)
        state["variance"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        mean = state["mean"] / (1 - beta1 ** state["step"])
        deviation = (state["variance"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        p.sub_(group["lr"] * turn_back(state, mean / deviation).reshape(p.shape))
        if "left" in state:
            state["left"].lerp_(grad @ grad.T, 1 - beta2)
        if "right" in state:
            state["right"].lerp_(grad.T @ grad, 1 - beta2)

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            matrix = as_matrix(p)
            state["step"] = torch.zeros((), device=p.device)
            state["mean"], state["variance"] = torch.zeros_like(matrix), torch.zeros_like(matrix)
            for side, n in zip(("left", "right"), matrix.shape, strict=False):
                if p.dim() == 4 and 1 < n <= LARGEST:
                    state[side] = torch.zeros(n, n, device=p.device)
                    state[f"{side}_basis"] = torch.eye(n, device=p.device)
        return state

    @torch.no_grad()
    def renew(self) -> None:
        """Bring the bases up to date, after the first step and every so many."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "left" in state or "right" in state:
                    self._renew(state)

    @staticmethod
    def _renew(state: dict[str, Tensor]) -> None:
        """Eigenvectors at first, one power iteration later; means are turned, variances move with their directions."""
        steps = int(state["step"])
        if steps > 1 and steps % EVERY:
            return
        for axis, side in enumerate(("left", "right")):
            if side not in state:
                continue
            covariance, basis = state[side], state[f"{side}_basis"]
            if steps == 1:
                fresh = torch.linalg.eigh(covariance)[1].flip(1)
            else:
                ahead = covariance @ basis
                order = (basis * ahead).sum(0).argsort(descending=True)
                state["variance"].copy_(state["variance"].index_select(axis, order))
                fresh = torch.linalg.qr(ahead[:, order])[0]
            turned = fresh.T @ basis
            mean = state["mean"]
            mean.copy_(turned @ mean if side == "left" else mean @ turned.T)
            basis.copy_(fresh)


def as_matrix(kernel: Tensor) -> Tensor:
    """[out, in, h, w] as [out, in h w]; all else as it is."""
    return kernel.flatten(1) if kernel.dim() == 4 else kernel


def turn(state: dict[str, Tensor], matrix: Tensor) -> Tensor:
    """Into the eigenbases."""
    if "left" in state:
        matrix = state["left_basis"].T @ matrix
    return matrix @ state["right_basis"] if "right" in state else matrix


def turn_back(state: dict[str, Tensor], matrix: Tensor) -> Tensor:
    """Out of the eigenbases."""
    if "left" in state:
        matrix = state["left_basis"] @ matrix
    return matrix @ state["right_basis"].T if "right" in state else matrix
