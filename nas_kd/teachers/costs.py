"""What teachers cost and how wide their latents are, by name, folder or file; the zoo's weights need not be here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from nas_kd.codec.checkpoint import load_student
from nas_kd.codec.cost import count
from nas_kd.teachers.families import FixedRate, zoo_shape
from nas_kd.teachers.overheard import latent_widths
from nas_kd.teachers.served import folder_of, is_compressai, zoo_qualities
from nas_kd.teachers.zoo import family_members, load_member

SHAPE = (1, 3, 64, 64)
"""Of the picture that is traced: MACs per pixel are those of larger ones."""


class TeacherCost(NamedTuple):
    """Models of a teacher that cost the same.

    encoder, decoder: 10^3 MACs per pixel. M, N: channels of y and z. levels: that they serve together. kept: how
    many latents of a picture they have: one for each level, but of a variable-rate codec one for all.
    """

    encoder: float
    decoder: float
    M: int
    N: int
    levels: int
    kept: int


def teacher_costs(spec: str) -> list[TeacherCost]:
    """Of a teacher's models, those that cost the same together; raises UsageError where there is no such teacher."""
    if asked := zoo_qualities(spec):
        name, qualities = asked
        shapes = Counter(zoo_shape(name, quality) for quality in qualities)
        of_shape = {zoo_shape(name, quality): quality for quality in qualities}
        return [_of(FixedRate(name, of_shape[shape]).model, n, n) for shape, n in shapes.items()]
    if not is_compressai(spec):
        student = load_student(folder_of(spec))
        return [_of(student, student.levels, 1, (student.arch.M, student.arch.hyper))]
    path = Path(spec)
    members = family_members(path) if path.is_dir() else [load_member(path)]
    return [_of(member.model, 1, 1) for member in members]


def _of(model: Any, levels: int, kept: int, widths: tuple[int, int] | None = None) -> TeacherCost:
    cost = count(model, SHAPE)
    per_px = SHAPE[2] * SHAPE[3] * 1e3
    M, N = widths or latent_widths(model.eval())
    return TeacherCost(cost.encoder_macs / per_px, cost.decoder_macs / per_px, M, N, levels, kept)
