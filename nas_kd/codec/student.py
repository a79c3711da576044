"""The student: one variable-rate codec with a hyperprior and real bitstreams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.codec.arch import PASSES, Arch
from nas_kd.codec.bottleneck import EntropyBottleneck
from nas_kd.codec.compressai_light import CompressionModel, GaussianConditional, quantize_ste
from nas_kd.codec.dual import DualParameters, Predicted, part
from nas_kd.codec.dual_coding import DualCoder
from nas_kd.codec.entropy_coding import ExactCoder, LatentCoder, anchors, make_tables
from nas_kd.codec.hyperprior import (
    EntropyParameters,
    HyperAnalysis,
    HyperSynthesis,
    context_prediction,
)
from nas_kd.codec.layers import Analysis, Synthesis
from nas_kd.codec.shortcut import LinearAnalysis, LinearSynthesis
from nas_kd.codec.trunk import Common, start_trunk

LMBDAS = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483)
"""CompressAI's Lagrange multipliers of qualities 1 to 6 (for the mean squared error)."""

Level = float | Tensor


class Gain(nn.Module):
    """Gain units: one positive factor per level and channel, and its learned inverse.

    Between levels both are interpolated exponentially (Cui et al., CVPR 2021, Eq. 6). Kept as
    logarithms, so that they are positive and the interpolation is linear.
    """

    def __init__(self, levels: int, C: int):
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(levels, C))
        self.log_inverse = nn.Parameter(torch.zeros(levels, C))

    def forward(self, level: Level) -> tuple[Tensor, Tensor]:
        """Gain and inverse, each [B, C, 1, 1] ([1, C, 1, 1] for one number), at levels 1 to L."""
        place = torch.as_tensor(level, dtype=torch.float32, device=self.log_gain.device) - 1
        place = place.reshape(-1).clamp(0, len(self.log_gain) - 1)
        if place.is_cuda:
            return self._mixed(self.log_gain, place), self._mixed(self.log_inverse, place)
        low = place.floor().long().clamp(max=max(len(self.log_gain) - 2, 0))
        high = (low + 1).clamp(max=len(self.log_gain) - 1)
        return self._at(self.log_gain, place, low, high), self._at(
            self.log_inverse, place, low, high
        )

    @staticmethod
    def _at(table: Tensor, place: Tensor, low: Tensor, high: Tensor) -> Tensor:
        part = (place - low)[:, None]
        return torch.exp(torch.lerp(table[low], table[high], part))[:, :, None, None]

    @staticmethod
    def _mixed(table: Tensor, place: Tensor) -> Tensor:
        """The same as sums of rows: one with weight 1 at a whole level; a GPU sorts for the gradient of an index."""
        rows = torch.arange(len(table), device=place.device)
        weights = (1 - (place[:, None] - rows).abs()).clamp(min=0)
        return torch.exp((weights[:, :, None] * table).sum(1))[:, :, None, None]


