import torch

from nas_kd.codec.arch import prim
from nas_kd.codec.networks import passes
from nas_kd.codec.student import Student
from nas_kd.measurement.profiling import LiveBytes, memory_bytes


def test_the_peak_is_what_lives_at_once():
    with torch.inference_mode(), LiveBytes() as live:
        a = torch.zeros(1000)
        for _ in range(5):
            b = a + 1  # the one before dies as its name is taken
        del b
        c = a.view(10, 100)
        del a
        d = c + 1
    assert d.sum() == 1000
    assert live.peak == 3 * 4000


def test_memory_counts_weights_and_each_pass():
    codec, picture = Student(prim(8, 16)).eval(), torch.rand(1, 3, 64, 128)
    sizes = memory_bytes(codec, passes(codec, [picture]))
    assert sizes["weights"] == 4 * sum(p.numel() for p in codec.parameters())
    assert sizes["both"] >= max(sizes["encoder"], sizes["decoder"]) > picture.nbytes
