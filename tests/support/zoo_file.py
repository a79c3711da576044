"""Untrained models of CompressAI's families, and files of them as its zoo serves them."""

import hashlib
from pathlib import Path

import torch

from nas_kd.codec.compressai_light import CompressionModel


def untrained(name: str, *widths: int) -> CompressionModel:
    from compressai.zoo.image import model_architectures

    torch.manual_seed(len(name) + sum(widths))
    return model_architectures[name](*widths)


def serve(folder: Path, stem: str, model: CompressionModel) -> Path:
    """Write a model as the zoo serves it, its hash in its name."""
    folder.mkdir(exist_ok=True)
    torch.save(model.state_dict(), folder / "new")
    digest = hashlib.sha256((folder / "new").read_bytes()).hexdigest()
    return (folder / "new").rename(folder / f"{stem}-{digest[:8]}.pth.tar")
