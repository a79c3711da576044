"""What files plots may be written to; light, for a refusal comes at once."""

import shutil
from pathlib import Path

from nas_kd.data.picture_files import require_writable
from nas_kd.errors import UsageError

KINDS = (".png", ".svg", ".pdf", ".pgf")
"""What plots may end in; PGF is text for LaTeX, and LaTeX itself is needed to lay it out."""


def require_plot(file: Path, option: str) -> None:
    """Raise UsageError where a plot cannot be written there, or not in that format."""
    if file.suffix not in KINDS:
        raise UsageError(f"{option} {file}: must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if file.suffix == ".pgf" and shutil.which("xelatex") is None:
        raise UsageError(
            f"{option} {file}: PGF is laid out by xelatex, which is not on the path; install LaTeX, or take .pdf"
        )
    require_writable(file, option)
