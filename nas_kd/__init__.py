"""nas-kd: search for small, frugal learned image codecs, distilled from a large one."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_kd.weights import load_student as load_student

__version__ = "0.1.0"
__all__ = ["__version__", "load_student"]


def __getattr__(name: str) -> Any:
    # ``import nas_kd`` stays light: torch is imported when the codec is asked for.
    if name == "load_student":
        from nas_kd.weights import load_student

        return load_student
    raise AttributeError(f"module 'nas_kd' has no attribute '{name}'")
