"""Latents to strings and back: the part of the codec that encoder and decoder must compute alike.

Everything here is on the CPU in exact arithmetic (``exact``), so that a string means the same symbols on every
machine. A picture's latents are coded in tiles, so that memory stays bounded; since the arithmetic is exact and
tiles are computed with their surroundings, the tiling changes no probability.
"""

from __future__ import annotations

import copy
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.codec.compressai_light import EntropyBottleneck, GaussianConditional
from nas_kd.codec.exact_arithmetic import (
    FRACTION,
    ExactHyper,
    exact_gain,
    scale_indexes,
    scale_table,
    snap,
)
from nas_kd.codec.hyperprior import EntropyParameters, HyperSynthesis
from nas_kd.codec.symbol_coder import SymbolCoder, rounded

CELL = 4
"""Latents per side of one hyperlatent."""

HALO = 2
"""Hyperlatents around a tile on which its entropy parameters depend: two deconvolutions and a 3x3 kernel reach
7 latents."""

REACH = 2
"""Latents on which the checkerboard's context depends (5x5)."""

QUIET = 5
"""How many tables, from the narrowest, are not coded: where they are predicted, symbols are 0.

At deviations under 0.2 a symbol is hardly ever another and then costs 10 to 16 bits, more than it is worth: BD-rate
-1.3 % (``mini``, six pictures of BSDS500 test), and 58 to 92 % of its symbols no longer pass one by one through the
entropy coder (benchmarks/LOG.md).
"""


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


