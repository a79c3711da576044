"""Arch, one student's architecture: both sides, the latents, the entropy model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from nas_kd.errors import SpaceError
from nas_kd.toml_file import read_table

Choice = int | str | bool
Stem = Literal[
    "conv", "unshuffle2", "unshuffle4", "trunk2", "trunk4", "trunk8", "trunk16", "trunk4-render"
]
Block = Literal["residual", "depthwise", "gated", "window", "summed"]
Activation = Literal["gdn", "leaky_relu", "relu6"]
Entropy = Literal["scale", "mean-scale", "checkerboard", "dual", "quad"]

PASSES = {"dual": 2, "quad": 4}
"""Passes over the latents of an entropy model that predicts quantisation steps (``dual``)."""

STAGES = 3
"""Stages of a transform: stage i works at 1 / 2^(i+1) of the picture's height and width."""

TRUNK_STAGES = 4
"""A trunk may have blocks at 1/16 too, of a width of their own or on as many channels as there are latents."""

FIRST_STAGE = {"conv": 0, "unshuffle2": 0, "unshuffle4": 1} | {
    f"trunk{2 ** (i + 1)}": i for i in range(TRUNK_STAGES)
}
FIRST_STAGE |= {"trunk4-render": 1}
RENDER = "trunk4-render"
"""A decoder whose stage at 1/16 modulates a pointwise renderer at 1/4, without a stage at 1/8 between."""

HEAD = 16
"""Channels of one attention head in a window block: wider ones have more heads, so that slices are whole heads."""

WORDS: dict[str, tuple[Choice, ...]] = {
    "stem": get_args(Stem),
    "block": get_args(Block),
    "activation": get_args(Activation),
    "entropy": get_args(Entropy),
    "kernel": (3, 5),
    "attention": (False, True),
    "shortcut": (False, True),
}
RANGES = {"widths": (1, 1024), "depths": (0, 8), "M": (1, 768), "hyper": (1, 1024)}
PER_STAGE = ("widths", "depths", "attention")
KERNELLED = ("depthwise", "gated", "summed")
"""Blocks whose kernel is the transform's; the others have their own."""
SQUEEZE = 4
"""Channels of a trunk's channel attention for each one of what it is made of (Hu et al. take 16)."""
OF_TRUNKS = {"block": ("gated", "summed"), "activation": ("relu6",)}
"""Words that only a trunk may have."""


