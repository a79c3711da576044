"""What a training step computes without a wait for the device is what it computed with them."""

import pytest
import torch

from nas_kd.codec import compressai_light
from nas_kd.codec.bottleneck import EntropyBottleneck, without_waits
from nas_kd.codec.student import LMBDAS, Gain


def _pair():
    torch.manual_seed(0)
    theirs = compressai_light.EntropyBottleneck(6)
    ours = EntropyBottleneck(6)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(3, 6, 4, 5), (2, 6, 7)])
def test_the_bottleneck_has_compressais_numbers_and_gradients(training: bool, shape):
    found = []
    for model in _pair():
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(2)
        outputs, likelihoods = model.train(training)(x)
        (outputs.square().sum() - likelihoods.log().sum()).backward()
        found.append([outputs, likelihoods, x.grad, *(p.grad for p in model.parameters())])
    for theirs, ours in zip(*found, strict=True):
        assert (theirs is None) == (ours is None)
        assert theirs is None or torch.equal(theirs, ours)


def test_the_bottleneck_reads_no_tensor_on_the_host():
    theirs, ours = (model.to("meta") for model in _pair())
    x = torch.zeros(2, 6, 4, 4, device="meta")  # which has no numbers to read
    with pytest.raises((RuntimeError, NotImplementedError)):
        theirs(x)
    outputs, likelihoods = ours(x)
    assert outputs.shape == likelihoods.shape == x.shape


def test_a_model_of_compressai_keeps_its_weights_and_their_names():
    theirs, _ = _pair()
    model = torch.nn.Sequential(theirs)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    after = without_waits(model).state_dict()
    assert type(model[0]) is EntropyBottleneck
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gains_as_sums_of_rows_are_gains_by_index():
    torch.manual_seed(0)
    gain = Gain(len(LMBDAS), 8)
    table = torch.randn(len(LMBDAS), 8, requires_grad=True)
    for level, exact in (([1.0, 2.0, 6.0, 2.0], True), ([1.25, 3.9, 5.5, 7.0], False)):
        place = (torch.tensor(level) - 1).clamp(0, 5)
        low = place.floor().long().clamp(max=4)
        by_index = gain._at(table, place, low, low + 1)
        mixed = gain._mixed(table, place)
        gradients = [torch.autograd.grad(g.square().sum(), table)[0] for g in (by_index, mixed)]
        torch.testing.assert_close(mixed, by_index)
        torch.testing.assert_close(*gradients)
        assert not exact or torch.equal(mixed, by_index)
