"""Readings kept for later: one small file each, in this user's cache folder.

What an arch costs does not depend on its weights, so a reading serves every study on the same
device, driver, torch, precision, shape and mode. What is known of a device serves for an hour.
"""

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_kd.errors import UsageError
from nas_kd.files import write_text
from nas_kd.measurement.reading import Reading, require_real
from nas_kd.places import user_cache

PROTOCOL = 2
"""Raised when the way of measuring changes so that figures are no longer comparable."""


@dataclass(frozen=True)
class Key:
    """What a reading depends on.

    part: what was run (``encoder``, ``decoder``, ``both``), with ``_graph`` where as a CUDA graph, and what was read
    where it was not energy (``latency both``). numerics: precision of products, benchmark and determinism settings,
    and threads where they matter. levels: rate points of the student; with more than one its latents are scaled.
    """

    arch: str
    part: str
    device: str
    driver: str
    torch: str
    dtype: str
    shape: tuple[int, ...]
    mode: str
    numerics: str = ""
    levels: int = 1
    protocol: int = PROTOCOL

    def to_json(self) -> dict[str, object]:
        """As JSON can hold it."""
        return asdict(self) | {"shape": list(self.shape)}

    @property
    def digest(self) -> str:
        """The name of its file."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """Where readings are kept."""
    return user_cache() / "energy"


class Readings:
    """The readings of this user on this machine.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder or cache_folder()

    def get(self, key: Key) -> Reading | None:
        """The reading of this key, if there is one that can be read."""
        record = read_record(self.folder / f"{key.digest}.json", key.to_json())
        try:
            return None if record is None else Reading.from_json(record["reading"])
        except (KeyError, UsageError):
            return None

    def put(self, key: Key, reading: Reading) -> bool:
        """Keep a measured reading; others are not kept. False where nothing can be written.

        Raises:
            ValueError: the reading comes from a fake meter.
        """
        require_real(reading)
        if reading.state != "measured":
            return False
        path = self.folder / f"{key.digest}.json"
        return write_record(path, key.to_json(), {"reading": reading.to_json()})


def read_record(
    path: Path, key: dict[str, Any], valid_s: float = math.inf
) -> dict[str, Any] | None:
    """What ``write_record`` kept under this key, unless it is older; None where it cannot be read."""
    try:
        record = json.loads(path.read_text())
        if record["key"] == key and time.time() - valid_s <= record["unix_s"] <= time.time() + 1:
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a cache: what cannot be read is measured again
    return None


def write_record(path: Path, key: dict[str, Any], content: dict[str, Any]) -> bool:
    """Keep a record, whole or not at all; False where nothing can be written."""
    record = {"key": key, **content, "unix_s": time.time()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record, indent=1) + "\n")
    except OSError:
        return False
    return True
