"""What an arch costs, in closed form: multiply-accumulates and parameters, without building the student.

The same integers that cost.py finds by tracing (a test compares them on every space), in a tenth of a millisecond: a
sampler asks for thousands of archs. A layer's share is written down where layers.py makes the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from nas_kd.codec.arch import HEAD, PASSES, STAGES, Arch, Transform, squeezed

FRAME_PX = (512, 768)
"""Height and width of the picture that is counted, as in cost.py."""

LEVELS = 6
WINDOW = 8
BOTTLENECK_MACS, BOTTLENECK_PARAMETERS = 66, 61
"""Of CompressAI's EntropyBottleneck per channel (and position): five small matrices, at both ends of a bin."""
SHUFFLE = {"conv": 1, "unshuffle2": 2, "unshuffle4": 4}


@dataclass(frozen=True)
class Counted:
    """Multiply-accumulates and parameters."""

    macs: int = 0
    parameters: int = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.macs + other.macs, self.parameters + other.parameters)

    def __mul__(self, n: int) -> Counted:
        return Counted(self.macs * n, self.parameters * n)


@dataclass(frozen=True)
class ArchCost:
    """As in cost.Cost: ``encoder`` and ``decoder`` are what one side runs, ``total`` counts the shared part once."""

    total: Counted
    encoder: Counted
    decoder: Counted


def arch_cost(arch: Arch, levels: int = LEVELS) -> ArchCost:
    """MACs on a picture of 512x768, and parameters, of the student of an arch.

    Args:
        arch: canonical or not.
        levels: rate points of the student; they add gains to the parameters.
    """
    arch, at16 = arch.canonical(), _positions(16)
    linear = Counted(arch.M * 768 * at16, arch.M * 768)
    shortcut_a = linear + Counted(0, arch.M) if arch.shortcut else Counted()
    shortcut_s = linear + Counted(0, 3) if arch.shortcut else Counted()
    gained = levels > 1 or arch.trunk or arch.shortcut
    gains = Counted(0, 2 * levels * (arch.M + arch.hyper) if gained else 0)
    bottleneck = Counted(
        BOTTLENECK_MACS * arch.hyper * _positions(64), BOTTLENECK_PARAMETERS * arch.hyper
    )
    hyper = _hyper_decoder(arch)
    encoder = _analysis(arch.encoder, arch.M) + shortcut_a + _hyper_encoder(arch) + hyper
    decoder = _synthesis(arch.decoder, arch.M) + shortcut_s + hyper
    once = Counted(hyper.macs, hyper.parameters)
    total = encoder + decoder + bottleneck + gains
    both = Counted(total.macs - once.macs, total.parameters - once.parameters)
    # Both sides hold the tables and gains, and neither runs the likelihoods.
    held = Counted(0, bottleneck.parameters + gains.parameters)
    return ArchCost(both, encoder + held, decoder + held)