Models = tuple[EntropyBottleneck, GaussianConditional]
Coding = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""Writes or reads the symbols [n] of one part of one tile, with the index of each one's table [n]; what is to be
rounded to a symbol the encoder is told by a function of y [1, M, h, w], float64 [n] where it must be exact."""


class LatentCoder(ABC):
    """Entropy coding of one student's y and z; made when its tables are.

    Args:
        M: latent channels.
        models: entropy_bottleneck and gaussian_conditional.
        gains: gain_y and gain_z, or None where there are none.
    """

    def __init__(self, M: int, models: Models, gains: tuple[Any, Any] | None):
        bottleneck, conditional = models
        self._at = lru_cache(64)(lambda level: Gains(gains, level))
        self.M = M
        self.z_coder, self.y_coder = SymbolCoder(bottleneck), SymbolCoder(conditional)
        self.medians = bottleneck.quantiles[:, 0, 1].detach().cpu().double()[None, :, None, None]

    @property
    @abstractmethod
    def y_parts(self) -> int:
        """How many strings a tile of y is coded in."""

    def encode(
        self, y: Tensor, z: Tensor, level: float, side: int | None = None, quiet: int = QUIET
    ) -> Coded:
        """Strings of y [1, M, h, w] and z [1, hyper, h/4, w/4], in tiles of ``side`` hyperlatents.

        Symbols whose table is one of the first ``quiet`` are 0 and in no string.
        """
        at = self._at(level)
        gained_z = z.detach().cpu().double() * at.gain_z[..., None] - self.medians
        z_symbols = rounded(gained_z)
        z_string = self.z_coder.encode(z_symbols.flatten(), self._z_indexes(z_symbols.shape))
        strings: list[bytes] = []
        seen = y.detach().cpu()

        def code(wanted: Callable[[Tensor], Tensor], indexes: Tensor) -> Tensor:
            loud = indexes >= quiet
            symbols = rounded(wanted(seen)) * loud
            strings.append(self.y_coder.encode(symbols[loud], indexes[loud].int()))
            return symbols

        y_hat, checksum = self._run(z_symbols, at, side, code)
        return Coded([*strings, z_string], y_hat, checksum)

    def decode(
        self,
        strings: list[bytes],
        shape: tuple[int, int],
        level: float,
        side: int | None = None,
        quiet: int = QUIET,
    ) -> Coded:
        """y_hat of what ``encode`` returned, for z of ``shape`` (height, width).

        Raises BitstreamError for some strings that no encoder writes; the others give some latents,
        and the checksum tells.
        """
        at = self._at(level)
        *y_strings, z_string = strings
        z_shape = torch.Size((1, self.medians.shape[1], *shape))
        z_symbols = self.z_coder.decode(z_string, self._z_indexes(z_shape)).reshape(z_shape)
        waiting = iter(y_strings)

        def code(_: Callable[[Tensor], Tensor], indexes: Tensor) -> Tensor:
            # NumPy finds them in a tenth of the time.
            loud = torch.from_numpy(np.flatnonzero(indexes.numpy() >= quiet))
            symbols = torch.zeros(indexes.shape, dtype=torch.int32)
            symbols[loud] = self.y_coder.decode(next(waiting), indexes[loud])
            return symbols

        y_hat, checksum = self._run(z_symbols, at, side, code)
        return Coded(strings, y_hat, checksum)

    def _z_indexes(self, shape: torch.Size) -> Tensor:
        channels = torch.arange(shape[1]).reshape(1, -1, 1, 1)
        return channels.expand(shape).flatten()

    def _z_hat(self, z_symbols: Tensor, at: Gains) -> Tensor:
        return snap((z_symbols.double() + self.medians) * at.inverse_z[..., None])

    @abstractmethod
    def _run(
        self, z_symbols: Tensor, at: Gains, side: int | None, code: Coding
    ) -> tuple[Tensor, int]:
        """y_hat and the checksum: part by part, tile by tile, ``code`` writes or reads symbols."""


class ExactCoder(LatentCoder):
    """All that decides a symbol's table or its value, in exact arithmetic.

    Args:
        networks: h_s, entropy_parameters, context (or None).
        models: entropy_bottleneck and gaussian_conditional.
        gains: gain_y and gain_z, or None where there are none.
    """

    def __init__(
        self,
        networks: tuple[HyperSynthesis, EntropyParameters, nn.Module | None],
        models: Models,
        gains: tuple[Any, Any] | None,
    ):
        super().__init__(networks[1].scales.out_channels, models, gains)
        self.hyper = ExactHyper(*networks)

    @property
    def y_parts(self) -> int:
        """Two with a checkerboard."""
        return 1 if self.hyper.context is None else 2

    def _run(
        self, z_symbols: Tensor, at: Gains, side: int | None, code: Coding
    ) -> tuple[Tensor, int]:
        z_hat = self._z_hat(z_symbols, at)
        h, w = z_hat.shape[-2:]
        tiles = tiles_of(h, w, side)
        y_hat = torch.zeros(1, self.M, CELL * h, CELL * w)
        checksum = zlib.crc32(z_symbols.numpy().tobytes())
        kept: dict[Tile, Tensor] = {}
        for second in range(self.y_parts):
            for tile in tiles:
                place, part = latents_of(tile), self._part(tile, second)
                features = self._features(z_hat, tile, kept)
                if second:
                    features = features + self._context(y_hat, tile)
                scales, means = self._parameters(features, tile, z_hat.shape, part)
                gained: Any = 0.0 if means is None else means * at.gain_y

                def wanted(
                    y: Tensor, place: Any = place, part: Any = part, gained: Any = gained
                ) -> Tensor:
                    values = y[(..., *place)][..., part].double()
                    return (values * at.gain_y - gained).flatten()

                symbols = code(wanted, self._indexes(scales, at).flatten())
                checksum = zlib.crc32(symbols.numpy().data, checksum)
                values = (symbols.reshape(scales.shape).double() + gained) * at.inverse_y
                y_hat[(..., *place)][..., part] = values.float()
        return y_hat, checksum

    def _features(self, z_hat: Tensor, tile: Tile, kept: dict[Tile, Tensor]) -> Tensor:
        """h_s around one tile; where both halves want it, kept as int32 of the tile alone."""
        if tile in kept:
            return kept[tile].double() / FRACTION
        (rows, columns), inner = around(tile, z_hat.shape, HALO, CELL)
        features = self.hyper.features(z_hat[..., rows, columns])
        if self.hyper.context is not None:
            features = features[(..., *inner)]
            kept[tile] = (features * FRACTION).int()
        return features

    def _context(self, anchors_hat: Tensor, tile: Tile) -> Tensor:
        """What the decoded first half adds to the features of one tile."""
        assert self.hyper.context is not None
        y_tile = Tile(*(CELL * edge for edge in tile))
        (rows, columns), inner = around(y_tile, anchors_hat.shape, REACH, 1)
        seen = snap(anchors_hat[..., rows, columns].double())
        context = self.hyper.context(seen, anchors(seen, rows.start + columns.start))
        return context[(..., *inner)]

    def _parameters(
        self, features: Tensor, tile: Tile, z_shape: torch.Size, part: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Scales and means [1, M, n] of the n latents of a part of a tile."""
        if self.hyper.context is not None:
            scales, means = self.hyper.parameters(features[..., part][..., None])
            return scales[..., 0], None if means is None else means[..., 0]
        inner = around(tile, z_shape, HALO, CELL)[1]
        scales, means = self.hyper.parameters(features)
        return scales[(..., *inner)].flatten(2), (
            None if means is None else means[(..., *inner)].flatten(2)
        )

    def _part(self, tile: Tile, second: int) -> Tensor:
        """Which of a tile's latents are coded together, boolean [h, w]."""
        shape = torch.zeros(CELL * (tile.bottom - tile.top), CELL * (tile.right - tile.left))
        if self.y_parts == 1:
            return torch.ones_like(shape, dtype=torch.bool)
        return anchors(shape) ^ bool(second)

    def _indexes(self, scales: Tensor, at: Gains) -> Tensor:
        if self.hyper.kind == "scale":
            return scale_indexes(scales * at.gain_y, logarithmic=False)
        return scale_indexes(scales + at.log_gain_y, logarithmic=True)


class Gains:
    """Gains and inverses at one level, float64 [1, C, 1]; ones where the student has none."""

    def __init__(self, gains: tuple[Any, Any] | None, level: float):
        one = torch.ones(1, 1, 1, dtype=torch.float64)
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


def latents_of(tile: Tile) -> tuple[slice, slice]:
    """Rows and columns of a tile's latents."""
    return slice(CELL * tile.top, CELL * tile.bottom), slice(CELL * tile.left, CELL * tile.right)


def around(
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
