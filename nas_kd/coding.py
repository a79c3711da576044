"""Latents to strings and back: the part of the codec that encoder and decoder must compute alike.

Everything here is on the CPU in exact arithmetic (``exact``), so that a string means the same symbols on every
machine. A picture's latents are coded in tiles, so that memory stays bounded; since the arithmetic is exact and
tiles are computed with their surroundings, the tiling changes no probability.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nas_kd.exact import ExactHyper, exact_gain, scale_indexes, scale_table, snap
from nas_kd.layers import EntropyParameters, HyperSynthesis
from nas_kd.lic import EntropyBottleneck, GaussianConditional
from nas_kd.rans import SymbolCoder, rounded

CELL = 4
"""Latents per side of one hyperlatent."""

HALO = 2
"""Hyperlatents around a tile on which its entropy parameters depend: two deconvolutions and a 3x3 kernel reach
7 latents."""

REACH = 2
"""Latents on which the checkerboard's context depends (5x5)."""


class Tile(NamedTuple):
    """A rectangle in hyperlatents, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int


class Coded(NamedTuple):
    """Strings (the parts of y tile by tile, then z), y_hat [1, M, h, w], crc32 of all symbols."""

    strings: list[bytes]
    y_hat: Tensor
    checksum: int


def tiles_of(h: int, w: int, side: int | None) -> list[Tile]:
    """Rectangles of at most ``side`` hyperlatents (None: one) that cover [h, w], row by row."""
    side = side or max(h, w, 1)
    rows, columns = range(0, h, side), range(0, w, side)
    return [Tile(t, min(t + side, h), n, min(n + side, w)) for t in rows for n in columns]


class LatentCoder:
    """Entropy coding of one student's y and z; made when its tables are.

    Args:
        parts: h_s, entropy_parameters, context (or None), entropy_bottleneck, gaussian_conditional.
        gains: gain_y and gain_z, or None where there are none.
    """

    def __init__(
        self,
        parts: tuple[
            *tuple[HyperSynthesis, EntropyParameters],
            *tuple[nn.Module | None, EntropyBottleneck, GaussianConditional],
        ],
        gains: tuple[Any, Any] | None,
    ):
        h_s, head, context, bottleneck, conditional = parts
        self.hyper = ExactHyper(h_s, head, context)
        self.gains = gains
        self.M = head.scales.out_channels
        self.z_coder, self.y_coder = SymbolCoder(bottleneck), SymbolCoder(conditional)
        self.medians = bottleneck.quantiles[:, 0, 1].detach().cpu().double()[None, :, None, None]

    @property
    def y_parts(self) -> int:
        """How many strings a tile of y is coded in."""
        return 1 if self.hyper.context is None else 2

    def encode(self, y: Tensor, z: Tensor, level: float, side: int | None = None) -> Coded:
        """Strings of y [1, M, h, w] and z [1, hyper, h/4, w/4], in tiles of ``side`` hyperlatents."""
        at = _Gains(self.gains, level)
        gained_z = z.detach().cpu().double() * at.gain_z - self.medians
        z_symbols = rounded(gained_z)
        z_string = self.z_coder.encode(z_symbols.flatten(), self._z_indexes(z_symbols.shape))
        strings: list[bytes] = []
        seen = y.detach().cpu()

        def code(place: tuple[slice, slice], part: Tensor, indexes: Tensor, means: Any) -> Tensor:
            values = (seen[..., place[0], place[1]].double() * at.gain_y - means)[..., part]
            symbols = rounded(values)
            strings.append(self.y_coder.encode(symbols.flatten(), indexes[..., part].flatten()))
            return symbols

        y_hat, checksum = self._run(z_symbols, at, side, code)
        return Coded([*strings, z_string], y_hat, checksum)

    def decode(
        self, strings: list[bytes], shape: tuple[int, int], level: float, side: int | None = None
    ) -> Coded:
        """y_hat of what ``encode`` returned, for z of ``shape`` (height, width).

        Raises BitstreamError for some strings that no encoder writes; the others give some latents,
        and the checksum tells.
        """
        at = _Gains(self.gains, level)
        *y_strings, z_string = strings
        z_shape = torch.Size((1, self.medians.shape[1], *shape))
        z_symbols = self.z_coder.decode(z_string, self._z_indexes(z_shape)).reshape(z_shape)
        waiting = iter(y_strings)

        def code(place: tuple[slice, slice], part: Tensor, indexes: Tensor, means: Any) -> Tensor:
            wanted = indexes[..., part]
            symbols = self.y_coder.decode(next(waiting), wanted.flatten())
            return symbols.reshape(wanted.shape)

        y_hat, checksum = self._run(z_symbols, at, side, code)
        return Coded(strings, y_hat, checksum)

    def _z_indexes(self, shape: torch.Size) -> Tensor:
        channels = torch.arange(shape[1]).reshape(1, -1, 1, 1)
        return channels.expand(shape).flatten()

    def _run(
        self, z_symbols: Tensor, at: _Gains, side: int | None, code: Callable[..., Tensor]
    ) -> tuple[Tensor, int]:
        """y_hat and the checksum: part by part, tile by tile, ``code`` writes or reads symbols."""
        z_hat = snap((z_symbols.double() + self.medians) * at.inverse_z)
        h, w = z_hat.shape[-2:]
        y_hat = torch.zeros(1, self.M, CELL * h, CELL * w)
        checksum = zlib.crc32(z_symbols.numpy().tobytes())
        for second in range(self.y_parts):
            for tile in tiles_of(h, w, side):
                scales, means = self._parameters(z_hat, y_hat if second else None, tile)
                place = _latents(tile)
                part = self._part(tile, second)
                gained = 0.0 if means is None else means * at.gain_y
                indexes = self._indexes(scales, at)
                symbols = code(place, part, indexes, gained)
                checksum = zlib.crc32(symbols.numpy().tobytes(), checksum)
                centre = gained[..., part] if isinstance(gained, Tensor) else gained
                values = (symbols.double() + centre) * at.inverse_y.flatten(2)
                y_hat[..., place[0], place[1]][..., part] = values.float()
        return y_hat, checksum

    def _parameters(
        self, z_hat: Tensor, anchors_hat: Tensor | None, tile: Tile
    ) -> tuple[Tensor, Tensor | None]:
        """Scales and means at one tile; the second half also sees the decoded first half."""
        (rows, columns), (inner_rows, inner_columns) = _around(tile, z_hat.shape, HALO, CELL)
        features = self.hyper.features(z_hat[..., rows, columns])
        if self.hyper.context is None:
            scales, means = self.hyper.parameters(features)
            inside = (..., inner_rows, inner_columns)
            return scales[inside], None if means is None else means[inside]
        features = features[..., inner_rows, inner_columns]
        if anchors_hat is not None:
            y_tile = Tile(*(CELL * edge for edge in tile))
            (rows, columns), inner = _around(y_tile, anchors_hat.shape, REACH, 1)
            around = snap(anchors_hat[..., rows, columns].double())
            seen = anchors(around, rows.start + columns.start)
            features = features + self.hyper.context(around * seen)[..., inner[0], inner[1]]
        return self.hyper.parameters(features)

    def _part(self, tile: Tile, second: int) -> Tensor:
        """Which of a tile's latents are coded together, boolean [h, w]."""
        shape = torch.zeros(CELL * (tile.bottom - tile.top), CELL * (tile.right - tile.left))
        if self.y_parts == 1:
            return torch.ones_like(shape, dtype=torch.bool)
        return anchors(shape) ^ bool(second)

    def _indexes(self, scales: Tensor, at: _Gains) -> Tensor:
        if self.hyper.kind == "scale":
            return scale_indexes(scales * at.gain_y, logarithmic=False)
        return scale_indexes(scales + at.log_gain_y, logarithmic=True)


