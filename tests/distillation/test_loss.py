"""The distillation loss against numbers worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from nas_kd.distillation.loss import (
    CONTROL,
    Adapters,
    Batch,
    Weights,
    distillation_loss,
    latent_distance,
    rate_bpp,
)
from nas_kd.errors import UsageError

LEVEL = torch.tensor([1, 2])
LMBDA = torch.tensor([0.01, 0.02])


def _out() -> dict:
    """Two 2x2 pictures; 1 and 2 bits a symbol of y, 3 bits a symbol of z."""
    y = torch.tensor([0.25, -1.5, 2.0, 0.75]).reshape(2, 2, 1, 1)
    likelihoods = {
        "y": torch.tensor([0.5, 0.5, 0.25, 0.25]).reshape(2, 2, 1, 1),
        "z": torch.full((2, 1, 1, 1), 0.125),
    }
    x_hat = torch.stack([torch.full((3, 2, 2), 0.6), torch.full((3, 2, 2), 0.3)])
    return {"x_hat": x_hat, "likelihoods": likelihoods, "y": y, "z": y[:, :1].clone()}


def _batch() -> Batch:
    out = _out()
    return Batch(
        x=torch.full((2, 3, 2, 2), 0.5),
        level=LEVEL,
        lmbda=LMBDA,
        x_hat_T=torch.full((2, 3, 2, 2), 0.4),
        y_T=out["y"] + 2,
        z_T=out["z"] + 3,
    )


def _adapters() -> Adapters:
    return Adapters(2, (2, 1), (2, 1)).requires_grad_(False)


RATES = ((2 * 1 + 3) / 4, (2 * 2 + 3) / 4)
RD = [RATES[0] + 0.01 * 255**2 * 0.1**2, RATES[1] + 0.02 * 255**2 * 0.2**2]


def test_rate_is_bits_over_pixels():
    assert rate_bpp(_out()["likelihoods"], 4).tolist() == list(RATES)


def test_without_distillation_the_loss_is_rate_plus_scaled_distortion():
    terms = distillation_loss(_out(), _batch(), CONTROL, None)
    assert float(terms["loss"]) == pytest.approx(sum(RD) / 2, rel=1e-5)
    assert float(terms["bpp"]) == pytest.approx(sum(RATES) / 2)
    assert float(terms["mse"]) == pytest.approx((0.01 + 0.04) / 2, rel=1e-5)
    assert float(terms["rd"]) == float(terms["loss"])
    assert set(terms) == {"loss", "bpp", "mse", "rd"}


def test_a_teacher_that_returns_the_picture_changes_nothing():
    batch = replace(_batch(), x_hat_T=_batch().x)
    control = distillation_loss(_out(), batch, CONTROL, None)["loss"]
    for kd_x in (0.25, 1.0):
        ours = distillation_loss(_out(), batch, Weights(kd_x, 0.0, 0.0), None)["loss"]
        assert float(ours) == pytest.approx(float(control), rel=1e-6)


def test_all_terms_add_up_by_hand():
    terms = distillation_loss(_out(), _batch(), Weights(0.25, 0.5, 0.1), _adapters())
    scale = [lmbda * 255**2 for lmbda in (0.01, 0.02)]
    expected = [
        RATES[0] + scale[0] * (0.75 * 0.01 + 0.25 * 0.04),
        RATES[1] + scale[1] * (0.75 * 0.04 + 0.25 * 0.01),
    ]
    assert float(terms["loss"]) == pytest.approx(sum(expected) / 2 + 0.5 * 4 + 0.1 * 9, rel=1e-5)
    assert float(terms["kd_y"]) == pytest.approx(4)
    assert float(terms["kd_z"]) == pytest.approx(9)


def test_adapters_are_the_identity_at_first():
    latents = torch.randn(2, 3, 4, 5)
    adapters = Adapters(6, (3, 2), (5, 2))
    mapped = Adapters.apply_at(adapters.y, LEVEL, latents)
    assert torch.equal(mapped[:, :3], latents)
    assert not mapped[:, 3:].any()
    narrow = Adapters(6, (3, 2), (2, 2))
    assert torch.equal(Adapters.apply_at(narrow.y, LEVEL, latents), latents[:, :2])


def test_each_picture_takes_the_adapter_of_its_level():
    latents = torch.ones(2, 1, 1, 1)
    maps = torch.tensor([2.0, 5.0]).reshape(2, 1, 1)
    assert Adapters.apply_at(maps, LEVEL, latents).flatten().tolist() == [2, 5]
    assert Adapters.apply_at(maps, LEVEL.flip(0), latents).flatten().tolist() == [5, 2]


def test_latents_equal_to_the_teachers_cost_nothing():
    out = _out()
    batch = replace(_batch(), y_T=out["y"], z_T=out["z"])
    terms = distillation_loss(out, batch, Weights(0.0, 1.0, 1.0), _adapters())
    assert float(terms["kd_y"]) == 0
    assert float(terms["kd_z"]) == 0
    assert float(terms["loss"]) == pytest.approx(sum(RD) / 2, rel=1e-5)


def test_the_papers_form_by_hand():
    weights = Weights(0.2, 0.3, 0.0, "paper")
    torch.manual_seed(3)
    terms = distillation_loss(_out(), _batch(), weights, _adapters())
    torch.manual_seed(3)
    noise = (torch.rand(2, 2, 1, 1) - 0.5).flatten().tolist()
    student, rounded = [0.25, -1.5, 2.0, 0.75], [2.0, 0.0, 4.0, 3.0]  # 2.25 0.5 4.0 2.75, even ties
    kd_y = sum((s + n - t) ** 2 for s, n, t in zip(student, noise, rounded, strict=True)) / 4
    assert float(terms["kd_y"]) == pytest.approx(kd_y, rel=1e-5)
    expected = 0.5 * sum(RD) / 2 + 0.2 * (0.04 + 0.01) / 2 + 0.3 * kd_y
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_papers_defects_are_put_right_one_by_one():
    """Scaled: the output counts lambda 255^2 times; clean: latents as they are, without noise."""
    output = [0.04, 0.01]
    scaled = (0.01 * 255**2 * output[0] + 0.02 * 255**2 * output[1]) / 2
    for form, x, y in (
        ("paper-scaled", scaled, None),
        ("paper-clean", sum(output) / 2, 4.0),
        ("paper-corrected", scaled, 4.0),
    ):
        terms = distillation_loss(_out(), _batch(), Weights(0.2, 0.3, 0.0, form), None)
        y = float(terms["kd_y"]) if y is None else y
        assert float(terms["kd_y"]) == pytest.approx(y, rel=1e-5)
        expected = 0.5 * sum(RD) / 2 + 0.2 * x + 0.3 * y
        assert float(terms["loss"]) == pytest.approx(expected, rel=1e-5), form


def test_the_papers_second_equation_weighs_four_terms_that_add_up_to_one():
    batch = replace(_batch(), z_T=torch.tensor([5.25, -3.0]).reshape(2, 1, 1, 1))
    weights = Weights(0.2, 0.2, 0.2, form="paper")
    torch.manual_seed(3)
    terms = distillation_loss(_out(), batch, weights, None)  # equal widths: no adapters
    torch.manual_seed(3)
    noise = (torch.rand(2, 2, 1, 1) - 0.5, torch.rand(2, 1, 1, 1) - 0.5)
    kd_y = (_out()["y"] + noise[0] - torch.round(batch.y_T)).square().mean()
    kd_z = (_out()["z"] + noise[1] - torch.tensor([5.0, -3.0]).reshape(2, 1, 1, 1)).square().mean()
    assert float(terms["kd_z"]) == pytest.approx(float(kd_z), rel=1e-5)
    expected = 0.4 * sum(RD) / 2 + 0.2 * (0.025 + float(kd_y) + float(kd_z))
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_papers_divergence_is_torchs_of_softmax_over_channels():
    out = _out() | {"y": torch.randn(2, 5, 3, 4)}
    batch = replace(_batch(), y_T=2 * torch.randn(2, 5, 3, 4))
    torch.manual_seed(3)
    terms = distillation_loss(out, batch, Weights(0.2, 0.2, 0.0, "paper-kld"), None)
    torch.manual_seed(3)
    noisy = out["y"] + torch.rand(2, 5, 3, 4) - 0.5
    logs = noisy.log_softmax(1), batch.y_T.round().log_softmax(1)
    expected = torch.nn.KLDivLoss(log_target=True, reduction="none")(*logs).mean()
    assert float(terms["kd_y"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(
        0.6 * sum(RD) / 2 + 0.2 * 0.025 + 0.2 * float(expected), rel=1e-5
    )


def test_the_divergence_of_two_channels_by_hand():
    # Rounded, the teacher's channels differ by ln-odds 2; noise moves both of the student's alike at most by 1.
    out = _out() | {"y": torch.tensor([0.0, 300.0]).reshape(1, 2, 1, 1).repeat(2, 1, 1, 1)}
    batch = replace(_batch(), y_T=torch.tensor([300.0, 0.0]).reshape(1, 2, 1, 1).repeat(2, 1, 1, 1))
    terms = distillation_loss(out, batch, Weights(0.0, 1.0, 0.0, "paper-kld"), None)
    # All of the teacher's mass lies where the student's log probability is -300 (+- 1): over C = 2.
    assert float(terms["kd_y"]) == pytest.approx(150, abs=0.5)


@pytest.mark.parametrize("form", ["kd", "paper", "paper-kld"])
def test_channels_that_a_narrow_teacher_lacks_weigh_nothing(form: str):
    """NaN in the targets: the loss is that of the channels that are there, and so are its gradients."""
    y = torch.randn(2, 4, 2, 2)
    target = torch.randn(2, 4, 2, 2)
    target[:, 3] = math.nan
    found = []
    for channels in (4, 3):
        latents = y[:, :channels].clone().requires_grad_()
        value = latent_distance(latents, target[:, :channels], form).mean()
        value.backward()
        found.append((float(value.detach()), latents.grad[:, :3]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


def test_a_latent_term_without_adapters_says_so():
    with pytest.raises(ValueError, match=r"kd_y > 0\), and no adapters"):
        distillation_loss(_out(), _batch(), Weights(0.0, 1.0, 0.0), None)
    wider = replace(_batch(), z_T=torch.zeros(2, 3, 1, 1))
    with pytest.raises(ValueError, match=r"kd_z > 0\), and no adapters"):
        distillation_loss(_out(), wider, Weights(0.0, 0.0, 0.5, form="paper"), None)


def test_the_papers_form_without_distillation_is_the_control():
    paper = distillation_loss(_out(), _batch(), Weights(0.0, 0.0, 0.0, "paper"), None)
    assert torch.equal(paper["loss"], distillation_loss(_out(), _batch(), CONTROL, None)["loss"])


def test_a_term_without_its_target_is_an_error():
    batch = replace(_batch(), x_hat_T=None, y_T=None)
    for weights, name in ((Weights(1.0, 0.0, 0.0), "x_hat"), (Weights(0.0, 1.0, 0.0), "y")):
        with pytest.raises(ValueError, match=f"teacher's {name},"):
            distillation_loss(_out(), batch, weights, _adapters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kd_x": 1.5}, "kd_x = 1.5: must be a number from 0 to 1"),
        ({"kd_x": -0.1}, "kd_x = -0.1"),
        ({"kd_x": math.nan}, "kd_x = nan"),
        ({"kd_y": -1}, "kd_y = -1: must be a number of at least 0"),
        ({"kd_z": math.nan}, "kd_z = nan"),
        ({"form": "mse"}, "form = 'mse': must be one of kd, paper, paper-kld"),
        ({"kd_x": 0.8, "kd_y": 0.3, "form": "paper"}, r"kd_y \+ kd_z = 1.1: must be at most 1"),
        ({"kd_x": 0.3, "kd_y": 0.4, "kd_z": 0.4, "form": "paper-kld"}, "= 1.1: must be at most 1"),
    ],
)
def test_weights_that_break_a_rule_are_refused(given: dict, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        Weights(**given)
    assert "\n" not in str(caught.value)


def test_only_positive_weights_need_a_teacher():
    assert not CONTROL.needs_teacher
    for weights in (Weights(0.1, 0, 0), Weights(0, 0.1, 0), Weights(0, 0, 0.1)):
        assert weights.needs_teacher
