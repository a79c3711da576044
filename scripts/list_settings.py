"""Write the table of settings on docs/commands.md anew, from their schema."""

from __future__ import annotations

import re
from pathlib import Path

from nas_kd.schema import Key, keys
from nas_kd.study.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = "| key | default | values | |\n|---|---|---|---|\n"


def table() -> str:
    """The rows of all keys but the name, which `[[each]]` and the file's own name make."""
    return HEAD + "".join(_row(one) for one in keys(Settings) if one.name != "name")


def _row(one: Key) -> str:
    return f"| `{one.name}` | {one.default or 'must be said'} | {one.values} | {one.meaning} |\n"


if __name__ == "__main__":
    page = PAGE.read_text()
    PAGE.write_text(re.sub(re.escape(HEAD) + r"(\|.*\n)+", lambda found: table(), page))
