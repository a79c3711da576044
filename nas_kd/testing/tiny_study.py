"""A study whose trials take seconds: a study file and one picture."""

from pathlib import Path

import numpy as np
from PIL import Image

STUDY = """\
space = "demo"
objectives = ["bd_rate", "flops"]
steps = 120
batch = 1
crops = 16
crop_size = 64
data = "pictures"
eval_data = "pictures"
checkpoint_s = 0.2
early_stopping = {early_stopping}
"""


def write_tiny_study(folder: Path, name: str, early_stopping: bool = False) -> None:
    """``NAME.toml`` and ``pictures`` in a folder."""
    rows, columns = np.mgrid[0:96, 0:128]
    red = 128 + 90 * np.sin(rows / 9.0) * np.cos(columns / 13.0)
    (folder / "pictures").mkdir()
    picture = np.stack([red, red[::-1], 255 - red], axis=2).astype(np.uint8)
    Image.fromarray(picture).save(folder / "pictures" / "waves.png")
    text = STUDY.format(early_stopping=str(early_stopping).lower())
    (folder / f"{name}.toml").write_text(text)
