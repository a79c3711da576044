"""Window attention: what it computes, what it costs, and that a narrow one is a slice of a wide one."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from nas_kd.codec.arch import HEAD, Arch, Transform
from nas_kd.codec.blocks import WINDOW, WindowBlock, relative_offsets
from nas_kd.codec.cost import count
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import Student, slice_params
from nas_kd.errors import SpaceError

SIDE = Transform("unshuffle2", (32, 32, 32), (1, 1, 2), block="window", activation="leaky_relu")
ARCH = Arch(SIDE, SIDE, M=48, hyper=16)
PLAIN = replace(SIDE, depths=(0, 0, 0))


def _narrow(width: int) -> Arch:
    side = replace(SIDE, widths=(width,) * 3)
    return Arch(side, side, M=48, hyper=16)


def _random(block: WindowBlock) -> WindowBlock:
    torch.nn.init.normal_(block.position)
    return block.eval().requires_grad_(False)


def _position_by_position(block: WindowBlock, x: torch.Tensor) -> torch.Tensor:
    """The attention of one 8x8 window, a position and a head at a time."""
    q, k, v = block.query(x), block.key(x), block.value(x)
    seen = torch.zeros_like(x)
    for head in range(x.shape[1] // HEAD):
        part = slice(head * HEAD, (head + 1) * HEAD)
        for i in range(WINDOW):
            for j in range(WINDOW):
                dots = torch.einsum("c,chw->hw", q[0, part, i, j], k[0, part]) / HEAD**0.5
                rows = (i - torch.arange(WINDOW))[:, None] + WINDOW - 1
                columns = (j - torch.arange(WINDOW))[None] + WINDOW - 1
                dots = dots + block.position[head, rows * (2 * WINDOW - 1) + columns]
                weights = dots.flatten().softmax(0).reshape(WINDOW, WINDOW)
                seen[0, part, i, j] = (weights * v[0, part]).sum((1, 2))
    x = x + block.out(seen)
    return x + block.project(torch.nn.functional.leaky_relu(block.expand(x)))


def test_a_window_attends_as_written_out_position_by_position():
    torch.manual_seed(0)
    block, x = _random(WindowBlock(2 * HEAD, torch.nn.LeakyReLU())), torch.randn(1, 2 * HEAD, 8, 8)
    assert torch.allclose(block(x), _position_by_position(block, x), atol=1e-5)


def test_fused_attention_computes_the_same():
    """Torch's own, with the position's bias as its mask."""
    torch.manual_seed(0)
    block, x = _random(WindowBlock(HEAD, torch.nn.LeakyReLU())), torch.randn(1, HEAD, 8, 8)
    q, k, v = (f(x).flatten(2).transpose(1, 2) for f in (block.query, block.key, block.value))
    bias = block.position[0, relative_offsets(WINDOW)]
    seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    y = x + block.out(seen.transpose(1, 2).reshape(x.shape))
    expected = y + block.project(torch.nn.functional.leaky_relu(block.expand(y)))
    assert torch.allclose(block(x), expected, atol=1e-5)


def test_windows_do_not_see_each_other():
    torch.manual_seed(0)
    block, x = _random(WindowBlock(HEAD, torch.nn.LeakyReLU())), torch.randn(2, HEAD, 16, 24)
    whole = block(x)
    for i in (0, 8):
        for j in (0, 8, 16):
            alone = block(x[..., i : i + 8, j : j + 8])
            assert torch.allclose(whole[..., i : i + 8, j : j + 8], alone, atol=1e-6)


def test_every_relative_place_has_its_own_number():
    offsets = relative_offsets(3)
    assert offsets.shape == (9, 9)
    assert set(offsets.flatten().tolist()) == set(range(25))
    assert (offsets.diagonal() == 12).all()
    assert offsets[0, 8] == 0  # from the upper left to the lower right: dy = dx = -2


def test_macs_of_window_blocks_equal_those_by_hand():
    """Per position: 4 C^2 for query, key, value and out, 2 * 64 C for the products, 4 C^2 for the bottleneck."""
    C, shape = 32, (1, 3, 64, 128)
    cost = count(Student(ARCH, (0.01,)), shape)
    plain = count(Student(Arch(PLAIN, PLAIN, M=48, hyper=16), (0.01,)), shape)
    positions = [64 * 128 // 4 ** (i + 1) for i in range(3)]
    blocks = sum(n * depth for n, depth in zip(positions, SIDE.depths, strict=True))
    by_hand = blocks * (8 * C**2 + 2 * WINDOW**2 * C)
    assert cost.parts["g_a"] - plain.parts["g_a"] == by_hand
    assert cost.parts["g_s"] - plain.parts["g_s"] == by_hand


def test_torchs_own_counter_sees_twice_as_many_operations():
    student, shape = Student(ARCH, (0.01,)).eval(), (1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(torch.zeros(shape))
    assert counter.get_total_flops() == 2 * count(student, shape).macs


def test_a_narrow_block_is_the_wide_ones_first_heads():
    """A wide block whose other heads and channels say nothing computes what the narrow one does."""
    torch.manual_seed(0)
    wide = _random(WindowBlock(2 * HEAD, torch.nn.LeakyReLU()))
    narrow = WindowBlock(HEAD, torch.nn.LeakyReLU())
    slices = slice_params(dict(wide.named_parameters()), narrow)
    for conv in (wide.out, wide.expand, wide.project):
        conv.weight[:, (2 if conv is wide.project else 1) * HEAD :] = 0
    x = torch.randn(1, HEAD, 8, 16)
    padded = torch.cat([x, torch.zeros_like(x)], 1)
    for conv in (wide.query, wide.key, wide.value):
        conv.weight[:, HEAD:] = 0
    ours = functional_call(narrow, slices, (x,))
    # The wide bottleneck has more hidden channels: cut them off as the slice does.
    wide.project.weight[:, 2 * HEAD :] = 0
    assert torch.allclose(wide(padded)[:, :HEAD], ours, atol=1e-5)


def test_a_narrow_student_runs_on_slices_of_a_wide_one():
    torch.manual_seed(0)
    wide, narrow = Student(ARCH).eval(), Student(_narrow(16)).eval()
    slices = slice_params(dict(wide.named_parameters()), narrow)
    x = torch.rand(1, 3, 64, 64)
    borrowed = functional_call(narrow, slices, (x, 2.0))
    with torch.no_grad():
        for name, p in narrow.named_parameters():
            p.copy_(slices[name])
        assert torch.equal(borrowed["x_hat"], narrow(x, 2.0)["x_hat"])


@pytest.mark.parametrize("width", [8, 24, 40])
def test_widths_are_whole_heads(width: int):
    with pytest.raises(SpaceError, match=f"widths = {width}: must be a multiple of 16"):
        Arch.from_json(_narrow(width).to_json())
    data = _narrow(width).to_json()
    for side in ("encoder", "decoder"):
        data[side]["depths"] = [0, 0, 0]
    assert Arch.from_json(data).encoder.block == "residual"  # no block, no rule


def test_the_window_space_has_window_students_with_real_gradients():
    space = load_space("window")
    arch = space.extreme(True)
    assert (arch.encoder.block, arch.decoder.block) == ("window", "window")
    student = Student(_narrow(16), (0.01, 0.02))
    out = student(torch.rand(2, 3, 64, 64), torch.tensor([1.0, 2.0]))
    out["x_hat"].square().mean().backward()
    for name, p in student.named_parameters():
        if ".blocks." in name:
            assert torch.isfinite(p.grad).all(), name
            # Softmax does not see what is added to a whole row, as the key's bias does.
            assert p.grad.abs().max() > (0 if not name.endswith("key.bias") else -1), name
