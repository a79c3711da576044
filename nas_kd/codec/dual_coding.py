"""Latents to strings and back for the entropy model in passes (``dual``).

What decides a symbol's table is z alone, by a linear map in exact arithmetic; means and steps are float32 and decide
what a symbol stands for, on both sides.
"""

from __future__ import annotations

import copy
import zlib
from typing import Any

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
from nas_kd.codec.layers import HyperSynthesis

MARGIN = -(-REACH // CELL)
"""Hyperlatents around a tile in which its passes see latents."""


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
        tiles = tiles_of(h, w, side)
        y_hat = torch.zeros(1, self.M, CELL * h, CELL * w)
        checksum = zlib.crc32(z_symbols.numpy().tobytes())
        for i in range(self.y_parts):
            for tile in tiles:
                place = latents_of(tile)
                symbols, values = self._part(i, tile, z_hat, y_hat, at, code)
                checksum = zlib.crc32(symbols.numpy().tobytes(), checksum)
                inside = y_hat[(..., *place)]
                inside[..., part(inside.shape, self.y_parts, i)] = values.float()
        return y_hat, checksum

    def _part(
        self, i: int, tile: Tile, z_hat: Tensor, y_hat: Tensor, at: Gains, code: Coding
    ) -> tuple[Tensor, Tensor]:
        """Symbols and latents [1, n] of a tile that pass ``i`` codes."""
        mine = part(torch.Size((self.M, *(CELL * n for n in _sides(tile)))), self.y_parts, i)
        means, steps = (t[..., mine].double() for t in self._predicted(i, tile, z_hat, y_hat))
        gain, inverse = (
            t[..., None].expand(1, *mine.shape)[..., mine] for t in (at.gain_y, at.inverse_y)
        )
        gained = means * gain
        indexes = self._indexes(tile, z_hat, at)[..., mine]
        symbols = code(latents_of(tile), mine, indexes, gain / steps, gained / steps)
        return symbols, (symbols.double() * steps + gained) * inverse

    def _predicted(self, i: int, tile: Tile, z_hat: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Means and steps of one tile, float32 [1, M, h, w]."""
        (rows, columns), inner = around(tile, z_hat.shape, MARGIN, CELL)
        seen = Tile(rows.start, rows.stop, columns.start, columns.stop)
        (z_rows, z_columns), z_inner = around(seen, z_hat.shape, HALO, CELL)
        features = self._h_s(z_hat[..., z_rows, z_columns].float())[(..., *z_inner)]
        decoded = y_hat[(..., *latents_of(seen))]
        before = [part(decoded.shape, self.y_parts, j) for j in range(i)]
        decoded = decoded * torch.stack(before).any(0) if before else decoded
        means, steps = self._parameters(i, features, decoded)
        return means[(..., *inner)], steps[(..., *inner)]

    def _indexes(self, tile: Tile, z_hat: Tensor, at: Gains) -> Tensor:
        """The table of each latent of a tile."""
        cells = z_hat[..., tile.top : tile.bottom, tile.left : tile.right]
        logs = self._log_scales(cells).clamp(-8, 8) + at.log_gain_y[..., None]
        return scale_indexes(logs, logarithmic=True)


def _sides(tile: Tile) -> tuple[int, int]:
    return tile.bottom - tile.top, tile.right - tile.left
