"""Where things lie: what comes with nas-kd, and what it writes into the working folder."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
TEACHERS = ASSETS / "teachers"
"""The codecs that come with nas-kd, by name."""
STUDIES = Path("studies")
CACHE = STUDIES / ".cache"
"""What studies share."""
BUILTIN = "builtin"
"""Instead of a folder of pictures: those that come with what nas-kd depends on."""
