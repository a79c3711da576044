"""Latents to strings and back for the entropy model in passes (``dual``).

What decides a symbol's table is z alone, by a linear map in exact arithmetic; means and steps are float32 and decide
what a symbol stands for, on both sides. What a pass codes is kept apart from the rest throughout: its places fall
into as many classes as there are passes, and in each class every so manyth channel is its own.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nas_kd.codec.blocks import DepthwiseBlock
from nas_kd.codec.dual import REACH, WIDEST_STEP, DualParameters, Pass
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
from nas_kd.codec.exact_arithmetic import ExactTables
from nas_kd.codec.hyperprior import HyperSynthesis
from nas_kd.codec.pointwise import convolved, planes, pointwise

MARGIN = -(-REACH // CELL)
"""Hyperlatents around a tile in which its passes see latents."""


Place = tuple[slice, slice]


class _Told(NamedTuple):
    """What z says of a tile.

    place: among the latents. seen: the place of what its passes see. inner: its place in that. features: of all seen,
    [1, hyper, h, w]. tables: of the tile, uint8 [M, h, w].
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
        super().__init__(networks[1].scales.out_channels, models, gains)
        self._h_s = copy.deepcopy(networks[0]).cpu().eval()
        self._passes: list[Any] = [*copy.deepcopy(networks[1].passes).cpu().eval()]
        self._tables = ExactTables(networks[1].scales)

    @property
    def y_parts(self) -> int:
        """One a pass."""
        return len(self._passes)

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
            before = y_hat.clone() if i else None
            for tile in told:
                symbols = self._pass(i, tile, before, y_hat, at, code)
                checksum = zlib.crc32(symbols.numpy().data, checksum)
        return y_hat, checksum

    def _of_z(self, tile: Tile, z_hat: Tensor, at: Gains) -> _Told:
        """What z alone says of a tile."""
        (rows, columns), inner = around(tile, z_hat.shape, MARGIN, CELL)
        seen = Tile(rows.start, rows.stop, columns.start, columns.stop)
        (z_rows, z_columns), z_inner = around(seen, z_hat.shape, HALO, CELL)
        features = self._h_s(z_hat[..., z_rows, z_columns].float())[(..., *z_inner)]
        cells = z_hat[0, :, tile.top : tile.bottom, tile.left : tile.right]
        tables = self._tables(cells, at.log_gain_y.flatten())
        return _Told(latents_of(tile), latents_of(seen), inner, features, tables)

    def _pass(
        self, i: int, tile: _Told, before: Tensor | None, y_hat: Tensor, at: Gains, code: Coding
    ) -> Tensor:
        """Symbols [n] of what pass ``i`` codes of a tile; their values are put into y_hat.

        before: what the passes before this one have decoded, as y_hat.
        """
        decoded = None if before is None else before[(..., *tile.seen)]
        means, steps = _predicted(self._passes[i], i, self.y_parts, tile, decoded)
        gain, inverse = (t[0].float() for t in (at.gain_y, at.inverse_y))
        tables = _own(tile.tables, i, self.y_parts)

        def wanted(y: Tensor) -> Tensor:
            values = _own(y[(0, ..., *tile.place)], i, self.y_parts)
            return ((values - means) * (gain / steps)).flatten()

        symbols = code(wanted, tables.flatten())
        values = steps.mul_(symbols.reshape(steps.shape)).addcmul_(means, gain).mul_(inverse)
        _put(values, y_hat[(0, ..., *tile.place)], i, self.y_parts)
        return symbols


def _predicted(
    network: Pass, i: int, passes: int, tile: _Told, decoded: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Means and steps of what pass ``i`` codes of a tile, float32 [M, n].

    As ``Pass.forward``, which predicts what other passes code, too.
    """
    x = convolved(_map(tile.features), network.features)
    if network.decoded is not None and decoded is not None:
        x.add_(convolved(_map(decoded), network.decoded))
    x = _refined(nn.functional.leaky_relu_(x), network.block)[tile.inner]
    (h, w, C), M = x.shape, network.means.out_channels
    places = torch.empty(2 * h // passes, w // 2, C)
    means, steps = (torch.empty(M, places[..., 0].numel()) for _ in range(2))
    for channels, squares in _classes(i, passes):
        _gather(x.permute(2, 0, 1), squares, places.permute(2, 0, 1))
        for found, head in ((means, network.means), (steps, network.steps)):
            bias = head.bias
            assert bias is not None
            own = pointwise(places, head.weight[channels, :, 0, 0], bias[channels])
            found[channels] = own.flatten(0, 1).T
    return means, steps.clamp_(-WIDEST_STEP, WIDEST_STEP).exp_()


def _map(x: Tensor) -> Tensor:
    """[1, C, h, w] to [h, w, C]."""
    return x[0].permute(1, 2, 0).contiguous()


def _refined(x: Tensor, block: DepthwiseBlock) -> Tensor:
    """What the block makes of a map, which it changes."""
    spatial: Tensor = block.spatial(planes(x))
    wide = nn.functional.leaky_relu_(convolved(_map(spatial), block.expand))
    return x.add_(convolved(wide, block.project))


# --- who codes what ---------------------------------------------------------------------------


class _Square(NamedTuple):
    """Some of a map's places, as steps through its rows and columns, and the rows of a class's map they fill."""

    rows: slice
    columns: slice
    own_rows: slice


def _classes(i: int, passes: int) -> Iterator[tuple[slice, list[_Square]]]:
    """What ``dual.part`` says pass ``i`` codes: by class of places the channels and the places."""
    for k in range(passes):
        yield slice((i - k) % passes, None, passes), _squares(k, passes)


def _squares(k: int, passes: int) -> list[_Square]:
    """Places of class k, in order: a colour of the checkerboard for two passes, a corner of 2x2 for four."""
    if passes == 2:
        return [
            _Square(slice(r, None, 2), slice((k - r) % 2, None, 2), slice(r, None, 2))
            for r in (0, 1)
        ]
    return [_Square(slice(k // 2, None, 2), slice(k % 2, None, 2), slice(None))]


def _gather(x: Tensor, squares: list[_Square], into: Tensor) -> None:
    """The places of a class of [.., h, w] into [.., rows, w / 2]."""
    for square in squares:
        into[..., square.own_rows, :] = x[..., square.rows, square.columns]


def _own(x: Tensor, i: int, passes: int) -> Tensor:
    """What pass ``i`` codes of [M, h, w], [M, n]: channel by channel, row by row."""
    M, h, w = x.shape
    found = torch.empty(M, 2 * h // passes, w // 2, dtype=x.dtype)
    for channels, squares in _classes(i, passes):
        _gather(x[channels], squares, found[channels])
    return found.flatten(1)


def _put(values: Tensor, x: Tensor, i: int, passes: int) -> None:
    """Values [M, n] into their places in [M, h, w]."""
    M, h, w = x.shape
    maps = values.reshape(M, 2 * h // passes, w // 2)
    for channels, squares in _classes(i, passes):
        for square in squares:
            x[channels, square.rows, square.columns] = maps[channels, square.own_rows]
