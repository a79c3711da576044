"""CompressAI's own model families at any width, as codecs that can be trained here: one model per quality."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nas_kd.codec.bottleneck import without_waits  # the light import of CompressAI, too
from nas_kd.codec.student import LMBDAS
from nas_kd.errors import UsageError

FAMILIES = ("bmshj2018-hyperprior", "mbt2018-mean", "mbt2018", "cheng2020-anchor", "cheng2020-attn")
"""Those of the zoo that have hyper-latents to distil."""
ONE_BY_ONE = ("mbt2018", "cheng2020-anchor", "cheng2020-attn")
"""Families whose context model decodes position by position: seconds a picture."""
WIDTH_MIN = 8


class FixedRate(nn.Module):
    """A family's model of one quality, with what a training run asks of a codec: lambdas and levels.

    Args:
        name: one of FAMILIES.
        quality: 1 to 6; decides lambda and, where ``width`` does not, the channels.
        width: channels N of the transforms, by default the zoo's own. The channels M of the latents stay the
            zoo's for that quality (192 or 320) where the family has an M of its own.
    """

    levels = 1

    def __init__(self, name: str, quality: int, width: int | None = None):
        super().__init__()
        from compressai.zoo.image import cfgs, model_architectures

        own, *latents = cfgs[name][quality]
        self.width = own if width is None else width
        self.lmbdas = (LMBDAS[quality - 1],)
        self.model: Any = without_waits(model_architectures[name](self.width, *latents))

    def forward(self, x: Tensor, level: Any = 1.0) -> dict[str, Any]:
        """Reconstruction and likelihoods; the level plays no part, for there is one."""
        return self.model(x)

    def aux_loss(self) -> Tensor:
        """The loss of the quantiles."""
        return self.model.aux_loss()


def zoo_shape(name: str, quality: int) -> tuple[int, ...]:
    """The channels that the zoo's model of that quality has: N, or N and M."""
    from compressai.zoo.image import cfgs

    return cfgs[name][quality]


def check(name: str, width: int | None) -> None:
    """Raise UsageError unless such models can be made."""
    if name not in FAMILIES:
        raise UsageError(
            f"--arch {name}: neither an arch file nor one of CompressAI's families "
            f"({', '.join(FAMILIES)}); give one of these"
        )
    if width is not None and (width < WIDTH_MIN or width % 2):
        raise UsageError(f"--width {width}: must be even and at least {WIDTH_MIN}")


def parsed_levels(text: str) -> tuple[int, ...]:
    """Qualities, ascending, of a list such as ``1,5``."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or list(found) != sorted(set(found)) or found[0] < 1 or found[-1] > len(LMBDAS):
        raise UsageError(
            f"--levels {text}: must be qualities from 1 to {len(LMBDAS)}, ascending, such as 1,5"
        )
    return found
