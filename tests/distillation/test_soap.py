"""SOAP: Adam in another basis, and as good at resuming."""

import pytest
import torch
from torch import Tensor, nn

from nas_kd.distillation.soap import EVERY, LARGEST, Soap, turn_back

STEPS = 400


def _layer(seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(6, 4, 1)


def _gradients(layer: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in layer.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def test_without_a_basis_it_is_adam():
    ours, theirs = _layer(), _layer()
    soap = Soap(ours.parameters(), lr=0.01)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.01, betas=(0.9, 0.95))
    for step in range(5):
        for layer in (ours, theirs):
            _gradients(layer, step)
        soap.step()
        adam.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def _turned_bowl(optimiser: type[torch.optim.Optimizer] | type[Soap], **settings: float) -> float:
    """What is left of a quadratic whose axes lie across the coordinates, at a rate that falls to zero."""
    generator = torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    strength = axes @ torch.diag(10.0 ** torch.arange(6)) @ axes.T / 1e3
    weight = nn.Parameter(torch.randn(4, 6, 1, 1, generator=generator))
    by: torch.optim.Optimizer = optimiser([weight], lr=0.1, **settings)  # type: ignore[call-arg]
    loss = torch.zeros(())
    for step in range(STEPS):
        by.param_groups[0]["lr"] = 0.1 * (1 - step / STEPS)
        flat = weight.flatten(1)
        loss = (flat @ strength * flat).sum()
        by.zero_grad()
        loss.backward()
        by.step()
        if isinstance(by, Soap):
            by.renew()
    return loss.item()


def test_it_is_ahead_where_the_axes_lie_across_the_coordinates():
    adam = _turned_bowl(torch.optim.Adam, betas=(0.9, 0.95))  # type: ignore[arg-type]
    assert _turned_bowl(Soap) < 0.1 * adam


def test_bases_stay_orthonormal_and_wide_sides_have_none():
    weight = nn.Parameter(torch.randn(8, LARGEST + 1, 1, 1))
    soap = Soap([weight])
    for step in range(2 * EVERY + 1):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        soap.step()
        soap.renew()
    state = soap.state[weight]
    assert "right" not in state
    basis: Tensor = state["left_basis"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(8), atol=1e-5, rtol=0)
    assert not torch.equal(basis, torch.eye(8))


def test_its_mean_is_that_of_the_gradients_whatever_the_bases():
    weight = nn.Parameter(torch.randn(8, 5, 1, 1))
    soap, mean = Soap([weight]), torch.zeros(8, 5)
    for step in range(2 * EVERY + 3):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        mean.lerp_(weight.grad.flatten(1), 0.1)
        soap.step()
        soap.renew()
    state = soap.state[weight]
    torch.testing.assert_close(turn_back(state, state["mean"]), mean)


def test_what_has_no_gradient_stays():
    layer = _layer()
    before = layer.weight.clone()
    soap = Soap(layer.parameters())
    soap.step()
    soap.renew()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("at", [1, EVERY])
def test_it_goes_on_from_its_state(at: int):
    def run(soap: Soap, layer: nn.Module, first: int, last: int) -> None:
        for step in range(first, last):
            _gradients(layer, step)
            soap.step()
            soap.renew()

    through, halves = _layer(), _layer()
    run(Soap(through.parameters()), through, 0, at + 3)
    first = Soap(halves.parameters())
    run(first, halves, 0, at)
    second = Soap(halves.parameters())
    second.load_state_dict(first.state_dict())
    run(second, halves, at, at + 3)
    assert torch.equal(through.weight, halves.weight)
