"""Where things lie: what comes with nas-kd, and what it writes below a root, by default the working folder."""

from pathlib import Path

from platformdirs import user_cache_path

ASSETS = Path(__file__).parent / "assets"
TEACHERS = ASSETS / "teachers"
"""The codecs that come with nas-kd, by name."""
HERE = Path()
"""The root that is taken where none is named: the working folder."""
STUDIES = Path("studies")
"""Below a root: a folder a study."""
CACHE = STUDIES / ".cache"
"""Below a root: what its studies share."""
SHIPPED = (Path(__file__).parents[1], Path(__file__).parent)
"""Where ``search_spaces`` and ``studies`` lie that come with nas-kd: in a source tree, in an installed package."""
BUILTIN = "builtin"
"""Instead of a folder of pictures: those that come with what nas-kd depends on."""


def shipped(file: Path) -> Path:
    """The file, or where it is not there the one of that name that comes with nas-kd (``studies/control.toml``)."""
    places = (file, *(base / file for base in SHIPPED))
    return next((place for place in places if place.is_file()), file)


def user_cache() -> Path:
    """What all studies of this user may look up, where the system keeps such (``~/.cache/nas-kd``)."""
    return user_cache_path("nas-kd")
