"""Symbols to bytes and back by CompressAI's rANS coder, made safe for files of any origin.

CompressAI's decoder checks no bounds: each step may read one 32-bit word past the string's end. Its own escape
codes make the number of steps depend on the data, so here they are switched off: every table gets one more entry
that no state can reach, which turns the escape symbol into a plain one. A string of n symbols is then read in at
most n + 2 words (two for the state, one per symbol at the worst), and a tail of that many zero bytes keeps every
read in bounds. How far an escaped value lies outside its table stands at the string's end, as varints that are
read backwards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy
from torch import tensor as make_tensor

from nas_kd.codec.compressai_light import EntropyModel, RansDecoder, RansEncoder
from nas_kd.errors import BitstreamError

SYMBOL_MAX = 2**29
"""Largest magnitude of a symbol; both sides refuse more."""

WORD = 4
UNREACHED = 2**16 + 1
"""One past the end of CompressAI's 16-bit cumulative frequencies: no state reaches it."""


class SymbolCoder:
    """The tables of one entropy model, as plain lists."""

    def __init__(self, model: EntropyModel):
        lengths = model._cdf_length.tolist()
        rows = model._quantized_cdf.tolist()
        self.cdfs = [[*row[:n], UNREACHED] for row, n in zip(rows, lengths, strict=True)]
        self.sizes = [n + 1 for n in lengths]
        self.offsets = model._offset.tolist()
        self.zeros = [0] * len(rows)
        # Counted from the offset, values from 0 to below this are in the table.
        self.escapes = make_tensor(lengths).int() - 2
        self.starts = make_tensor(self.offsets).int()

    def encode(self, symbols: Tensor, indexes: Tensor) -> bytes:
        """The string of int32 symbols [n] up to SYMBOL_MAX, each with its table's index [n]."""
        if not len(symbols):
            return b""  # CompressAI's encoder crashes
        escape = self.escapes[indexes]
        value = symbols - self.starts[indexes]
        outside = (value < 0) | (value >= escape)
        over = value[outside] - escape[outside]
        extras = over.mul(2).where(over >= 0, -2 * value[outside] - 1).tolist()
        plain = symbols.where(~outside, escape + self.starts[indexes]).tolist()
        return self._rans(plain, indexes.tolist()) + _varints(extras)[::-1]

    def _rans(self, symbols: list[int], indexes: list[int]) -> bytes:
        if len(symbols) < 3:
            # CompressAI's buffer has a word per symbol; two words of state and half a word per symbol
            # overrun it. What is coded after the last wanted symbol is never read.
            symbols, indexes = symbols * 3, indexes * 3
        return RansEncoder().encode_with_indexes(
            symbols, indexes, *self._up_to(max(indexes), self.offsets)
        )

    def _up_to(self, last: int, offsets: list[int]) -> tuple[list[list[int]], list[int], list[int]]:
        """Tables up to one of them: CompressAI's coder copies all that it is given, the widest the longest."""
        return self.cdfs[: last + 1], self.sizes[: last + 1], offsets[: last + 1]

    def decode(self, string: bytes, indexes: Tensor) -> Tensor:
        """int32 symbols [n] of any string; a wrong one gives wrong symbols or BitstreamError."""
        if not len(indexes):
            return make_tensor([]).int()
        padded = string + bytes(WORD * (len(indexes) + 2))
        # torch's tolist takes twice NumPy's time, and a list of numbers to an array five times a list of bytes.
        tables = indexes.numpy()
        used = self._up_to(int(tables.max()), self.zeros)
        found = RansDecoder().decode_with_indexes(padded, tables.tolist(), *used)
        place = _array(found)
        symbols = from_numpy(np.add(place, self.starts.numpy().take(tables), dtype=np.int32))
        outside = np.flatnonzero(place == self.escapes.numpy().take(tables))
        if len(outside):
            escape, start = (t.numpy()[tables[outside]] for t in (self.escapes, self.starts))
            extra = np.asarray(_read_varints(string, len(outside)), np.int32)
            below, over = -(extra + 1) // 2, extra // 2 + escape
            symbols[outside] = from_numpy(start + np.where(extra % 2 == 1, below, over))
        return symbols


def _array(numbers: list[int]) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Of bytes, if they fit."""
    try:
        return np.frombuffer(bytearray(numbers), np.uint8)
    except ValueError:
        return np.fromiter(numbers, np.int32, len(numbers))


def rounded(values: Tensor) -> Tensor:
    """int32 symbols; raises BitstreamError at a NaN or where a symbol would be out of range."""
    if not bool((values.abs() <= SYMBOL_MAX).all()):
        raise BitstreamError(
            f"a latent is not a number, or over {SYMBOL_MAX} steps: the student is broken"
        )
    return values.round().int()


def _varints(values: list[int]) -> bytes:
    out = bytearray()
    for value in values:
        while value >= 128:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def _read_varints(string: bytes, count: int) -> list[int]:
    """The ``count`` numbers at the string's end, the last byte first."""
    values, at = [], len(string)
    for _ in range(count):
        value = shift = 0
        while True:
            at -= 1
            if at < 0 or shift > 28:
                raise BitstreamError("a coded value is cut short or too large: the file is damaged")
            value |= (string[at] & 127) << shift
            shift += 7
            if string[at] < 128:
                break
        if value > 2 * SYMBOL_MAX:
            raise BitstreamError(f"a coded value lies over {SYMBOL_MAX}: the file is damaged")
        values.append(value)
    return values
