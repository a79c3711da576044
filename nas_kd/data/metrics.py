"""What compares two pictures, and the padding under which codecs see them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MULTIPLE = 64
"""Height and width of what the networks see are multiples of this."""


def padded(x: Tensor) -> Tensor:
    """[1, 3, H, W] grown at the right and the bottom to multiples of 64, edges repeated."""
    height, width = x.shape[-2:]
    grown = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    return torch.nn.functional.pad(x, grown, mode="replicate")


def psnr_db(a: NDArray[Any], b: NDArray[Any]) -> float:
    """PSNR of two uint8 pictures; infinite for equal ones."""
    mse = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))