class Student(CompressionModel):
    """A codec for every level of ``lmbdas`` in one set of weights.

    ::

        x -> g_a -> y -> * gain -> Q, code -> * inverse -> y_hat -> g_s -> x_hat
                    |               ^ scales, means (* gain)
                    h_a -> z -> * gain -> Q, code -> * inverse -> h_s

    Entropy parameters are predicted in the domain of y and multiplied by the gain, so that one hyperprior
    serves all levels. With one level and no trunk there are no gains, and the scale model is CompressAI's
    ScaleHyperprior(N, M) exactly.

    Args:
        arch: what to build.
        lmbdas: one Lagrange multiplier per level, ascending.
    """

    def __init__(self, arch: Arch, lmbdas: tuple[float, ...] = LMBDAS):
        super().__init__()
        self.arch = arch = arch.canonical()
        self.lmbdas = tuple(lmbdas)
        self.g_a = Analysis(arch.encoder, arch.M)
        self.g_s = Synthesis(arch.decoder, arch.M)
        self.h_a = HyperAnalysis(arch)
        self.h_s = HyperSynthesis(arch)
        self.passes = PASSES.get(arch.entropy, 0)
        self.entropy_parameters: Any = (DualParameters if self.passes else EntropyParameters)(arch)
        self.entropy_bottleneck = EntropyBottleneck(arch.hyper)
        self.gaussian_conditional = GaussianConditional(None)
        self.context = context_prediction(arch) if arch.entropy == "checkerboard" else None
        gained = self.levels > 1 or arch.trunk or arch.shortcut
        self.gain_y = Gain(self.levels, arch.M) if gained else None
        self.gain_z = Gain(self.levels, arch.hyper) if gained else None
        # Students of nas-kd 0.1; no new ones have it.
        self.linear_a = LinearAnalysis(arch.M) if arch.shortcut else None
        self.linear_s = LinearSynthesis(arch.M) if arch.shortcut else None
        self.coder: LatentCoder | None = None
        # What iterative encoding puts in their places: how latents are rounded, and which are coded at all.
        self.rounding: Callable[[Tensor], Tensor] = quantize_ste
        self.audible: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None
        self._initialise_gains()

    @property
    def levels(self) -> int:
        """Number of rate points that were trained."""
        return len(self.lmbdas)

    # --- what the networks compute ------------------------------------------------------------

    def analysis(self, x: Tensor) -> Tensor:
        """Y [B, M, H/16, W/16] of a picture [B, 3, H, W]; H and W multiples of 64."""
        y = self.g_a(x)
        return y if self.linear_a is None else y + self.linear_a(x)

    def synthesis(self, y_hat: Tensor) -> Tensor:
        """x_hat [B, 3, H, W] of y_hat [B, M, H/16, W/16]; not clamped."""
        x_hat = self.g_s(y_hat)
        return x_hat if self.linear_s is None else x_hat + self.linear_s(y_hat)

    def forward(self, x: Tensor, level: Level = 1.0) -> dict[str, Any]:
        """Reconstruction, likelihoods, and y and z before quantisation.

        Rates see uniform noise in training; the decoder sees rounded latents with straight-through
        gradients (Minnen and Singh, 2020).

        Args:
            x: [B, 3, H, W] in [0, 1]; H and W multiples of 64.
            level: 1 to L, fractions interpolate; one number, or one per picture [B].
        """
        return self.coded(*self.latents(x), level)

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Y and z of pictures, before quantisation: the same at every level."""
        y = self.analysis(x)
        return y, self.h_a(y)

    def coded(self, y: Tensor, z: Tensor, level: Level = 1.0) -> dict[str, Any]:
        """What ``forward`` returns, from y and z."""
        gain_y, inverse_y, gain_z, inverse_z = self._gains(level)
        z_noisy, z_likelihoods = self.entropy_bottleneck(z * gain_z)
        z_hat = self._round_z(z * gain_z) if self.training else z_noisy
        if self.passes:
            y_likelihoods, y_hat = self._coded_in_passes(y, z_hat * inverse_z, gain_y, inverse_y)
            likelihoods = {"y": y_likelihoods, "z": z_likelihoods}
            return {"x_hat": self.synthesis(y_hat), "likelihoods": likelihoods, "y": y, "z": z}
        features = self.h_s(z_hat * inverse_z)
        scales, means = self._entropy_parameters(features, y, gain_y, inverse_y)
        gained_means = None if means is None else means * gain_y
        heard = y if self.audible is None else self.audible(y, scales * gain_y, means)
        _, y_likelihoods = self.gaussian_conditional(heard * gain_y, scales * gain_y, gained_means)
        x_hat = self.synthesis(self._round_y(heard, means, gain_y, inverse_y))
        likelihoods = {"y": y_likelihoods, "z": z_likelihoods}
        return {"x_hat": x_hat, "likelihoods": likelihoods, "y": y, "z": z}

    def rounded(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """y_hat and z_hat of pictures [B, 3, H, W]; all that the encoder computes but the coding."""
        gain_y, inverse_y, gain_z, inverse_z = self._gains(level)
        y, z = self.latents(x)
        z_hat = self._round_z(z * gain_z)
        if self.passes:
            _, *found = self._in_passes(y, z_hat * inverse_z, gain_y, inverse_y)
            return self._round_in_steps(y, Predicted(*found), gain_y, inverse_y), z_hat
        _, means = self._entropy_parameters(self.h_s(z_hat * inverse_z), y, gain_y, inverse_y)
        return self._round_y(y, means, gain_y, inverse_y), z_hat

    def restored(self, y_hat: Tensor, z_hat: Tensor, level: Level) -> Tensor:
        """x_hat [B, 3, H, W] of what ``rounded`` returned; all that the decoder computes but the decoding."""
        gain_y, inverse_y, _, inverse_z = self._gains(level)
        if self.passes:
            self._in_passes(y_hat, z_hat * inverse_z, gain_y, inverse_y)
        else:
            self._entropy_parameters(self.h_s(z_hat * inverse_z), y_hat, gain_y, inverse_y)
        return self.synthesis(y_hat).clamp(0, 1)

    def _gains(self, level: Level) -> tuple[Any, Any, Any, Any]:
        if self.gain_y is None or self.gain_z is None:
            return 1.0, 1.0, 1.0, 1.0
        return *self.gain_y(level), *self.gain_z(level)

    def _round_z(self, z: Tensor) -> Tensor:
        medians = self.entropy_bottleneck.quantiles[:, 0, 1].detach()[None, :, None, None]
        return self.rounding(z - medians) + medians

    def _round_y(self, y: Tensor, means: Tensor | None, gain: Any, inverse: Any) -> Tensor:
        if means is None:
            return self.rounding(y * gain) * inverse
        return (self.rounding((y - means) * gain) + means * gain) * inverse

    def _entropy_parameters(
        self, features: Tensor, y: Tensor, gain: Any, inverse: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Scales and means of y, in the domain of y; the checkerboard's second half sees the first."""
        scales, means = self.entropy_parameters(features)
        if self.context is None:
            return scales, means
        anchor = anchors(y)
        y_hat = self._round_y(y, means, gain, inverse) * anchor
        scales_2, means_2 = self.entropy_parameters(features + self.context(y_hat))
        return torch.where(anchor, scales, scales_2), torch.where(anchor, means, means_2)

    def _coded_in_passes(
        self, y: Tensor, z_hat: Tensor, gain: Any, inverse: Any
    ) -> tuple[Tensor, Tensor]:
        """Likelihoods and y_hat where steps are predicted."""
        scales, means, steps = self._in_passes(y, z_hat, gain, inverse)
        heard = y if self.audible is None else self.audible(y, scales * gain, means)
        _, likelihoods = self.gaussian_conditional((heard - means) * (gain / steps), scales * gain)
        return likelihoods, self._round_in_steps(heard, Predicted(means, steps), gain, inverse)

    def _in_passes(
        self, y: Tensor, z_hat: Tensor, gain: Any, inverse: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scales from z_hat, means and steps from its features and from what is decoded."""
        scales = torch.exp(self.entropy_parameters.log_scales(z_hat))
        return scales, *self.predicted(self.h_s(z_hat), y, gain, inverse)

    def _round_in_steps(self, y: Tensor, found: Predicted, gain: Any, inverse: Any) -> Tensor:
        means, steps = found
        return (self.rounding((y - means) * (gain / steps)) * steps + means * gain) * inverse

    def predicted(self, features: Tensor, y: Tensor, gain: Any, inverse: Any) -> Predicted:
        """Means and steps of all latents; each pass sees those of the passes before as they are decoded."""
        found = self.entropy_parameters(0, features, None)
        mine = part(y.shape, self.passes, 0, y.device)
        decoded = self._round_in_steps(y, found, gain, inverse) * mine
        means, steps = found
        for i in range(1, self.passes):
            mine = part(y.shape, self.passes, i, y.device)
            found = self.entropy_parameters(i, features, decoded)
            means = torch.where(mine, found.means, means)
            steps = torch.where(mine, found.steps, steps)
            if i + 1 < self.passes:
                y_hat = self._round_in_steps(y, found, gain, inverse)
                decoded = torch.where(mine, y_hat, decoded)
        return Predicted(means, steps)

    # --- real bitstreams ----------------------------------------------------------------------

    def update(
        self, scale_table: Any = None, force: bool = False, update_quantiles: bool = False
    ) -> bool:
        """Make the entropy coder's tables from the weights; ``scale_table`` is CompressAI's own."""
        if scale_table is not None:
            raise ValueError("a student's table of scales is fixed: leave scale_table out")
        if self.coder is not None and not force:
            return False
        make_tables(self.entropy_bottleneck, self.gaussian_conditional, update_quantiles)
        self.coder = self._latent_coder()
        return True

    def _latent_coder(self) -> LatentCoder:
        models = (self.entropy_bottleneck, self.gaussian_conditional)
        gains = None if self.gain_y is None else (self.gain_y, self.gain_z)
        if self.passes:
            return DualCoder((self.h_s, self.entropy_parameters), models, gains)
        return ExactCoder((self.h_s, self.entropy_parameters, self.context), models, gains)

    @torch.no_grad()
    def compress(self, x: Tensor, level: float = 1.0) -> dict[str, Any]:
        """Entropy-code pictures [B, 3, H, W]; ``update()`` must have been called.

        Returns:
            strings: lists of B byte strings: the parts of y, then z. shape: height and width of z.
            y_hat: what the decoder will see.
        """
        y, z = self.latents(x)
        coded = [self._coder().encode(y[i : i + 1], z[i : i + 1], level) for i in range(len(x))]
        strings = [list(parts) for parts in zip(*(one.strings for one in coded), strict=True)]
        y_hat = torch.cat([one.y_hat for one in coded]).to(x.device)
        return {"strings": strings, "shape": tuple(z.shape[-2:]), "y_hat": y_hat}

    @torch.no_grad()
    def decompress(
        self, strings: list[list[bytes]], shape: tuple[int, int], level: float = 1.0
    ) -> dict[str, Any]:
        """Pictures ``x_hat`` [B, 3, H, W] in [0, 1], and ``y_hat``, from what ``compress`` returned."""
        coder = self._coder()
        each = [coder.decode(list(s), shape, level).y_hat for s in zip(*strings, strict=True)]
        y_hat = torch.cat(each).to(self.h_a.conv0.weight.device)
        return {"x_hat": self.synthesis(y_hat).clamp(0, 1), "y_hat": y_hat}

    def _coder(self) -> LatentCoder:
        if self.coder is None:
            raise ValueError("no coding tables: call update(force=True, update_quantiles=True)")
        return self.coder

    @property
    def y_parts(self) -> int:
        """How many strings y is coded in."""
        return self.passes or (1 if self.context is None else 2)

    # --- initial weights ----------------------------------------------------------------------

    @torch.no_grad()
    def _initialise_gains(self) -> None:
        """Steps for which an orthonormal transform is optimal: gain = 1 / step, step^2 ~ 1 / lambda."""
        if self.gain_y is None:
            return
        lmbdas = torch.tensor(self.lmbdas)
        self.gain_y.log_gain.add_(0.5 * torch.log(lmbdas / lmbdas[-1])[:, None])
        self.gain_y.log_inverse.copy_(-self.gain_y.log_gain)

    @torch.no_grad()
    def start_from(self, crops: Tensor, common: Common | None = None) -> None:
        """Make an untrained trunk a linear transform codec of the pictures it will be trained on.

        Latents start with unit variance, which is what the entropy models predict untrained; with D = step^2 / 12
        per coefficient and R = -log2 step, the best step for lambda is step^2 = 18 / (lambda 255^2 ln 2), and a
        level's gain is deviation / step. Students without a trunk stay as they are.

        Args:
            crops: [n, 3, H, W] in [0, 1], a few hundred at least.
            common: with the students that share weights, which begin on the same crops one after another.
        """
        if not self.arch.trunk or self.gain_y is None:
            return
        std = start_trunk(self.g_a, self.g_s, crops, common or Common()).std
        if self.arch.entropy == "scale":
            # The other models predict unit variance by themselves, at exp(0).
            nn.init.ones_(self.entropy_parameters.scales.bias)
        step = torch.sqrt(18 / (torch.tensor(self.lmbdas) * 255**2 * math.log(2)))
        self.gain_y.log_gain.copy_(torch.log(std[None] / step[:, None]))
        self.gain_y.log_inverse.copy_(-self.gain_y.log_gain)


def slice_params(wide: dict[str, Tensor], narrow: nn.Module) -> dict[str, Tensor]:
    """The leading slices of a wide student's parameters that are a narrow one's.

    Kernels that differ in size share their centre. Buffers (quantised CDFs) are not among them: call ``update()``
    on the narrow student. Raises KeyError where the wide student lacks a part (another stem,
    entropy model or block kind).

    Args:
        wide: ``dict(student.named_parameters())`` of the wide student.
        narrow: the narrow student, whose names and shapes are wanted.
    """
    return {name: _slice(wide[name], p.shape) for name, p in narrow.named_parameters()}


def _slice(tensor: Tensor, shape: torch.Size) -> Tensor:
    for axis, size in enumerate(shape):
        if size > tensor.shape[axis]:
            raise KeyError(f"the wide student has {tuple(tensor.shape)}, wanted are {tuple(shape)}")
        spatial = tensor.dim() == 4 and axis >= 2
        start = (tensor.shape[axis] - size) // 2 if spatial else 0
        tensor = tensor.narrow(axis, start, size)
    return tensor
