"""The pages of the documentation."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
