"""Figures on the pages are those of the files that they name, as printed."""

import importlib
import json

import pytest
from docs_pages import PAGES, ROOT


def script(name):
    """A module of scripts/, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def figures():
    return script("figures")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_figures_are_those_of_the_files_that_they_name(figures, page):
    text = page.read_text()
    assert figures.corrected(text) == text, "run python scripts/figures.py"


def test_there_are_figures_to_hold(figures):
    found = [m for page in PAGES for m in figures.MARK.finditer(page.read_text())]
    assert len(found) > 25


def test_every_comment_that_names_a_file_is_read(figures):
    """A comment that the pattern misses would hold nothing."""
    for page in PAGES:
        text = page.read_text()
        named = text.count("<!-- benchmarks/") + text.count("<!-- nas_kd/assets/")
        assert named == len(figures.MARK.findall(text)), page.name


def test_a_figure_is_rounded_as_it_stands_there(figures):
    card = json.loads((ROOT / "nas_kd/assets/teachers/mini/card.json").read_text())
    webp = card["bd_rate_percent"]["WebP"]
    mark = "<!-- nas_kd/assets/teachers/mini/card.json: bd_rate_percent.WebP -->"
    assert figures.corrected(f"so +7.0 %{mark}, and") == f"so {webp:+.1f} %{mark}, and"
    halved = mark.replace(" -->", " / 2 -->")
    assert figures.corrected(f"7.000{halved}") == f"{webp / 2:.3f}{halved}"


def test_a_figure_of_the_log_stands_in_its_entry(figures):
    mark = "<!-- benchmarks/LOG.md: e37 -->"
    assert figures.corrected(f"**0.10**{mark}") == f"**0.10**{mark}"
    with pytest.raises(ValueError, match=r"entry e37 of the log has no 0\.11"):
        figures.corrected(f"0.11{mark}")


def test_the_readmes_table_is_that_of_the_newest_results():
    showcase = script("showcase")
    text = (ROOT / "README.md").read_text()
    assert showcase.with_table(text) == text, "run make showcase"
    assert text.count("| `mini`") == 2


def test_the_results_are_of_the_teacher_that_comes_with_nas_kd():
    """New weights need a new picture and a new table."""
    found = json.loads(script("showcase").newest().read_text())
    teacher = script("showcase").load_teacher("mini")
    assert found["teacher_fingerprint"] == teacher.fingerprint, "run make showcase"


def test_the_table_of_others_is_that_of_its_file():
    systems = json.loads((ROOT / "docs" / "others.json").read_text())["systems"]
    page = (ROOT / "docs" / "compared.md").read_text()
    table = page.partition("<!-- docs/others.json")[2].partition("\n\n")[2].partition("\n\n")[0]
    keys = ("system", "bd_rate", "kmac_px", "parameters")
    rows = ["| " + " | ".join(one[key] for key in keys) + " |" for one in systems]
    assert table.splitlines()[2:-1] == rows
    assert all(one["source"] for one in systems)
