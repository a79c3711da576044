"""A trunk student grown deeper: blocks that begin as the identity, so that a long training goes on with more room.

More latents were tried and are left out: of what `mini` misses at its highest level the 64 principal components after
its 256 hold a fifth, and its decoder, trained to other latents, made worse pictures of them than without.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.student import Student
from nas_kd.errors import SpaceError


@torch.no_grad()
def grown(narrow: Student, arch: Arch) -> Student:
    """A student of ``arch`` that computes what ``narrow`` does.

    Args:
        narrow: trained, a trunk.
        arch: the same but for depths, which are at least as great.

    Raises:
        SpaceError: anything else differs.
    """
    old, new = narrow.arch, arch.canonical()
    encoder, decoder = _deeper(old.encoder, new.encoder), _deeper(old.decoder, new.decoder)
    if not old.trunk or replace(old, encoder=encoder, decoder=decoder) != new:
        raise SpaceError(f"arch {old} cannot grow into {new}: of a trunk the depths may be greater")
    deep = Student(new, narrow.lmbdas)
    for name, p in narrow.named_parameters():
        deep.get_parameter(name).copy_(p)
    return deep.train(narrow.training)


def _deeper(old: Transform, new: Transform) -> Transform:
    """The old side with the new depths, if none is less."""
    no_less = all(a <= b for a, b in zip(old.depths, new.depths, strict=True))
    return replace(old, depths=new.depths) if no_less else old
