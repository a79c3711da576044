"""A home and a server of its own for every test of what is fetched."""

import io
import sys

import pytest
from fetching import PICTURES, sha256
from webserver import Site, serving

from nas_kd.data import picture_sets
from nas_kd.data.fetch import POLICY


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of its own, where nobody is at a terminal and nothing was said."""
    monkeypatch.delenv(POLICY, raising=False)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def site(home):
    """A server, and a user's file that names three sets there."""
    with serving(Site(dict(PICTURES))) as one:
        both = ", ".join(
            f'{{file = "{n}", bytes = {len(PICTURES[n])}, sha256 = "{sha256(PICTURES[n])}"}}'
            for n in ("one.png", "two.png")
        )
        text = "".join(
            f'[{name}]\nmirrors = ["{one.address}/absent/{{file}}", "{one.address}/{{file}}"]\nfiles = [{files}]\n'
            for name, files in {
                "pair": both,
                "zipped": '{file = "set.zip"}',
                "broken": '{file = "no.zip"}',
            }.items()
        )
        picture_sets.own_file().parent.mkdir(parents=True)
        picture_sets.own_file().write_text(text)
        yield one
