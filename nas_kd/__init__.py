"""nas-kd: search for small, frugal learned image codecs, distilled from a large one.

What is public stands in ``__all__`` and is imported when first asked for, so that ``import nas_kd`` loads neither
torch nor ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_kd.api import Arch as Arch
    from nas_kd.api import Member as Member
    from nas_kd.api import Settings as Settings
    from nas_kd.api import Study as Study
    from nas_kd.api import distill as distill
    from nas_kd.api import evaluate as evaluate
    from nas_kd.api import front as front
    from nas_kd.api import load_student as load_student
    from nas_kd.api import measure as measure
    from nas_kd.api import search as search

__version__ = "0.1.0"
__all__ = [
    "Arch",
    "Member",
    "Settings",
    "Study",
    "__version__",
    "distill",
    "evaluate",
    "front",
    "load_student",
    "measure",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nas_kd' has no attribute '{name}'")
    from nas_kd import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
