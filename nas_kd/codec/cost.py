"""What a student costs before anything is trained: parameters and multiply-accumulates.

fvcore counts one multiply-add as one. Counted are convolutions and matrix products, which includes
GDN's 1x1 convolution; element-wise work is not. The forward pass that is counted is both sides
at once, with the likelihoods; the entropy coder itself has no multiply-accumulates.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from nas_kd.data.metrics import MULTIPLE
from nas_kd.errors import NasKdError, UsageError

SHAPE = (1, 3, 512, 768)
"""One picture as large as those of the Kodak set."""

HYPER = ("h_s", "entropy_parameters", "context", "context_prediction", "latent_codec")
ENCODER = ("g_a", "linear_a", "h_a", *HYPER)
DECODER = (*HYPER, "g_s", "linear_s")

ELEMENTWISE = """
    abs add add_ avg_pool2d clone div erfc exp fill_ hardtanh index leaky_relu leaky_relu_ lerp log mul mul_ neg
    pixel_shuffle pixel_unshuffle pow relu relu_ remainder round rsqrt rsub sigmoid softmax softplus sqrt sub sub_
    sum tanh where
"""
UNCOUNTED = {f"aten::{name}" for name in ELEMENTWISE.split()} | {
    "prim::PythonOp.LowerBoundFunction"
}
"""Element-wise operations (a softmax among them) and copies; any other that fvcore cannot count is an error."""


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-accumulates of one forward pass.

    encoder_macs and decoder_macs are what one side has to run; both run the hyper-decoder, and
    neither the likelihoods. parts: multiply-accumulates per module; they add up to ``macs``.
    """

    parameters: int
    macs: int
    encoder_macs: int
    decoder_macs: int
    parts: dict[str, int]
    shape: tuple[int, int, int, int]
    tool: str

    @property
    def gmac(self) -> float:
        """Multiply-accumulates in 10^9."""
        return self.macs / 1e9

    @property
    def kmac_per_px(self) -> float:
        """Multiply-accumulates in 10^3 per pixel."""
        return self.macs / self.pixels / 1e3

    @property
    def pixels(self) -> int:
        """Of the pictures that were counted on."""
        batch, _, height, width = self.shape
        return batch * height * width

    def to_json(self) -> dict[str, Any]:
        """All fields and both properties, as JSON can hold them."""
        derived = {"gmac": self.gmac, "kmac_per_px": self.kmac_per_px}
        return asdict(self) | {"shape": list(self.shape)} | derived

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Cost:
        """What ``to_json`` returned, read back; raises KeyError where something is missing."""
        given = {one.name: stored[one.name] for one in fields(cls)}
        return cls(**given | {"shape": tuple(stored["shape"])})


def count(student: nn.Module, shape: tuple[int, int, int, int] = SHAPE) -> Cost:
    """Count by tracing one forward pass, on the device where the student is.

    The student's parameters and modes are as before afterwards.

    Args:
        student: trained or not; a model of CompressAI's families as well.
        shape: of the pictures, [B, 3, H, W].

    Raises:
        UsageError: the student cannot take pictures of this shape.
        NasKdError: an operation that is neither counted nor known to be free, or parts that do
            not add up.
    """
    _check_shape(shape)
    with _evaluating(student):
        total, by_module, unsupported, tool = _trace(student, shape)
    if unknown := sorted(set(unsupported) - UNCOUNTED):
        raise NasKdError(f"{tool} cannot count {unknown[0]}: add it to UNCOUNTED if it is free")
    parts = _parts(student, by_module)
    if sum(parts.values()) != total:
        raise NasKdError(
            f"{tool}: the parts have {sum(parts.values())} MACs and the student {total}: "
            "compute in modules, not beside them"
        )
    return Cost(
        parameters=sum(p.numel() for p in student.parameters()),
        macs=total,
        encoder_macs=sum(parts.get(name, 0) for name in ENCODER),
        decoder_macs=sum(parts.get(name, 0) for name in DECODER),
        parts=parts,
        shape=shape,
        tool=tool,
    )


def _parts(student: nn.Module, by_module: Mapping[str, int]) -> dict[str, int]:
    """MACs by child; what one side alone has of a latent codec of CompressAI's stands under its own name."""
    parts = {name: int(by_module[name]) for name, _ in student.named_children()}
    for path, _ in student.named_modules():
        whole, _, own = path.partition(".")
        own = own.rpartition(".")[2]
        if whole == "latent_codec" and own in ("h_a", "entropy_bottleneck"):
            parts[own] = int(by_module[path])
            parts[whole] -= parts[own]
    return parts


def _trace(student: nn.Module, shape: tuple[int, ...]) -> tuple[int, dict[str, int], set[str], str]:
    """Total, MACs by module, operations without a count, and the tool that says so."""
    with torch.no_grad(), warnings.catch_warnings():
        # torch deprecates torch.jit, with which fvcore traces; the trace is used only once.
        warnings.simplefilter("ignore")
        import fvcore
        from fvcore.nn import FlopCountAnalysis

        x = torch.zeros(shape, device=next(student.parameters()).device)
        analysis = FlopCountAnalysis(student, x)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        total = int(analysis.total())
        tool = f"fvcore {fvcore.__version__}"
        return total, analysis.by_module(), set(analysis.unsupported_ops()), tool


@contextmanager
def _evaluating(student: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_shape(shape: tuple[int, ...]) -> None:
    multiples = all(side > 0 and side % MULTIPLE == 0 for side in shape[2:])
    if len(shape) != 4 or shape[0] < 1 or shape[1] != 3 or not multiples:
        raise UsageError(
            f"shape {tuple(shape)}: must be (B, 3, H, W) with H and W multiples of {MULTIPLE}"
        )
