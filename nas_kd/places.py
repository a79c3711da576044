"""Where things lie: what comes with nas-kd, and what it writes into the working folder."""

import os
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
TEACHERS = ASSETS / "teachers"
"""The codecs that come with nas-kd, by name."""
STUDIES = Path("studies")
CACHE = STUDIES / ".cache"
"""What studies share."""
BUILTIN = "builtin"
"""Instead of a folder of pictures: those that come with what nas-kd depends on."""


def user_cache() -> Path:
    """What all studies of this user may look up: below XDG_CACHE_HOME, or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "nas-kd"
