"""nas-kd: search for small, frugal learned image codecs, distilled from a large one.

What is public stands in ``__all__`` and is imported when first asked for, so that ``import nas_kd`` loads neither
torch nor ray. Four functions are named as modules are (``nas_kd.front`` and others): the package's attribute is the
function, and ``from nas_kd.study.front import ...`` still finds the module.
"""

import sys
from types import ModuleType
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


def _public(name: str) -> property:
    def get(package: ModuleType) -> Any:
        from nas_kd import api

        return getattr(api, name)

    # Python sets the attribute when it imports a module of that name: the function stays.
    return property(get, lambda package, module: None)


class _Package(ModuleType):
    pass


for _name in __all__:
    if _name != "__version__":
        setattr(_Package, _name, _public(_name))
sys.modules[__name__].__class__ = _Package
