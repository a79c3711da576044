"""What can be measured: a student, an arch, or a model of CompressAI's families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_kd.codec.arch import load_arch
from nas_kd.codec.checkpoint import load_student, ready
from nas_kd.codec.networks import in_turn, passes
from nas_kd.codec.student import Student
from nas_kd.errors import UsageError
from nas_kd.measurement.codec_energy import EXCLUDED
from nas_kd.measurement.codec_report import Subject, measured
from nas_kd.places import TEACHERS
from nas_kd.teachers.families import FixedRate, zoo_shape
from nas_kd.teachers.overheard import LATENT_CODEC, latent_widths
from nas_kd.teachers.served import is_built_in, is_compressai, zoo_qualities
from nas_kd.teachers.zoo import family_members, load_member

UNTRAINED = "the weights are untrained, and how long entropy coding takes depends on them"
CODED_ELSEWHERE = "CompressAI's own coder is not timed here"
ONE_BY_ONE = "; the context model runs once for all positions, where decoding runs it for one after the other"

IN_PASSES = "; likelihoods, which decoding has no need of, are computed on both sides"


def subjects(spec: str) -> list[Subject]:
    """What a name, folder or file stands for: of CompressAI's models one of each width.

    A zoo name needs no weights: what a model costs does not depend on them. Raises UsageError where it is none
    of these.
    """
    if is_built_in(spec):
        return [_of_student(spec, load_student(TEACHERS / spec), trained=True)]
    path = Path(spec)
    if path.suffix in (".toml", ".json") and path.is_file():
        torch.manual_seed(0)
        return [_of_student(spec, ready(Student(load_arch(path))), trained=False)]
    if not is_compressai(spec):
        return [_of_student(spec, load_student(path), trained=True)]
    return _of_zoo(spec) if zoo_qualities(spec) else _of_files(spec, path)


def measure_codec(spec: str | Path, quick: bool = False) -> dict[str, Any]:
    """Everything that ``nas-kd measure`` reports of one codec; raises UsageError where a name stands for several."""
    found = subjects(str(spec))
    if len(found) > 1:
        raise UsageError(
            f"{spec}: stands for {len(found)} models ({'; '.join(one.arch for one in found)}); name one, "
            f"such as {spec}:1"
        )
    return measured(found[0], quick)


def _of_student(spec: str, student: Student, trained: bool) -> Subject:
    return Subject(
        spec,
        str(student.arch),
        student.arch.key,
        student,
        lambda frames: passes(student, frames),
        None if trained else UNTRAINED,
        trained,
    )


def _of_zoo(spec: str) -> list[Subject]:
    """Untrained models as CompressAI has them, qualities of one shape together."""
    name, qualities = zoo_qualities(spec) or ("", [])
    found = []
    for shape in dict.fromkeys(zoo_shape(name, quality) for quality in qualities):
        same = [quality for quality in qualities if zoo_shape(name, quality) == shape]
        torch.manual_seed(0)
        found.append(_of_model(spec, name, FixedRate(name, same[0]).model, same, trained=False))
    return found


def _of_files(spec: str, path: Path) -> list[Subject]:
    members = family_members(path) if path.is_dir() else [load_member(path)]
    sizes = [sum(p.numel() for p in member.model.parameters()) for member in members]
    found = []
    for size in dict.fromkeys(sizes):
        same = [member for member, other in zip(members, sizes, strict=True) if other == size]
        said = [member.quality for member in same if member.quality is not None]
        found.append(_of_model(spec, same[0].name, same[0].model, said, trained=True))
    return found


def _of_model(spec: str, name: str, model: Any, qualities: list[int], trained: bool) -> Subject:
    M, N = (model.M, model.N) if hasattr(model, "N") else latent_widths(model.eval())
    widths = [N] + ([M] if M != N else [])
    which = f", quality {' '.join(map(str, qualities))}" if qualities else ""
    autoregressive = hasattr(model, "context_prediction")
    return Subject(
        spec,
        f"{name}, {', '.join(f'{n} = {w}' for n, w in zip('NM', widths, strict=False))}{which}",
        "-".join([name, *map(str, widths)]),
        model.eval().requires_grad_(False),
        lambda frames: in_turn(
            lambda x: encode(model, x), lambda *hat: decode(model, *hat), frames
        ),
        CODED_ELSEWHERE if trained else UNTRAINED,
        trained,
        EXCLUDED + ONE_BY_ONE * autoregressive + IN_PASSES * hasattr(model, LATENT_CODEC),
    )


def encode(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """y_hat and z_hat of a picture [B, 3, H, W]; all that CompressAI's encoder computes but the coding."""
    y = model.g_a(x)
    if hasattr(model, LATENT_CODEC):
        return _encoded_inside(model.latent_codec, y)
    z = model.h_a(y.abs() if _is(model, "ScaleHyperprior") else y)
    medians = model.entropy_bottleneck._get_medians().reshape(1, -1, 1, 1)
    z_hat = torch.round(z - medians) + medians
    params = model.h_s(z_hat)
    means = params.chunk(2, 1)[1] if _is(model, "MeanScaleHyperprior") else 0
    y_hat = torch.round(y - means) + means
    _entropy_parameters(model, params, y_hat)
    return y_hat, z_hat


def decode(model: Any, y_hat: Tensor, z_hat: Tensor) -> Tensor:
    """x_hat of what ``encode`` returned; all that the decoder computes but the decoding."""
    if hasattr(model, LATENT_CODEC):
        codec = model.latent_codec
        codec["y"](y_hat, codec["hyper"].h_s(z_hat))
    else:
        _entropy_parameters(model, model.h_s(z_hat), y_hat)
    return model.g_s(y_hat).clamp(0, 1)


def _encoded_inside(codec: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a model whose hyper-latents are its latent codec's."""
    hyper = codec["hyper"]
    medians = hyper.entropy_bottleneck._get_medians().reshape(1, -1, 1, 1)
    z_hat = torch.round(hyper.h_a(y) - medians) + medians
    return codec["y"](y, hyper.h_s(z_hat))["y_hat"], z_hat


def _is(model: Any, family: str) -> bool:
    """Whether that is its own class: those of CompressAI inherit from one another."""
    return type(model).__name__ == family


def _entropy_parameters(model: Any, params: Tensor, y_hat: Tensor) -> None:
    if hasattr(model, "context_prediction"):
        model.entropy_parameters(torch.cat((params, model.context_prediction(y_hat)), dim=1))
