"""CompressAI's models as what is measured: their passes are their own forward pass, their MACs the paper's."""

import json
import sys

import pytest
import torch
from PIL import Image
from zoo_file import serve, untrained

from nas_kd.cli.main import main
from nas_kd.codec.cost import count
from nas_kd.codec.networks import PARTS
from nas_kd.errors import UsageError
from nas_kd.measurement.profiling import memory_bytes
from nas_kd.teachers.subjects import decode, encode, measure_codec, subjects

WIDTHS = {
    "bmshj2018-hyperprior": (8, 12),
    "mbt2018-mean": (8, 12),
    "mbt2018": (8, 12),
    "cheng2020-anchor": (8,),
    "cheng2020-attn": (8,),
}


@pytest.fixture
def picture():
    torch.manual_seed(0)
    return torch.rand(1, 3, 64, 128)


@pytest.mark.parametrize("name", WIDTHS)
def test_decoder_after_encoder_is_the_models_own_forward_pass(name, picture):
    model = untrained(name, *WIDTHS[name]).eval()
    with torch.no_grad():
        model.entropy_bottleneck.quantiles += 0.3  # medians that are no whole numbers
        for part in model.g_a.modules():  # latents that are not all rounded to nothing
            if isinstance(part, torch.nn.Conv2d):
                part.weight *= 2
        y_hat, z_hat = encode(model, picture)
        assert y_hat.abs().max() >= 1
        assert torch.equal(decode(model, y_hat, z_hat), model(picture)["x_hat"].clamp(0, 1))


def test_a_zoo_name_is_one_subject_a_width_and_its_macs_are_the_tables():
    """docs/compared.md: 260 / 175 and 583 / 392 kMAC per pixel, 11.8 and 26.6 M parameters."""
    found = subjects("cheng2020")
    assert [one.arch for one in found] == [
        "cheng2020-anchor, N = 128, quality 1 2 3",
        "cheng2020-anchor, N = 192, quality 4 5 6",
    ]
    costs = [count(one.model, (1, 3, 64, 64)) for one in found]
    px = 64 * 64 * 1e3
    assert [round(cost.decoder_macs / px) for cost in costs] == [260, 583]
    assert [round(cost.encoder_macs / px) for cost in costs] == [175, 392]
    assert [round(cost.parameters / 1e6, 1) for cost in costs] == [11.8, 26.6]
    assert not any(one.trained for one in found)
    assert "one after the other" in found[0].excluded
    with pytest.raises(UsageError, match="stands for 2 models .* name one, such as cheng2020:1"):
        measure_codec("cheng2020")


def test_one_quality_is_one_subject_and_files_are_what_they_hold(tmp_path):
    assert [one.arch_key for one in subjects("bmshj2018-hyperprior:6")] == [
        "bmshj2018-hyperprior-192-320"
    ]
    for quality, widths in ((1, (8, 12)), (2, (8, 12)), (5, (12, 16))):
        model = untrained("mbt2018-mean", *widths)
        file = serve(tmp_path / "zoo", f"mbt2018-mean-{quality}", model)
    assert [(one.arch, one.trained) for one in subjects(str(tmp_path / "zoo"))] == [
        ("mbt2018-mean, N = 8, M = 12, quality 1 2", True),
        ("mbt2018-mean, N = 12, M = 16, quality 5", True),
    ]
    assert [one.arch for one in subjects(str(file))] == ["mbt2018-mean, N = 12, M = 16, quality 5"]


def test_the_built_in_teacher_is_a_student():
    (one,) = subjects("mini")
    assert (one.trained, one.uncoded) == (True, None)


def run(monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["nas-kd", *words])
    with pytest.raises(SystemExit, match="0"):
        main()
    return capsys.readouterr().out


def test_eval_gives_a_teachers_own_curve_and_says_that_it_is_estimated(
    tmp_path, picture, monkeypatch, capsys
):
    (tmp_path / "pictures").mkdir()
    rows = (picture[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(rows).save(tmp_path / "pictures" / "noise.png")
    for quality in range(1, 7):
        file = serve(
            tmp_path / "zoo", f"cheng2020-anchor-{quality}", untrained("cheng2020-anchor", 8)
        )
    data = ("--data", str(tmp_path / "pictures"))
    whole = run(monkeypatch, capsys, "eval", "cheng2020", "--weights", str(tmp_path / "zoo"), *data)
    assert len(whole.splitlines()) == 7
    assert all("bpp, estimated" in line for line in whole.splitlines()[1:])
    words = ("eval", "cheng2020:3", "--weights", str(tmp_path / "zoo"), *data, "--json")
    one = json.loads(run(monkeypatch, capsys, *words))
    assert (len(one["bpp_est"]), "bpp" in one) == (1, False)
    checkpoint = file.rename(tmp_path / "checkpoint.pth.tar")
    assert "level 1: " in run(monkeypatch, capsys, "eval", str(checkpoint), *data)


def test_a_teachers_passes_can_be_measured(tmp_path, picture):
    file = serve(tmp_path, "cheng2020-anchor-3", untrained("cheng2020-anchor", 8))
    (one,) = subjects(str(file))
    cost, memory = count(one.model, (1, 3, 64, 128)), memory_bytes(one.model, one.passes([picture]))
    assert cost.decoder_macs > cost.parts["g_s"]
    assert memory["weights"] == 4 * cost.parameters
    assert min(memory[part] for part in PARTS) > 0


def test_what_is_no_codec_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no codec there"):
        measure_codec(tmp_path)
