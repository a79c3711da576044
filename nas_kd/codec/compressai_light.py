"""What nas-kd takes from CompressAI, imported without the data sets it never touches.

``import compressai`` also imports torch_geometric and pandas (point clouds) and torchvision, which pulls in the
whole of torch's compiler: together over half of the 13 seconds that the import takes on a small
machine, in every worker. While CompressAI is being imported, they are therefore answered by empty modules;
afterwards these are gone, so that a program that wants the real packages still gets them.
"""

from __future__ import annotations

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
        return _Placeholder


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.split(".")[0] not in SKIPPED:
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
        for name in [n for n in sys.modules if n.split(".")[0] in SKIPPED]:
            del sys.modules[name]


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
