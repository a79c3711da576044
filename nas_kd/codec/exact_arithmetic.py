"""The networks that both sides of the entropy coder must compute alike, in exact arithmetic.

A decoder whose scales differ from the encoder's in one last bit may pick another table and lose the stream. Here
weights and activations are rounded to binary fractions so coarse that every product and every partial sum is a
float64 without rounding: the order of summation, the number of threads and the library no longer matter.
(Balle, Johnston and Minnen, ICLR 2019, train such networks in integers; rounding afterwards to 16 fractional
bits needs no training, and files of ``mini`` grew by under 0.1 %.) What is not a sum is a single IEEE
operation, or done with ``decimal``, whose results are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal
from functools import cache
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas_kd.codec.hyperprior import EntropyParameters, HyperSynthesis

FRACTION = 2.0**16
"""Activations are multiples of 1 / FRACTION ..."""

LIMIT = 2.0**13
"""... of at most this magnitude, so that they take 30 bits with their sign."""

SUM_BITS = 53 - 16 - 13
"""What float64's 53 bits leave for the sum of a row's weight magnitudes, fraction included."""

LEVEL_STEPS = 2**20
"""Steps between two levels, and fractional bits of a logarithmic gain."""

SCALES, SCALE_MIN, SCALE_MAX = 64, Decimal("0.11"), Decimal(256)
"""CompressAI's table of scales (compressai.models.google.get_scale_table)."""

DIGITS = Context(prec=30)

Layer = Callable[[Tensor], Tensor]


def snap(x: Tensor) -> Tensor:
    """The nearest representable activation, ties to even."""
    return x.clamp(-LIMIT, LIMIT).mul_(FRACTION).round_().div_(FRACTION)


def exact_layer(layer: nn.Module) -> Layer:
    """A convolution or its transpose on snapped float64 [B, C, H, W], its result snapped."""
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        raise TypeError(f"{type(layer).__name__} has no exact form")
    out_axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    weight = layer.weight.detach().cpu().double()
    mask = getattr(layer, "mask", None)
    weight = weight if mask is None else weight * mask.cpu()
    bias = snap(layer.bias.detach().cpu().double()) if layer.bias is not None else None
    weight = _rounded(weight, out_axis)
    # Given as numbers in hyperprior.py, never as "same".
    stride, padding = layer.stride, cast(tuple[int, ...], layer.padding)
    if isinstance(layer, nn.ConvTranspose2d):
        extra = layer.output_padding
        return lambda x: snap(
            nn.functional.conv_transpose2d(x, weight, bias, stride, padding, extra)
        )
    return lambda x: snap(nn.functional.conv2d(x, weight, bias, stride, padding))


