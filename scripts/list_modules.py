"""Write the tables of modules in docs/architecture.md from the first lines of their docstrings.

python scripts/list_modules.py
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
HEADING = "## The modules\n"
WINGS = (
    *("cli", "cluster", "report", "study", "supernet", "teachers"),
    *("evaluation", "distillation", "measurement", "codec", "data", "testing"),
)


def first_line(file):
    return (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()[0].strip()


def table(folder):
    rows = [f"| `{p.stem}` | {first_line(p)} |" for p in sorted(folder.glob("*.py"))]
    return "\n".join(["| module | what it is |", "|---|---|", *(r for r in rows if "`__" not in r)])


def main():
    package = ROOT / "nas_kd"
    parts = [
        f"### {w}\n\n{first_line(package / w / '__init__.py')}\n\n{table(package / w)}"
        for w in WINGS
    ]
    parts.append(f"### the ground floor\n\nWhat every wing may import.\n\n{table(package)}")
    before = PAGE.read_text().partition(HEADING)[0]
    PAGE.write_text(before + HEADING + "\n" + "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
