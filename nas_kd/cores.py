"""How many cores this process may use."""

from __future__ import annotations


def cores() -> int:
    """Cores by affinity and by the limits of the cgroup, which a container's are; at least 1."""
    import joblib  # half a second

    return int(joblib.cpu_count())
