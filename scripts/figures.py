"""Hold the figures of the pages to the files they come from.

A figure is followed by an HTML comment that names its source; nothing of it is seen on the page:

    +0.8 %<!-- nas_kd/assets/teachers/mini/card.json: bd_rate_percent.WebP -->
    12<!-- benchmarks/results/showcase: photograph.WebP.bytes / 1000 -->     of a folder, the newest file
    0.17<!-- benchmarks/LOG.md: e37 -->                 a figure that stands in this entry of the log

``python scripts/figures.py`` writes what the files say; the tests ask that nothing is left to write. Figures of a file
are rounded as they stand there: as many decimals, and a plus sign where there is a sign.
"""

import json
import re
import sys
from functools import cache, reduce
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(
    r"(?P<figure>[+−-]?\d[\d,]*(?:\.\d+)?)(?P<unit>[^\d\n]{0,24}?)"
    r"<!-- (?P<file>[\w./-]+): (?P<key>[^>]+?)(?: (?P<sign>[/*]) (?P<scale>[\d.e]+))? -->"
)
ENTRY = re.compile(r'<a id="(e\d+)"></a>')


@cache
def read(file):
    path = ROOT / file
    return json.loads((max(path.glob("*.json")) if path.is_dir() else path).read_text())


@cache
def entries():
    parts = ENTRY.split((ROOT / "benchmarks/LOG.md").read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def value_of(mark):
    step = lambda found, key: found[int(key) if isinstance(found, list) else key]  # noqa: E731
    value = reduce(step, mark["key"].split("."), read(mark["file"]))
    scale = float(mark["scale"] or 1)
    return value / scale if mark["sign"] == "/" else value * scale


def as_printed(value, like):
    """A value with the decimals, the sign and the commas of a printed figure."""
    decimals = len(like.partition(".")[2])
    sign = "+" if like[0] in "+-−" else ""
    comma = "," if "," in like or abs(value) >= 10000 else ""
    return f"{value:{sign}{comma}.{decimals}f}"


def right(mark):
    """The figure as its source has it; raises ValueError where the log's entry lacks it."""
    if not mark["file"].endswith("LOG.md"):
        return as_printed(value_of(mark), mark["figure"])
    if not re.search(
        rf"(?<![\d.]){re.escape(mark['figure'])}(?![\d]|\.\d)", entries()[mark["key"]]
    ):
        raise ValueError(f"{mark[0]}: entry {mark['key']} of the log has no {mark['figure']}")
    return mark["figure"]


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


if __name__ == "__main__":
    sys.exit(print("\n".join(written())))
