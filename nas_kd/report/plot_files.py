"""What files plots may be written to; light, for a refusal comes at once."""

from pathlib import Path

from nas_kd.data.picture_files import require_writable
from nas_kd.errors import UsageError

KINDS = (".png", ".svg", ".pdf", ".pgf")
"""What plots may end in; PGF is text for LaTeX, which is not needed to write it."""


def require_plot(file: Path, option: str) -> None:
    """Raise UsageError where a plot cannot be written there, or not in that format."""
    if file.suffix not in KINDS:
        raise UsageError(f"{option} {file}: must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    require_writable(file, option)
