"""Pictures that are both trained on and judged by."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from nas_kd.data.images import PHOTOGRAPHS, photograph, pictures_below
from nas_kd.data.picture_sets import folder_of
from nas_kd.places import BUILTIN

logger = logging.getLogger("nas_kd")


def warn_of_overlap(data: str, eval_data: str) -> int:
    """Warn where pictures to judge by are trained on, the same byte for byte; returns how many are."""
    judged = list(_files(eval_data, "eval"))
    sizes = {size for size, _ in judged}
    trained = {_digest(file) for size, file in _files(data, "train") if size in sizes}
    count = sum(_digest(file) in trained for _, file in judged) if trained else 0
    if count:
        logger.warning(
            "%d of %d pictures of --eval-data %s are in --data %s too: figures flatter what was trained on "
            "them; judge by others",
            *(count, len(judged), eval_data, data),
        )
    return count


def _files(spec: str, split: str) -> Iterator[tuple[int, Path | bytes]]:
    """Bytes, and the file or its contents, of every picture."""
    if spec == BUILTIN:
        for name in PHOTOGRAPHS[split]:
            contents = photograph(name)
            yield len(contents), contents
        return
    for path in pictures_below(spec, folder_of(spec)).files:
        yield path.stat().st_size, path


def _digest(file: Path | bytes) -> bytes:
    contents = file if isinstance(file, bytes) else file.read_bytes()
    return hashlib.sha256(contents).digest()
