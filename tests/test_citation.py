"""How nas-kd is cited agrees with what it is."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_citation_has_what_the_format_asks_for_and_the_packages_own_facts():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["version"] == project["version"]
    assert cited["license"] == project["license"]
    assert all(author.get("name") for author in cited["authors"])