def squeezed(C: int) -> int:
    """Channels inside a trunk's channel attention."""
    return -(-C // SQUEEZE)


@dataclass(frozen=True)
class Transform:
    """One side of a student, encoder (g_a) or decoder (g_s); entries of tuples are per stage.

    ``unshuffle4`` and ``trunk4`` go to 1/4 resolution at once, so that stage 0 does not exist. A trunk changes
    resolution by linear projections alone (``layers``); its blocks stand at 1/2 to 1/16, hence four depths. With a
    fourth width blocks at 1/16 have that many channels, and a projection lies between them and the latents;
    without one they work on the latents themselves. ``trunk16`` goes to 1/16 at once and wants that width.
    """

    stem: Stem = "conv"
    widths: tuple[int, ...] = (32, 32, 32)
    depths: tuple[int, ...] = (0, 0, 0)
    attention: tuple[bool, ...] = (False, False, False)
    block: Block = "residual"
    activation: Activation = "gdn"
    kernel: int = 5

    @property
    def first_stage(self) -> int:
        """Index of the highest-resolution stage that exists."""
        return FIRST_STAGE[self.stem]

    @property
    def trunk(self) -> bool:
        """Whether resolution changes by linear projections that start as principal components."""
        return self.stem.startswith("trunk")

    @property
    def renders(self) -> bool:
        """Whether 1/4 follows 1/16 at once and is modulated by it (``layers.Renderer``)."""
        return self.stem == RENDER

    @property
    def own_width(self) -> bool:
        """Whether there is a stage at 1/16, as wide as it says, between the others and the latents."""
        return len(self.widths) == TRUNK_STAGES

    def canonical(self) -> Transform:
        """The same network with the entries that have no effect set to one fixed value."""
        off = self.first_stage
        kept = {
            k: (type(getattr(self, k)[-1])(0),) * off + getattr(self, k)[off:] for k in PER_STAGE
        }
        kept["block"] = self.block if any(kept["depths"]) else "residual"
        if self.trunk:
            # Without blocks relu6 says nothing, and stays: shared weights are named by it.
            kept["activation"] = "relu6" if self.activation == "relu6" else "leaky_relu"
            kept["kernel"] = self.kernel if kept["block"] in KERNELLED else 3
            kept["depths"] = (*kept["depths"], 0)[:TRUNK_STAGES]
            kept["attention"] = (*kept["attention"], False)[: len(self.widths)]
        if self.renders:
            w, d, a = kept["widths"], kept["depths"], kept["attention"]
            kept |= {"widths": (0, w[1], 0, w[3]), "depths": (0, d[1], 0, d[3])}
            kept["attention"] = (False, False, False, a[3])
        if all(getattr(self, key) == value for key, value in kept.items()):
            return self  # as most are: a sampler looks at thousands of archs
        return replace(self, **kept)

    def __str__(self) -> str:
        def stage(i: int) -> str:
            depth = f"+{self.depths[i]}{self.block[0]}" if self.depths[i] else ""
            return f"{self.widths[i]}{depth}{'a' if self.attention[i] else ''}"

        places = [i for i in range(self.first_stage, len(self.widths)) if self.widths[i]]
        if not self.trunk:
            return f"{self.stem} {'-'.join(map(stage, places))} {self.activation} k{self.kernel}"
        widths = [str(self.widths[i]) for i in places]
        widths += ["M"] if self.depths[STAGES] and not self.own_width else []
        places += [STAGES] if self.depths[STAGES] and not self.own_width else []
        depths = [f"+{self.depths[i]}" if self.depths[i] else "" for i in places]
        gates = ["a" if (*self.attention, False)[i] else "" for i in places]
        stages = "-".join("".join(one) for one in zip(widths, depths, gates, strict=False))
        relu6 = " relu6" if self.activation == "relu6" else ""
        return f"{self.stem} {stages} {self.block[0]}{self.kernel}{relu6}"


@dataclass(frozen=True)
class Arch:
    """One student's architecture.

    M: latent channels. hyper: width of h_a and h_s. shortcut: a linear transform beside the networks, as students
    of nas-kd 0.1 had it; they are still read, and no search space has it any more.
    """

    encoder: Transform
    decoder: Transform
    M: int = 192
    hyper: int = 32
    entropy: Entropy = "mean-scale"
    shortcut: bool = False

    def canonical(self) -> Arch:
        """The same network with the entries that have no effect set to one fixed value."""
        encoder, decoder = self.encoder.canonical(), self.decoder.canonical()
        if encoder is self.encoder and decoder is self.decoder:
            return self
        return replace(self, encoder=encoder, decoder=decoder)

    @property
    def trunk(self) -> bool:
        """Whether both sides are trunks, so that the untrained student is a linear transform codec."""
        return self.encoder.trunk and self.decoder.trunk

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits; equal for equal networks, on every machine."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """The canonical form, as JSON can hold it."""
        return json.loads(json.dumps(asdict(self.canonical())))

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str = "arch") -> Arch:
        """The arch a dictionary describes; raises SpaceError with ``where`` and the key."""
        return _build(data, where)

    def __str__(self) -> str:
        tail = f"{self.entropy}{' +linear' if self.shortcut else ''}"
        return f"enc [{self.encoder}] dec [{self.decoder}] M{self.M} h{self.hyper} {tail}"


def prim(N: int, M: int = 192) -> Arch:
    """PRIM's student, CompressAI's ScaleHyperprior(N, M) (arXiv 2509.10366, section 3)."""
    side = Transform(widths=(N, N, N))
    return Arch(encoder=side, decoder=side, M=M, hyper=N, entropy="scale")


def load_arch(path: Path) -> Arch:
    """Read an arch from a TOML file (its ``[arch]`` table) or JSON file (as `export` writes it)."""
    data = read_table(path, SpaceError)
    if not isinstance(data.get("arch"), dict):
        raise SpaceError(f"{path}: key 'arch' is missing; it holds a table of the arch's entries")
    return Arch.from_json(data["arch"], where=f"{path}: arch")


# --- checking one entry -----------------------------------------------------------------------


def _check(where: str, key: str, value: Any) -> Choice:
    if key in WORDS:
        if not any(value == word and type(value) is type(word) for word in WORDS[key]):
            allowed = ", ".join(json.dumps(word) for word in WORDS[key])
            raise SpaceError(
                f"{where}.{key} = {json.dumps(value, default=str)}: must be one of {allowed}"
            )
        return value
    low, high = RANGES[key]
    if type(value) is not int or not low <= value <= high:
        raise SpaceError(
            f"{where}.{key} = {json.dumps(value, default=str)}: "
            f"must be a whole number from {low} to {high}"
        )
    return value


def check_keys(
    where: str, data: Any, expected: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    """Raise SpaceError where a table has a key too many, or lacks one that is not optional."""
    if not isinstance(data, dict):
        raise SpaceError(f"{where} = {json.dumps(data, default=str)}: must be a table")
    for key in data:
        if key not in expected:
            raise SpaceError(f"{where}.{key}: no such key; the keys are {', '.join(expected)}")
    for key in expected:
        if key not in data and key not in optional:
            raise SpaceError(f"{where}.{key} is missing; every key of {where} must be given")


PLACES = {STAGES: "1/2, 1/4 and 1/8", TRUNK_STAGES: "1/2, 1/4, 1/8 and 1/16"}


def _lengths(key: str, data: dict[str, Any]) -> tuple[int, ...]:
    """How many entries a list may have: a width at 1/16 is left to a trunk, and attention is where widths are."""
    if not str(data["stem"]).startswith("trunk"):
        return (STAGES,)
    if key == "depths" or (key == "widths" and data["stem"] in ("trunk16", RENDER)):
        return (TRUNK_STAGES,)
    own_width = isinstance(data["widths"], list | tuple) and len(data["widths"]) == TRUNK_STAGES
    return (STAGES, TRUNK_STAGES) if key == "widths" or own_width else (STAGES,)


def _stages(where: str, key: str, values: Any, data: dict[str, Any]) -> list[Any]:
    lengths = _lengths(key, data)
    if not isinstance(values, (list, tuple)) or len(values) not in lengths:
        wanted = ", or ".join(f"of {n} entries, for {PLACES[n]} resolution" for n in lengths)
        raise SpaceError(
            f"{where}.{key} = {json.dumps(values, default=str)}: must be a list {wanted}"
        )
    return list(values)


WITHOUT_EFFECT = ("attention", "activation")
"""Keys that a trunk need not give."""
TRANSFORM_KEYS = tuple(Transform.__dataclass_fields__)
ARCH_KEYS = tuple(Arch.__dataclass_fields__)


def _transform(data: Any, where: str) -> Transform:
    stem = data.get("stem") if isinstance(data, dict) else None
    trunk = str(stem).startswith("trunk")
    check_keys(where, data, TRANSFORM_KEYS, optional=WITHOUT_EFFECT if trunk else ())
    entries: dict[str, Any] = {}
    for key, value in data.items():
        if key in PER_STAGE:
            values = _stages(where, key, value, data)
            first, between = FIRST_STAGE.get(data["stem"], 0), 2 if data["stem"] == RENDER else None
            entries[key] = tuple(
                v if i < first or i == between else _check(where, key, v)
                for i, v in enumerate(values)
            )
        else:
            entries[key] = _check(where, key, value)
    if data["stem"] == RENDER and where.endswith("encoder"):
        raise SpaceError(f"{where}.stem = {RENDER}: is a form of decoders; take another stem")
    side = Transform(**entries).canonical()
    _check_trunk(side, where)
    for width, on in zip(side.widths, side.attention, strict=True):
        if on and width % 2 and not side.trunk:
            raise SpaceError(f"{where}.widths = {width}: must be even where attention is on")
    for width, depth in zip(side.widths, side.depths, strict=False):
        if side.block == "window" and depth and width % HEAD:
            raise SpaceError(
                f"{where}.widths = {width}: must be a multiple of {HEAD} where there are window blocks"
            )
    return side


def _check_trunk(side: Transform, where: str) -> None:
    if not side.trunk:
        for key, words in OF_TRUNKS.items():
            if getattr(side, key) in words:
                raise SpaceError(
                    f"{where}.{key} = {getattr(side, key)}: stands in trunks only (stem trunk2, ...)"
                )
        return
    if side.block == "window" and side.depths[3]:
        raise SpaceError(
            f"{where}.depths = {list(side.depths)}: windows of 8x8 do not fit 1/16 resolution; end in 0"
        )


def _build(data: Any, where: str) -> Arch:
    check_keys(where, data, ARCH_KEYS, optional=("shortcut",))
    sides: dict[str, Any] = {
        side: _transform(data[side], f"{where}.{side}") for side in ("encoder", "decoder")
    }
    rest: dict[str, Any] = {k: _check(where, k, v) for k, v in data.items() if k not in sides}
    if len({side.trunk for side in sides.values()}) > 1:
        raise SpaceError(
            f"{where}: stems {sides['encoder'].stem} and {sides['decoder'].stem}: both sides or none"
        )
    return Arch(**sides, **rest).canonical()
