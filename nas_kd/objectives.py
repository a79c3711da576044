"""The objectives: what each is, how it is had, and how it is printed. All are minimised.

A measured one (energy, latency) is measured or absent: a trial without its reading has no values.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["quality", "counted", "energy", "latency"]
Part = Literal["both", "encoder", "decoder"]
MEASURED: tuple[Kind, ...] = ("energy", "latency")


@dataclass(frozen=True)
class Objective:
    """One objective.

    unit, head: of axes, and of a table's columns, which are narrow; metric: the dashboard's name. scale: from the
    value that is stored to the one that is printed. how: where the figure comes from.
    """

    kind: Kind
    unit: str
    head: str
    metric: str
    how: str
    scale: float = 1.0
    part: Part = "both"


_RD_COST = (
    "R + lambda 255^2 D in bits per pixel, estimated rates, D of 8-bit pictures scaled to [0, 1]; the mean over levels "
    "and pictures."
)
_BD_RATE = (
    "BD-rate against {anchor}: Akima interpolation of log rate over PSNR, on the mean curves over the "
    "pictures, integrated over one PSNR interval for the whole study; rates are estimated from "
    "likelihoods. The bars are half the 95 % bootstrap interval of the mean of the pictures' own BD-rates, each "
    "over the middle half of the teacher's range on it: how far another choice of such pictures might move it. "
    "All trials are judged by the same pictures, so differences between them are less uncertain than the bars."
)
_SIMILAR = (
    "The same with MS-SSIM, as -10 log10(1 - MS-SSIM) of the mean over the pictures, in the place of PSNR, over the "
    "middle half of the teacher's range of it."
)
_COUNTED = (
    "Multiply-accumulates of one forward pass, {part}, on one 768x512 picture, counted by "
    "fvcore (one multiply-add is one); exact, no uncertainty. Encoder and decoder both run the hyper-decoder and the "
    "entropy parameters, which the pass runs once: their costs add up to more than the whole."
)
_ENERGY = (
    "Energy of one forward pass, {part} without entropy coding, on one 768x512 picture, by a "
    "hardware counter, on a GPU of the replay of a CUDA graph; the bars are standard uncertainties."
)
_LATENCY = (
    "Time of one forward pass, {part} without entropy coding, on one 768x512 picture: the median of single passes, "
    "launches included; the bars are standard uncertainties."
)
_PARTS: dict[Part, str] = {
    "both": "encoder and decoder",
    "encoder": "the encoder alone",
    "decoder": "the decoder alone",
}


def _energy(part: Part, head: str, unit: str) -> Objective:
    what = "energy" if part == "both" else f"{part}'s energy"
    how = _ENERGY.replace("{part}", _PARTS[part])
    return Objective("energy", unit, head, f"{what} per 768x512 frame (mJ)", how, part=part)


def _latency(part: Part, head: str, unit: str) -> Objective:
    what = "latency" if part == "both" else f"{part}'s latency"
    how = _LATENCY.replace("{part}", _PARTS[part])
    return Objective("latency", unit, head, f"{what} per 768x512 frame (ms)", how, part=part)


def _macs(part: Part, head: str, unit: str, metric: str) -> Objective:
    how = _COUNTED.replace("{part}", _PARTS[part])
    return Objective("counted", unit, head, metric, how, 1e-9, part)


SIMILAR = "bd_rate:ms-ssim"
"""The BD-rate by MS-SSIM."""
BD_RATES = ("bd_rate", SIMILAR)

TABLE: dict[str, Objective] = {
    "bd_rate": Objective("quality", "BD-rate %", "BD-rate\n%", "BD-rate (%)", _BD_RATE),
    "flops": _macs("both", "GMAC\n768x512", "GMAC (768x512)", "MACs per 768x512 frame"),
    "energy": _energy("both", "mJ per\nframe", "mJ per frame"),
    "rd_cost": Objective(
        "quality", "R-D cost bpp", "R-D cost\nbpp", "R + lambda 255^2 D (bits per pixel)", _RD_COST
    ),
    "energy:decoder": _energy("decoder", "decoder\nmJ", "decoder mJ per frame"),
    "energy:encoder": _energy("encoder", "encoder\nmJ", "encoder mJ per frame"),
    "latency": _latency("both", "ms per\nframe", "ms per frame"),
    "latency:decoder": _latency("decoder", "decoder\nms", "decoder ms per frame"),
    "params": Objective(
        "counted",
        "parameters M",
        "params\nM",
        "parameters",
        "Parameters of encoder and decoder together; exact, no uncertainty.",
        1e-6,
    ),
    "flops:decoder": _macs(
        "decoder", "decoder\nGMAC", "decoder GMAC (768x512)", "decoder's MACs per 768x512 frame"
    ),
    SIMILAR: Objective(
        "quality",
        "BD-rate % by MS-SSIM",
        "MS-SSIM\nBD-rate %",
        "BD-rate by MS-SSIM (%)",
        _SIMILAR,
    ),
}


def of_kind(names: tuple[str, ...], *kinds: Kind) -> list[str]:
    """Those of the objectives that are of one of these kinds."""
    return [name for name in names if TABLE[name].kind in kinds]
