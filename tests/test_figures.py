"""Figures on the pages are those of the files that they name, as printed."""

import importlib
import json

import pytest
from docs_pages import PAGES, ROOT

from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space


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
        files = ("benchmarks/", "nas_kd/assets/", "docs/others.json")
        named = sum(text.count(f"<!-- {file}") for file in files)
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


def held(figures, name):
    """What this file holds on a page of docs/, part by part."""
    found = figures.HELD.finditer((ROOT / "docs" / name).read_text())
    parts = [m[0].partition("-->")[2].rpartition("<!--")[0].strip() for m in found]
    assert parts, name
    return parts


def test_the_table_of_others_is_that_of_its_file(figures):
    said = json.loads((ROOT / "docs" / "others.json").read_text())
    (table,) = held(figures, "compared.md")
    keys = ("system", "bd_rate", "kmac_px", "parameters")
    rows = ["| " + " | ".join(one[key] for key in keys) + " |" for one in said["systems"]]
    assert table.splitlines()[2:-1] == rows
    assert all(one["source"] for one in [*said["systems"], *said["said"].values()])


def energy_row(name, old, new):
    of = lambda found: [found[k] for k in ("worst_percent", "uncertainty_percent", "measured")]  # noqa: E731
    seconds = f"{new['first_s']} / {new['others_s']}"
    return f"| {' | '.join(map(str, [name, old['first_s'], *of(old), seconds, *of(new)]))} |"


def test_the_table_of_energy_readings_is_that_of_the_newest_results(figures):
    cases = figures.read("benchmarks/results/energy")["simulated"]["cases"]
    (table,) = held(figures, "energy.md")
    rows = [energy_row(name, found["before"], found["after"]) for name, found in cases.items()]
    assert table.splitlines()[2:] == rows


def kmac_px(space, side):
    """The least and the most that a side of an arch of the space costs: at the corners of each of its words."""
    corners = [*space.corners(largest=False), *space.corners(largest=True)]
    found = [getattr(arch_cost(arch), side).macs / (768 * 512) / 1e3 for arch in corners]
    return min(found), max(found)


@pytest.mark.parametrize(("place", "name"), [(0, "frontier"), (1, "phone")])
def test_what_archs_of_a_space_cost_is_counted(figures, place, name):
    space = load_space(name)
    least, most = kmac_px(space, "decoder")
    encoders = kmac_px(space, "encoder")[1]
    said = f"decoders of {least:.2g} to {most:.2g} kMAC a pixel, encoders to {encoders:.0f}"
    assert " ".join(held(figures, "search-space.md")[place].split()) == said


def test_no_figure_on_the_pages_is_without_a_source(figures):
    """Bind it by a comment behind it; a setting or a rule goes into scripts/not_measured.toml with its reason."""
    assert figures.unsourced() == []


@pytest.mark.parametrize(
    "line",
    [
        "It decodes in 12 ms on a phone.",
        "That saves 3.5 % of rate, or -2%.",
        "Rates fall by 0.37 from one to the other.",
        "It held in 80 of 100 cases.",
        "The search took 50 to 85 s, which is not three minutes.",
        "| a codec | +12.1 | 43.5 |",
        "A picture takes 400 GMAC and 6 GB.",
    ],
)
def test_a_new_figure_without_a_source_is_found(figures, line):
    assert figures.without_source(f"# A page\n\n{line}\n")[0].startswith("3: ")


def test_code_settings_and_figures_with_a_source_are_none(figures):
    mark = "<!-- benchmarks/LOG.md: e37 -->"
    page = (
        f"0.10{mark} in `0.2 s`\n\n    wait 3 s\n\n```\n4 ms\n```\n\n"
        "$k = 0.3$, at least\n95 % of it, [it](a_2.5.md) at 768x512, 1/8, arXiv 2509.10366.\n\n"
        "<!-- held by tests/test_figures.py -->\n| 4.5 % |\n<!-- /held -->\n"
    )
    assert figures.without_source(page) == ["10: 95 %"]
    assert figures.without_source(page, ["at least 95 % of it"]) == []


def test_what_is_not_measured_stands_on_its_page_and_has_a_reason(figures):
    pages = {page.name: page.read_text() for page in PAGES}
    for name, passages in figures.not_measured().items():
        for passage, reason in passages.items():
            others = [one for one in passages if one != passage]
            assert reason.strip()
            assert figures.without_source(pages[name], others), (
                f"{name}: {passage} is needed no more"
            )


def test_a_part_is_held_by_a_file_that_names_its_page(figures):
    for page in PAGES:
        text = page.read_text()
        opened = text.count("<!-- held by ") + text.count("<!-- results:")
        by = [m["by"] for m in figures.HELD.finditer(text)]
        assert len(by) == opened, page.name
        for file in by:
            assert page.name in (ROOT / file).read_text(), (page.name, file)


def test_keys_of_results_may_have_dots_and_texts_are_looked_into(figures):
    assert figures.found_in({"a.b": {"c": [1, {"d": 2}]}, "a": 3}, "a.b.c.1.d") == 2
    with pytest.raises(ValueError, match="no x.y among a"):
        figures.found_in({"a": 3}, "x.y")
    with pytest.raises(ValueError, match=r"has no 2\.4"):
        figures.corrected("2.4<!-- docs/others.json: said.KDIC.gain_percent --> %")
