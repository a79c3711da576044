"""Pictures and archives for a server on this machine, and orders of them."""

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webserver import Site

from nas_kd.cli.main import main
from nas_kd.data.download import Patience, Wanted
from nas_kd.data.fetch import Order

FREE = ("--objectives", "bd_rate,flops")
HASTY = Patience(timeout_s=1.0, pause_s=0.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def archive(names: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as opened:
        for name, data in names.items():
            opened.writestr(name, data)
    return file.getvalue()


PICTURES = {
    "one.png": picture(1),
    "two.png": picture(2),
    "set.zip": archive(
        {
            "train/a.png": picture(1),
            "train/b.png": picture(2),
            "__MACOSX/train/._a.png": b"x",
            "../outside.png": picture(3),
            "train/notes.txt": b"x",
        }
    ),
    "no.zip": b"not an archive",
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nas-kd", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def order(folder: Path, site: Site, name: str = "one.png", **more) -> Order:
    file = Wanted(folder / name, (site.at(name),), **more)
    return Order(f"pictures {name}", name, (file,), folder, "licence: none")
