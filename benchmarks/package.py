"""What nas-kd takes on disk: its wheel, and itself with all that it requires.

    python benchmarks/package.py [--quick] [--out]

The environment's size is that of the files that its packages say they installed, nas-kd's own extras left out; with
the PyTorch that is installed here. The last line is one JSON object.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from harness import ROOT, add_out, finish, hardware, options
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(name: str, extras: frozenset[str] = frozenset(), seen=None) -> set[str]:
    """A package and all that it needs here, by name."""
    seen = set() if seen is None else seen
    if (name, extras) in seen:
        return set()
    seen.add((name, extras))
    try:
        needs = distribution(name).requires or []
    except PackageNotFoundError:  # named for another platform
        return set()
    found = {name}
    for one in map(Requirement, needs):
        if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras | {""}):
            found |= required(canonicalize_name(one.name), frozenset(one.extras), seen)
    return found


def bytes_of(name: str) -> int:
    paths = (Path(str(file.locate())) for file in distribution(name).files or [])
    return sum(path.stat().st_size for path in paths if path.is_file())


def wheel_bytes() -> int:
    with tempfile.TemporaryDirectory() as out:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out]
        subprocess.run([*build, str(ROOT)], check=True, stdout=subprocess.DEVNULL)
        return next(Path(out).glob("*.whl")).stat().st_size


def main():
    parser = options(__doc__, quick="the packages alone, no wheel")
    add_out(parser, "package")
    args = parser.parse_args()
    sizes = {name: bytes_of(name) for name in required("nas-kd")}
    result = {
        "benchmark": "package",
        **hardware(),
        "wheel_bytes": None if args.quick else wheel_bytes(),
        "packages": len(sizes),
        "environment_bytes": sum(sizes.values()),
        "largest": dict(sorted(sizes.items(), key=lambda item: -item[1])[:8]),
    }
    finish(result, args.out)


if __name__ == "__main__":
    main()
