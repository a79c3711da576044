"""CompressAI is imported without the packages of its point clouds, and whoever wants those still gets them."""

import subprocess
import sys

import pytest

from nas_kd.codec import compressai_light

LIGHT = """
import sys
import nas_kd.codec.compressai_light as light

assert not light.SKIPPED & sys.modules.keys()
ours = {name: module for name, module in sys.modules.items() if name.startswith("compressai")}
tables = [v for m in ours.values() for v in vars(m).values() if isinstance(v, dict)]
inside = [c for table in tables for c in table.values() if isinstance(c, type)]
classes = [v for m in ours.values() for v in vars(m).values() if isinstance(v, type)] + inside
assert not [c for c in classes if issubclass(c, light._Placeholder)]
"""

REAL = """
import sys, warnings
warnings.simplefilter("ignore")
import pandas
before = pandas
import nas_kd.codec.compressai_light
assert sys.modules["pandas"] is before
import compressai.datasets
from compressai.datasets.pointcloud import shapenet
assert shapenet.pd.DataFrame is pandas.DataFrame
import compressai
assert compressai.transforms.RGB2YCbCr
from compressai.transforms import RandomSample
from compressai.registry import TRANSFORMS
import torch_geometric.transforms, torchvision.transforms
assert issubclass(RandomSample, torch_geometric.transforms.BaseTransform)
assert TRANSFORMS["RandomSample"] is RandomSample
assert TRANSFORMS["Compose"] is torch_geometric.transforms.Compose
assert TRANSFORMS["RandomCrop"] is torchvision.transforms.RandomCrop
"""


def ran(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_an_empty_module_that_was_kept_leads_to_the_real_one():
    kept = compressai_light._EmptyModule("json.decoder")
    assert kept.JSONDecoder is __import__("json").JSONDecoder
    with pytest.raises(ImportError, match="No module named 'absent'"):
        compressai_light._EmptyModule("absent").anything  # noqa: B018


def test_what_has_been_forgotten_of_a_package_comes_when_it_is_asked_for(monkeypatch):
    import xml.dom as package
    import xml.dom.minidom as module

    monkeypatch.setitem(sys.modules, "xml.dom.minidom", module)
    monkeypatch.setitem(vars(package), "minidom", module)
    monkeypatch.setitem(vars(package), "parseString", module.parseString)
    monkeypatch.setitem(vars(package), "__getattr__", None)
    compressai_light._import_when_asked("xml.dom", ("xml.dom.minidom",), ("parseString",))
    assert "xml.dom.minidom" not in sys.modules
    assert package.parseString("<a/>").documentElement.tagName == "a"
    assert package.minidom is sys.modules["xml.dom.minidom"]
    with pytest.raises(AttributeError, match="module 'xml.dom' has no attribute 'other'"):
        package.other  # noqa: B018


@pytest.mark.thorough
@pytest.mark.parametrize("script", [LIGHT, REAL], ids=["light", "real"])
def test_no_placeholder_is_left_and_the_real_packages_are_there(script):
    ended = ran(script)
    assert (ended.returncode, ended.stderr) == (0, "")
