import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_kd.codec.compressai_light import EntropyBottleneck, GaussianConditional
from nas_kd.codec.entropy_coding import make_tables
from nas_kd.codec.symbol_coder import SYMBOL_MAX, UNREACHED, SymbolCoder, rounded
from nas_kd.errors import BitstreamError

TABLES = 64


def model() -> GaussianConditional:
    conditional = GaussianConditional(None)
    with torch.no_grad():
        make_tables(EntropyBottleneck(2), conditional, update_quantiles=False)
    return conditional


MODEL = model()
CODER = SymbolCoder(MODEL)


def read(string: bytes, indexes: list[int]) -> tuple[list[int], int]:
    """RANS by the book (Duda; 64-bit state, 32-bit words): places in the tables, and words read."""
    words = [int.from_bytes(string[i : i + 4], "little") for i in range(0, len(string), 4)]
    words += [0] * (len(indexes) + 8)
    state, at, places = words[0] | words[1] << 32, 2, []
    for index in indexes:
        cdf, low = CODER.cdfs[index], state & 0xFFFF
        place = max(i for i, edge in enumerate(cdf) if edge <= low)
        state = (cdf[place + 1] - cdf[place]) * (state >> 16) + low - cdf[place]
        if state < 2**31:
            state, at = state << 32 | words[at], at + 1
        places.append(place)
    return places, at


values = st.one_of(st.integers(-20, 20), st.integers(-SYMBOL_MAX, SYMBOL_MAX))
pairs = st.lists(st.tuples(values, st.integers(0, TABLES - 1)), min_size=1, max_size=60)


@given(pairs)
@settings(max_examples=100, deadline=None)
def test_any_symbols_come_back(coded: list[tuple[int, int]]):
    symbols, indexes = (torch.tensor(column) for column in zip(*coded, strict=True))
    string = CODER.encode(symbols.int(), indexes)
    assert CODER.decode(string, indexes).tolist() == symbols.tolist()


def test_no_symbols_are_no_bytes_and_any_string_holds_none():
    nothing = torch.zeros(0, dtype=torch.int32)
    assert CODER.encode(nothing, nothing) == b""
    assert CODER.decode(b"anything", nothing).tolist() == []


def test_without_escapes_the_string_is_compressais_own():
    scales = torch.full((1, 3, 8, 8), 4.0)
    values = torch.randn(1, 3, 8, 8, generator=torch.manual_seed(0)) * 4
    indexes = MODEL.build_indexes(scales)
    (theirs,) = MODEL.compress(values, indexes)
    assert CODER.encode(values.round().int().flatten(), indexes.long().flatten()) == theirs


hostile = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda n, b: bytes(n) + b, st.integers(0, 40), st.binary(max_size=40)),
    st.builds(lambda n, b: b + b"\xff" * n, st.integers(0, 40), st.binary(max_size=40)),
)


@given(hostile, st.lists(st.integers(0, TABLES - 1), min_size=1, max_size=80))
@settings(max_examples=200, deadline=None)
def test_no_string_is_read_past_its_padding(string: bytes, indexes: list[int]):
    places, words = read(string, indexes)
    assert words <= len(indexes) + 2
    try:
        symbols = CODER.decode(string, torch.tensor(indexes))
    except BitstreamError:
        assert any(CODER.escapes[i] == p for i, p in zip(indexes, places, strict=True))
        return
    plain = [p != int(CODER.escapes[i]) for i, p in zip(indexes, places, strict=True)]
    starts = [CODER.offsets[i] for i in indexes]
    expected = [p + start for p, start in zip(places, starts, strict=True)]
    assert [s for s, ok in zip(symbols.tolist(), plain, strict=True) if ok] == [
        e for e, ok in zip(expected, plain, strict=True) if ok
    ]


def test_the_last_entry_of_every_table_is_out_of_reach():
    for cdf, size in zip(CODER.cdfs, CODER.sizes, strict=True):
        assert len(cdf) == size
        assert cdf[-2:] == [2**16, UNREACHED]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e12])
def test_what_is_no_symbol_is_refused(value: float):
    with pytest.raises(BitstreamError, match="broken"):
        rounded(torch.tensor([0.0, value]))