class ExactTables:
    """From z to the table of each latent, by a layer whose logarithmic scales are of patches that do not overlap.

    What ``exact_layer``, a clamp and ``scale_indexes`` give. float32 says in which table a scale lies, in half of the
    time; where its error could reach a table's bound, exact arithmetic decides. The product is NumPy's, whose float32
    no setting makes coarser, as PyTorch's may be made.
    """

    PART = 2**15
    """Tables that are found at a time; their numbers stay in a processor's cache."""

    MANY = 1 / 8
    """Of a part's tables: if so many are in doubt, as of damaged files, exact arithmetic finds all of them."""

    ROUNDING = 2.0**-24
    """Of float32, at most, relative to a number."""

    def __init__(self, layer: nn.Module):
        if not isinstance(layer, nn.ConvTranspose2d) or layer.stride != layer.kernel_size:
            raise TypeError(f"{type(layer).__name__} is no transposed convolution of patches apart")
        self.side = layer.stride[0]
        weight = _rounded(layer.weight.detach().cpu().double(), 1)
        self.weight = weight.permute(1, 2, 3, 0).flatten(0, 2).contiguous()
        bias = snap(cast(Tensor, layer.bias).detach().cpu().double())
        self.bias = bias.repeat_interleave(self.side**2)
        low, high = scale_logs()[0], scale_logs()[-1]
        self.low, self.step = low, (high - low) / (SCALES - 1)
        self.near = [_single(t / self.step) for t in (self.weight, self.bias)]
        self.widest = (self.weight / self.step).abs().amax(0)

    def __call__(self, z: Tensor, log_gain: Tensor) -> Tensor:
        """[C, h, w] to uint8 [M, h side, w side], with the gain's logarithm [M] at a level."""
        C, h, w = z.shape
        z, gain = z.reshape(C, -1), log_gain.repeat_interleave(self.side**2)
        z_near, gain_near = _single(z), _single(self._place(gain))[:, None]
        doubt, tables = _single(self._doubt(z, gain)), np.empty((len(gain), h * w), np.uint8)
        rows, close = max(1, self.PART // (h * w)), [np.empty(0, np.int64)]
        for first in range(0, len(gain), rows):
            part = slice(first, first + rows)
            place = self.near[0][part] @ z_near
            place += self.near[1][part, None]
            place = _between(-8 / self.step, place, 8 / self.step)
            place += gain_near[part]
            tables[part] = _between(0, np.ceil(place), SCALES - 1)
            doubtful = np.flatnonzero(np.abs(place - np.rint(place)) < doubt)
            if len(doubtful) > self.MANY * place.size:
                logs = torch.addmm(self.bias[part, None], self.weight[part], z)
                tables[part] = self._found(logs, gain[part, None])
            else:
                close.append(doubtful + first * h * w)
        found = torch.from_numpy(tables)
        for at in torch.from_numpy(np.concatenate(close)).split(self.PART):
            row, column = at // (h * w), at % (h * w)
            logs = (self.weight[row] * z.T[column]).sum(1).add_(self.bias[row])
            found.view(-1)[at] = self._found(logs, gain[row])
        found = found.reshape(-1, self.side, self.side, h, w)
        return found.permute(0, 3, 1, 4, 2).reshape(-1, h * self.side, w * self.side)

    def _place(self, gain: Tensor) -> Tensor:
        """Where a logarithm lies among those of the tables: 0 at the first."""
        return (gain - self.low) / self.step

    def _doubt(self, z: Tensor, gain: Tensor) -> Tensor:
        """How far at most float32 is from the place of a scale, [n] for z [C, n].

        A sum of n products is off by n + 2 roundings of what its magnitudes add up to, whatever its order; a snapped
        logarithm by half a fraction, a gain by the roundings of two numbers that a clamp bounds.
        """
        magnitudes = self.widest @ z.abs() + (self.bias / self.step).abs().max()
        bounded = 8 / self.step + self._place(gain).abs().max()
        sums = (len(z) + 4) * self.ROUNDING * magnitudes
        return 1.01 * (sums + 3 * self.ROUNDING * bounded + 1 / (2 * FRACTION * self.step))

    def _found(self, logs: Tensor, gain: Tensor) -> Tensor:
        """Tables of exact sums, which it changes."""
        return scale_indexes(snap(logs.clamp_(-8, 8)).add_(gain), logarithmic=True).to(torch.uint8)


def _single(x: Tensor) -> NDArray[np.float32]:
    return x.float().numpy()


def _between(low: float, x: NDArray[np.float32], high: float) -> NDArray[np.float32]:
    """In place; NumPy's own clip takes six times as long."""
    torch.from_numpy(x).clamp_(low, high)
    return x


def exact_context(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The checkerboard's masked convolution, as ``exact_layer`` would compute it in twice the time and more.

    Given snapped float64 [1, C, h, w] and where its anchors are, boolean [h, w]: a matrix product per live tap, of
    the anchors alone, and their shifted sums.
    """
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(f"{type(layer).__name__} is no masked convolution")
    mask = cast(Tensor, layer.mask).cpu()
    weight = _rounded(layer.weight.detach().cpu().double() * mask, 0)
    bias = cast(Tensor, layer.bias).detach().cpu().double()
    reach = weight.shape[-1] // 2
    taps = mask[0, 0].nonzero().tolist()
    kernels = [weight[..., i, j].contiguous() for i, j in taps]

    def context(x: Tensor, anchors: Tensor) -> Tensor:
        h, w = anchors.shape
        values = x[0][:, anchors]
        total = snap(bias)[:, None, None].expand(-1, h, w).clone()
        for (i, j), kernel in zip(taps, kernels, strict=True):
            padded = torch.zeros(len(bias), h + 2 * reach, w + 2 * reach, dtype=torch.float64)
            padded[:, reach : reach + h, reach : reach + w][:, anchors] = kernel @ values
            total += padded[:, i : i + h, j : j + w]
        return snap(total)[None]

    return context


def _rounded(weight: Tensor, out_axis: int) -> Tensor:
    """To the finest binary fraction with which no sum over a row outgrows float64."""
    rows = weight.transpose(0, out_axis).flatten(1)
    fine = torch.round(rows * FRACTION).abs().sum(1).max()
    # A row's rounding errors add at most half a step per weight; the bias takes another half of the range.
    worst = float(fine) / FRACTION + rows.shape[1] / FRACTION + 1
    steps = 2.0 ** (SUM_BITS - 1 - math.frexp(worst)[1])
    return torch.round(weight * steps) / steps


class ExactHyper:
    """z_hat to features, features to the scales' logarithms (or the scales) and the means."""

    def __init__(self, h_s: HyperSynthesis, head: EntropyParameters, context: nn.Module | None):
        self.kind = head.kind
        self.slope = 0.0 if head.kind == "scale" else 0.01
        self.deconvs = [exact_layer(h_s.deconv0), exact_layer(h_s.deconv1)]
        self.scales = exact_layer(head.scales)
        self.means = None if head.kind == "scale" else exact_layer(head.means)
        self.fuse = exact_layer(head.fuse) if head.kind == "checkerboard" else None
        self.context = None if context is None else exact_context(context)

    def features(self, z_hat: Tensor) -> Tensor:
        """As HyperSynthesis, [1, hyper, h, w] to [1, hyper, 4h, 4w]."""
        for deconv in self.deconvs:
            z_hat = self._act(deconv(z_hat))
        return z_hat

    def parameters(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """As EntropyParameters, but log scales where those are what is predicted.

        With a context every layer is 1x1, so that [1, hyper, n, 1], any selection of places, will do.
        """
        if self.fuse is not None:
            features = self._act(self.fuse(features))
        scales = self.scales(features)
        if self.means is None:
            return scales.clamp(min=0), None
        return scales.clamp(-8, 8), self.means(features)

    def _act(self, x: Tensor) -> Tensor:
        return snap(torch.where(x > 0, x, x * self.slope))


# --- gains and tables -------------------------------------------------------------------------


def exact_gain(table: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Logarithm and value, float64 [1, C, 1], of gains kept as logarithms [L, C]."""
    place = min(max(level - 1, 0.0), len(table) - 1.0)
    low = min(math.floor(place), max(len(table) - 2, 0))
    high = min(low + 1, len(table) - 1)
    part = round((place - low) * LEVEL_STEPS)
    steps = torch.round(table.detach().cpu().double() * LEVEL_STEPS).long()
    logs = (steps[low] * (LEVEL_STEPS - part) + steps[high] * part).tolist()
    unit = Decimal(LEVEL_STEPS) ** 2
    values = [float(DIGITS.exp(DIGITS.divide(Decimal(n), unit))) for n in logs]
    shape = (1, -1, 1)
    log = torch.tensor(logs, dtype=torch.float64) / LEVEL_STEPS**2
    return log.reshape(shape), torch.tensor(values, dtype=torch.float64).reshape(shape)


@cache
def scale_logs() -> tuple[float, ...]:
    """Logarithms of the table of scales."""
    low, high = DIGITS.ln(SCALE_MIN), DIGITS.ln(SCALE_MAX)
    step = DIGITS.divide(DIGITS.subtract(high, low), Decimal(SCALES - 1))
    return tuple(float(DIGITS.fma(step, Decimal(i), low)) for i in range(SCALES))


@cache
def scale_table() -> tuple[float, ...]:
    """CompressAI's 64 scales, 0.11 to 256 in even logarithmic steps."""
    return tuple(float(DIGITS.exp(Decimal(log))) for log in scale_logs())


def scale_indexes(scales: Tensor, logarithmic: bool) -> Tensor:
    """The table of each scale, int32: how many of all but the last are below it.

    The even steps of the logarithms say where to look; what decides is the comparison with the two bounds there.
    """
    bounds = torch.tensor(scale_logs() if logarithmic else scale_table(), dtype=torch.float64)
    logs = scales if logarithmic else scales.clamp(min=1e-3).log()
    low, step = scale_logs()[0], (scale_logs()[-1] - scale_logs()[0]) / (SCALES - 1)
    near = logs.sub(low).div_(step).nan_to_num_().round_().clamp_(0, SCALES - 2).int()
    return near.add_(scales > bounds.take(near.long()))
