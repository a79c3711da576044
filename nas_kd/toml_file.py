"""Text that people wrote: TOML and JSON files, read in one way, with one line where that fails."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from nas_kd.errors import UsageError


def read_table(path: Path, error_kind: type[UsageError]) -> dict[str, Any]:
    """The table in a TOML file, or in a JSON file by its suffix; a byte order mark before it is passed over.

    Raises ``error_kind`` naming the file and what is wrong with it.
    """
    kind = "JSON" if path.suffix == ".json" else "TOML"
    text = _text(path, error_kind)
    try:
        found = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise error_kind(f"{path}: cannot be read as {kind} ({error}); correct it there") from error
    if not isinstance(found, dict):
        raise error_kind(f"{path}: must hold a table, not {type(found).__name__}")
    return found


def _text(path: Path, error_kind: type[UsageError]) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise error_kind(f"{path}: there is no such file; give one that is there") from error
    except IsADirectoryError as error:
        raise error_kind(f"{path}: is a folder; give a file") from error
    except OSError as error:
        raise error_kind(f"{path}: cannot be read ({error.strerror}); give another") from error
    except UnicodeDecodeError as error:
        raise error_kind(f"{path}: is no UTF-8 text ({error.reason}); save it as UTF-8") from error
