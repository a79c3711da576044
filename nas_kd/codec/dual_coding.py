"""Latents to strings and back for the entropy model in passes (``dual``).

What decides a symbol's table is z alone, by a linear map in exact arithmetic; means and steps are float32 and decide
what a symbol stands for, on both sides.
"""

from __future__ import annotations

import copy
import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_kd.codec.dual import REACH, DualParameters, part
from nas_kd.codec.entropy_coding import (
    CELL,
    HALO,
    Coding,
    Gains,
    LatentCoder,
    Models,
    Tile,
    around,
    latents_of,
    tiles_of,
)
from nas_kd.codec.exact_arithmetic import exact_layer, scale_indexes
from nas_kd.codec.hyperprior import HyperSynthesis

MARGIN = -(-REACH // CELL)
"""Hyperlatents around a tile in which its passes see latents."""


Place = tuple[slice, slice]


class _Told(NamedTuple):
    """What z says of a tile.

    place: among the latents. seen: the place of what its passes see. inner: its place in that. features: of all seen,
    [1, hyper, h, w]. tables: of the tile, uint8 [1, M, h, w].
    """

    place: Place
    seen: Place
    inner: Place
    features: Tensor
    tables: Tensor


class DualCoder(LatentCoder):
    """Entropy coding in passes.

    Args:
        networks: h_s and entropy_parameters.
        models: entropy_bottleneck and gaussian_conditional.
        gains: gain_y and gain_z.
    """

    def __init__(
        self,
        networks: tuple[HyperSynthesis, DualParameters],
        models: Models,
        gains: tuple[Any, Any] | None,
    ):
        h_s, parameters = (copy.deepcopy(network).cpu().eval() for network in networks)
        super().__init__(networks[1].scales.out_channels, models, gains)
        self._h_s, self._parameters = h_s, parameters
        self._log_scales = exact_layer(networks[1].scales)
        self._count = len(networks[1].passes)

    @property
    def y_parts(self) -> int:
        """One a pass."""
        return self._count

    @torch.no_grad()
    def _run(
        self, z_symbols: Tensor, at: Gains, side: int | None, code: Coding
    ) -> tuple[Tensor, int]:
        z_hat = self._z_hat(z_symbols, at)
        h, w = z_hat.shape[-2:]
        told = [self._of_z(tile, z_hat, at) for tile in tiles_of(h, w, side)]
        y_hat = torch.zeros(1, self.M, CELL * h, CELL * w)
        checksum = zlib.crc32(z_symbols.numpy().tobytes())
        for i in range(self.y_parts):
            for tile in told:
                symbols = self._pass(i, tile, y_hat, at, code)
                checksum = zlib.crc32(symbols.numpy().tobytes(), checksum)
        return y_hat, checksum

    def _of_z(self, tile: Tile, z_hat: Tensor, at: Gains) -> _Told:
        """What z alone says of a tile."""
        (rows, columns), inner = around(tile, z_hat.shape, MARGIN, CELL)
        seen = Tile(rows.start, rows.stop, columns.start, columns.stop)
        (z_rows, z_columns), z_inner = around(seen, z_hat.shape, HALO, CELL)
        features = self._h_s(z_hat[..., z_rows, z_columns].float())[(..., *z_inner)]
        cells = z_hat[..., tile.top : tile.bottom, tile.left : tile.right]
        logs = self._log_scales(cells).clamp(-8, 8) + at.log_gain_y[..., None]
        tables = scale_indexes(logs, logarithmic=True).to(torch.uint8)
        return _Told(latents_of(tile), latents_of(seen), inner, features, tables)

    def _pass(self, i: int, tile: _Told, y_hat: Tensor, at: Gains, code: Coding) -> Tensor:
        """Symbols [1, n] of what pass ``i`` codes of a tile; their values are put into y_hat."""
        inside = y_hat[(..., *tile.place)]
        mine = part(inside.shape, self.y_parts, i)
        means, steps = (t[..., mine].double() for t in self._predicted(i, tile, y_hat))
        gain, inverse = (
            t[..., None].expand(inside.shape)[..., mine] for t in (at.gain_y, at.inverse_y)
        )
        gained = means * gain
        symbols = code(tile.place, mine, tile.tables[..., mine].int(), gain / steps, gained / steps)
        inside[..., mine] = ((symbols.double() * steps + gained) * inverse).float()
        return symbols

    def _predicted(self, i: int, tile: _Told, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Means and steps of one tile, float32 [1, M, h, w]."""
        decoded = None
        if i:
            around_it = y_hat[(..., *tile.seen)]
            before = [part(around_it.shape, self.y_parts, j) for j in range(i)]
            decoded = around_it * torch.stack(before).any(0)
        means, steps = self._parameters(i, tile.features, decoded)
        return means[(..., *tile.inner)], steps[(..., *tile.inner)]
