"""nas-kd: search for small, frugal learned image codecs, distilled from a large one."""

__version__ = "0.1.0"