class _Gains:
    """Gains and inverses at one level, float64 [1, C, 1, 1]; ones where the student has none."""

    def __init__(self, gains: tuple[Any, Any] | None, level: float):
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        self.log_gain_y, self.gain_y, self.inverse_y = one * 0, one, one
        self.gain_z, self.inverse_z = one, one
        if gains is not None:
            gain_y, gain_z = gains
            self.log_gain_y, self.gain_y = exact_gain(gain_y.log_gain, level)
            _, self.inverse_y = exact_gain(gain_y.log_inverse, level)
            _, self.gain_z = exact_gain(gain_z.log_gain, level)
            _, self.inverse_z = exact_gain(gain_z.log_inverse, level)


def anchors(y: Tensor, phase: int = 0) -> Tensor:
    """The checkerboard's first half, boolean [h, w], for latents [..., h, w] whose corner has ``phase``."""
    h, w = y.shape[-2:]
    rows = torch.arange(h, device=y.device)[:, None]
    return (rows + torch.arange(w, device=y.device)[None] + phase) % 2 == 0


def _latents(tile: Tile) -> tuple[slice, slice]:
    return slice(CELL * tile.top, CELL * tile.bottom), slice(CELL * tile.left, CELL * tile.right)


def _around(
    tile: Tile, shape: torch.Size, halo: int, scale: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """A tile with its halo, and the tile's place in what is computed of that, ``scale`` times finer."""
    spans = ((tile.top, tile.bottom, shape[-2]), (tile.left, tile.right, shape[-1]))
    outer = [(max(0, a - halo), min(end, b + halo)) for a, b, end in spans]
    inner = [
        slice(scale * (a - start), scale * (b - start))
        for (a, b, _), (start, _) in zip(spans, outer, strict=True)
    ]
    return (slice(*outer[0]), slice(*outer[1])), (inner[0], inner[1])


# --- tables -----------------------------------------------------------------------------------


def make_tables(
    bottleneck: EntropyBottleneck, conditional: GaussianConditional, update_quantiles: bool
) -> None:
    """CompressAI's ``update`` with probabilities in float64.

    There another machine's differ by too little to change a table's 16 bits.
    """
    if update_quantiles:
        bottleneck._update_quantiles()
    double = copy.deepcopy(bottleneck).cpu().double()
    double.update(force=True)
    _take(bottleneck, double._quantized_cdf, double._offset, double._cdf_length)
    cdf, offset, length = _gaussian(conditional)
    conditional.scale_table = torch.tensor(scale_table(), device=conditional._offset.device)
    _take(conditional, cdf, offset, length)


def _take(model: Any, cdf: Tensor, offset: Tensor, length: Tensor) -> None:
    device = model._offset.device
    model._quantized_cdf, model._offset = cdf.int().to(device), offset.int().to(device)
    model._cdf_length = length.int().to(device)


def _gaussian(conditional: GaussianConditional) -> Iterator[Tensor]:
    """Quantised CDFs, offsets and lengths of the table's normal distributions."""
    scales = torch.tensor(scale_table(), dtype=torch.float64)
    multiplier = -conditional._standardized_quantile(conditional.tail_mass / 2)
    centre = torch.ceil(scales * multiplier).int()
    length = 2 * centre + 1
    longest = int(length.max())
    distance = (torch.arange(longest)[None] - centre[:, None]).abs().double()
    cumulative = conditional._standardized_cumulative
    upper = cumulative((0.5 - distance) / scales[:, None])
    lower = cumulative((-0.5 - distance) / scales[:, None])
    tail = 2 * lower[:, :1]
    cdf = conditional._pmf_to_cdf(upper - lower, tail, length, longest)
    return iter((cdf, -centre, length + 2))
