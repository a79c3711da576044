"""Seeds and generators for one purpose each, the same in every process."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def derived_seed(seed: int, *keys: str | int) -> int:
    """A seed in [0, 2^32) for one purpose: sha256 of seed and keys.

    32 bits, because NumPy's legacy generator, which samplers still use, takes no more.
    """
    text = json.dumps([seed, *keys])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def derived_generator(seed: int, *keys: str | int) -> np.random.Generator:
    """NumPy's generator of a derived seed."""
    import numpy as np

    # PCG64 by name: default_rng may become another generator in a later NumPy.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(derived_seed(seed, *keys))))