def _positions(stride: int) -> int:
    height, width = FRAME_PX
    return (height // stride) * (width // stride)


def _conv(c_in: int, c_out: int, kernel: int, positions: int, groups: int = 1) -> Counted:
    weights = c_in // groups * c_out * kernel**2
    return Counted(weights * positions, weights + c_out)


def _deconv(c_in: int, c_out: int, kernel: int, positions_in: int) -> Counted:
    return _conv(c_in, c_out, kernel, positions_in)


def _analysis(side: Transform, M: int) -> Counted:
    if side.trunk:
        return _trunk(side, M)
    shuffle, first = SHUFFLE[side.stem], side.first_stage
    C, found = 3 * shuffle**2, Counted()
    if shuffle > 1:
        found += _conv(C, side.widths[first], 3, _positions(shuffle))
        C = side.widths[first]
    for i in range(first, STAGES):
        if i > first or shuffle == 1:
            found += _conv(C, side.widths[i], side.kernel, _positions(2 ** (i + 1)))
            C = side.widths[i]
        found += _stage(side, i)
    return found + _conv(C, M, side.kernel, _positions(16))


def _synthesis(side: Transform, M: int) -> Counted:
    if side.trunk:
        return _trunk(side, M, decoder=True)
    shuffle, C, found = SHUFFLE[side.stem], M, Counted()
    for i in reversed(range(side.first_stage, STAGES)):
        found += _deconv(C, side.widths[i], side.kernel, _positions(2 ** (i + 2)))
        C = side.widths[i]
        found += _stage(side, i)
    if shuffle == 1:
        return found + _deconv(C, 3, side.kernel, _positions(2))
    return found + _conv(C, 3 * shuffle**2, 3, _positions(shuffle))


def _trunk(side: Transform, M: int, decoder: bool = False) -> Counted:
    """Projections of patches that do not overlap, and blocks; a decoder has the same with the biases of its outputs."""
    places = [i for i in range(side.first_stage, len(side.widths)) if i != 2 or not side.renders]
    widths = [3, *(side.widths[i] for i in places), M]
    strides = [2 ** (side.first_stage + 1), *([4 if side.renders else 2] * len(places))]
    strides[-1] = 1 if side.own_width else 2
    position, found = 1, Counted()
    for c_in, c_out, stride in zip(widths, widths[1:], strides, strict=False):
        position *= stride
        weights = c_in * c_out * stride**2
        found += Counted(weights * _positions(position), weights + (c_in if decoder else c_out))
    for i in places:
        found += _stage(side, i)
    if side.own_width:
        return found
    return found + _block(side, M, _positions(16)) * side.depths[STAGES]


def _stage(side: Transform, i: int) -> Counted:
    C, n = side.widths[i], _positions(2 ** (i + 1))
    found = Counted()
    if side.renders and i < STAGES:
        heads = _conv(side.widths[STAGES], C, 1, _positions(16)) * 2
        return (heads + _conv(C, 2 * C, 1, n) + _conv(2 * C, C, 1, n)) * side.depths[i]
    if side.activation == "gdn" and not side.trunk:
        found += Counted(C * C * n, C * C + C)
    found += _block(side, C, n) * side.depths[i]
    if side.attention[i] and side.trunk:
        return found + _conv(C, squeezed(C), 1, n) + _conv(squeezed(C), C, 1, n)
    if side.attention[i]:
        unit = _conv(C, C // 2, 1, n) + _conv(C // 2, C // 2, 3, n) + _conv(C // 2, C, 1, n)
        found += unit * 6 + _conv(C, C, 1, n)
    return found


def _block(side: Transform, C: int, n: int) -> Counted:
    if side.block == "residual":
        return _conv(C, C, 3, n) * 2
    mlp = _conv(C, 2 * C, 1, n) + _conv(2 * C, C, 1, n)
    if side.block == "depthwise":
        return _conv(C, C, side.kernel, n, groups=C) + mlp
    mixing = _conv(C, C, side.kernel, n, groups=C) + _conv(C, C, 1, n) * 2
    if side.block == "gated":
        return mixing + mlp + _conv(C, 2 * C, 1, n)
    if side.block == "summed":
        return mixing + _conv(C, 4 * C, 1, n) + _conv(C, C, 1, n)
    scores = Counted(2 * C * WINDOW**2 * n, C // HEAD * (2 * WINDOW - 1) ** 2)
    return _conv(C, C, 1, n) * 4 + scores + mlp


def _hyper_encoder(arch: Arch) -> Counted:
    H = arch.hyper
    first = _conv(arch.M, H, 3, _positions(16))
    return first + _conv(H, H, 5, _positions(32)) + _conv(H, H, 5, _positions(64))


def _hyper_decoder(arch: Arch) -> Counted:
    """h_s, the entropy parameters and, with a checkerboard, the context."""
    H, M, n = arch.hyper, arch.M, _positions(16)
    found = _deconv(H, H, 5, _positions(64)) + _deconv(H, H, 5, _positions(32))
    if arch.entropy == "scale":
        return found + _conv(H, M, 3, n)
    if arch.entropy == "mean-scale":
        return found + _conv(H, M, 3, n) * 2
    if arch.entropy in PASSES:
        return found + _dual(arch)
    heads = _conv(H, 2 * H, 1, n) + _conv(2 * H, M, 1, n) * 2
    # Run twice, once for each half of the board.
    return found + Counted(2 * heads.macs, heads.parameters) + _conv(M, H, 5, n)


def _dual(arch: Arch) -> Counted:
    """The scales' map, and the passes."""
    H, M, n = arch.hyper, arch.M, _positions(16)
    C, later = 2 * H, PASSES[arch.entropy] - 1
    scales = Counted(16 * H * M * _positions(64), 16 * H * M + M)
    block = _conv(C, C, 5, n, groups=C) + _conv(C, 2 * C, 1, n) + _conv(2 * C, C, 1, n)
    each = _conv(H, C, 1, n) + block + _conv(C, M, 1, n) * 2
    return scales + each * (later + 1) + _conv(M, C, 1, n) * later
