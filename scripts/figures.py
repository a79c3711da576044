"""Hold the figures of the pages to the files they come from.

A figure is followed by an HTML comment that names its source; nothing of it is seen on the page:

    +0.8 %<!-- nas_kd/assets/teachers/mini/card.json: bd_rate_percent.WebP -->
    12<!-- benchmarks/results/showcase: photograph.WebP.bytes / 1000 -->     of a folder, the newest file
    0.17<!-- benchmarks/LOG.md: e37 -->                 a figure that stands in this entry of the log
    260<!-- docs/others.json: said.EVC.kmac_px -->      a text in a file: the figure stands in it

Tables stand between ``<!-- held by tests/FILE.py -->`` (or a script) and ``<!-- /held -->``: that file names the page.
What looks like a measured figure and is none (a setting, a rule) stands in ``scripts/not_measured.toml``.

``python scripts/figures.py`` writes what the files say and prints what has no source; the tests ask that nothing is
left to do. Figures of a file are rounded as they stand there: as many decimals, and a plus sign where there is a sign.
"""

import json
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(
    r"(?P<figure>[+−-]?\d[\d,]*(?:\.\d+)?)(?P<unit>[^\d\n]{0,24}?)"
    r"<!-- (?P<file>[\w./-]+): (?P<key>[^>]+?)(?: (?P<sign>[/*]) (?P<scale>[\d.e]+))? -->"
)
ENTRY = re.compile(r'<a id="(e\d+)"></a>')
HELD = re.compile(
    r"<!-- (?:held by|results:) (?P<by>[\w./-]+)[^>]* -->.*?<!-- /(?:held|results) -->", re.S
)

UNITS = (
    "%|per cent|ms|s|min|minutes?|hours?|h|days?|m?J|mJ|W|[kMG]i?B|[MG]iB|GMACs?|kMACs?|kMAC/px|dB|bpp|fps|"
    "frames per second|times|points?|megapixels"
)
WORDS = "two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|half an?"
NUMBER = r"(?<![\w./])[+−-]?\d[\d,]*(?:\.\d+)?(?![\w/]|\.\d)"
MEASURED = re.compile(
    rf"{NUMBER}(?: to {NUMBER})?[ -](?:{UNITS})(?![\w/])"
    rf"|{NUMBER}%|(?<![\w./])[+−-]?\d+\.\d+(?![\w/]|\.\d)|{NUMBER} of {NUMBER}"
    rf"|\b(?:{WORDS}) (?:minutes?|hours?|seconds?|days?|per cent|points?)\b",
    re.I,
)
"""A number with a unit, with decimals or as a share, and times in words."""
NO_PROSE = re.compile(
    r"^```.*?^```|(?<=\n\n)(?: {4}[^\n]*\n)+|`[^`\n]+`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)\s]+\)|<!--.*?-->"
    r"|arXiv \d{4}\.\d+",
    re.M | re.S,
)
"""Code, formulas, the targets of links, comments, the numbers of papers."""


@cache
def read(file):
    path = ROOT / file
    newest = max(path.glob("[0-9]*.json")) if path.is_dir() else path
    return json.loads(newest.read_text())


@cache
def entries():
    parts = ENTRY.split((ROOT / "benchmarks/LOG.md").read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def found_in(value, key):
    """What a path of keys leads to; keys may have dots themselves."""
    if isinstance(value, list):
        first, _, rest = key.partition(".")
        return found_in(value[int(first)], rest) if rest else value[int(first)]
    if key in value:
        return value[key]
    first = max((k for k in value if key.startswith(f"{k}.")), key=len, default=None)
    if first is None:
        raise ValueError(f"no {key} among {', '.join(value)}")
    return found_in(value[first], key[len(first) + 1 :])


def as_printed(value, like):
    """A value with the decimals, the sign and the commas of a printed figure."""
    decimals = len(like.partition(".")[2])
    sign = "+" if like[0] in "+-−" else ""
    comma = "," if "," in like or abs(value) >= 10000 else ""
    return f"{value:{sign}{comma}.{decimals}f}"


def standing(figure, text, where):
    """The figure, which must stand in the text."""
    if not re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d]|\.\d)", text):
        raise ValueError(f"{where} has no {figure}")
    return figure


def right(mark):
    """The figure as its source has it; raises ValueError where a text lacks it."""
    figure, key = mark["figure"], mark["key"]
    if mark["file"].endswith("LOG.md"):
        return standing(figure, entries()[key], f"{mark[0]}: entry {key} of the log")
    value = found_in(read(mark["file"]), key)
    if isinstance(value, str):
        return standing(figure, value, f"{mark[0]}: {value!r}")
    scale = float(mark["scale"] or 1)
    return as_printed(value / scale if mark["sign"] == "/" else value * scale, figure)


def corrected(text):
    return MARK.sub(lambda m: m[0].replace(m["figure"], right(m), 1), text)


def written():
    """Write the figures of all pages; which pages changed."""
    read.cache_clear()
    changed = {page: corrected(page.read_text()) for page in PAGES}
    changed = {page: text for page, text in changed.items() if text != page.read_text()}
    for page, text in changed.items():
        page.write_text(text)
    return sorted(page.name for page in changed)


@cache
def not_measured():
    """Passages with figures that nobody measured, by page, and why each may stand there."""
    return tomllib.loads((ROOT / "scripts/not_measured.toml").read_text())


def blank(match):
    """As many spaces as what is left out, so that places stay; lines end where they did."""
    return re.sub(r"[^\n]", " ", match[0])


def without_source(text, allowed=()):
    """Each figure on a page that looks measured and names no source, with its line."""
    text = NO_PROSE.sub(blank, HELD.sub(blank, MARK.sub(blank, text)))
    for passage in allowed:
        spaced = r"\s+".join(re.escape(word) for word in passage.split())
        text = re.sub(spaced, blank, text)
    return [f"{text[: m.start()].count(chr(10)) + 1}: {m[0]}" for m in MEASURED.finditer(text)]


def unsourced():
    """What has no source, on all pages."""
    return [
        f"{page.name}:{one}"
        for page in PAGES
        for one in without_source(page.read_text(), not_measured().get(page.name, ()))
    ]


if __name__ == "__main__":
    print("\n".join(written()))
    sys.exit("\n".join(f"no source: {one}" for one in unsourced()) or None)
