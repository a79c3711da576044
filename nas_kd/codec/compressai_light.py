"""What nas-kd takes from CompressAI, imported without the data sets it never touches.

``import compressai`` also imports torch_geometric and pandas (point clouds) and torchvision, which pulls in the
whole of torch's compiler: together over half of the 13 seconds that the import takes on a small
machine, in every worker. While CompressAI is being imported, they are therefore answered by empty modules.
Afterwards a program that wants the real ones gets them, in CompressAI too: an empty module that was kept
somewhere leads to the real one, and what was made of placeholders (`REMADE`) is imported anew when asked for.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SKIPPED = {"torch_geometric", "torchvision", "pandas"}
REMADE = {
    "compressai": ("compressai.transforms",),
    "compressai.registry": ("compressai.registry.transforms",),
}
"""Modules with classes derived from placeholders, or tables of them, below the package that offers them."""
OFFERED = {"compressai.registry": ("TRANSFORMS", "register_transform")}
"""Names that a package takes from such a module."""


class _Placeholder:
    """Stands for any class or decorator of the skipped package."""

    def __init__(self, *args: Any):
        pass

    def __call__(self, wrapped: Any) -> Any:
        return wrapped


class _EmptyModule(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if any(isinstance(finder, _Finder) for finder in sys.meta_path):
            return _Placeholder
        return getattr(importlib.import_module(self.__name__), name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self) -> None:
        self.skipped = SKIPPED - sys.modules.keys()  # what is there already is real

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.split(".")[0] not in self.skipped:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _EmptyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def _without_point_clouds() -> Iterator[None]:
    if "compressai" in sys.modules:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, module in sys.modules.items() if isinstance(module, _EmptyModule)]:
            del sys.modules[name]
        for package, modules in REMADE.items():
            _import_when_asked(package, modules, OFFERED.get(package, ()))


def _import_when_asked(package: str, modules: tuple[str, ...], offered: tuple[str, ...]) -> None:
    """Forget modules of a package; they and the names it takes from them come when they are asked for."""
    parent = sys.modules.get(package)
    if parent is None:
        return
    for name in [n for n in sys.modules if n.startswith(modules)]:
        del sys.modules[name]
    places = {module.rpartition(".")[2]: module for module in modules}
    for name in (*places, *offered):
        vars(parent).pop(name, None)

    def asked(name: str) -> Any:
        if name in places:
            return importlib.import_module(places[name])
        if name in offered:
            return getattr(importlib.import_module(modules[0]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    vars(parent)["__getattr__"] = asked


with _without_point_clouds(), warnings.catch_warnings():
    # torch deprecates torch.jit.script, which CompressAI still uses at import.
    warnings.simplefilter("ignore")
    from compressai.ans import RansDecoder, RansEncoder
    from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
    from compressai.layers import GDN, AttentionBlock, CheckerboardMaskedConv2d, ResidualBlock
    from compressai.models import CompressionModel
    from compressai.models.utils import conv, deconv
    from compressai.ops import quantize_ste

__all__ = [
    "RansDecoder",
    "RansEncoder",
    "GDN",
    "AttentionBlock",
    "CheckerboardMaskedConv2d",
    "CompressionModel",
    "EntropyBottleneck",
    "EntropyModel",
    "GaussianConditional",
    "ResidualBlock",
    "conv",
    "deconv",
    "quantize_ste",
]
