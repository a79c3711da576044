"""The demo's script, with the commands it calls replaced by ones that only say what they were given."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "demo.sh"
STUB = """#!/bin/bash
echo "$@" >> "$CALLS"
if [ "$1" = export ]; then echo out/students/trial-0007; echo out/students/trial-0002; fi
"""


def test_the_photograph_is_restored_with_the_best_of_the_front(tmp_path):
    """The front is printed best first; the first by number may be its worst."""
    (tmp_path / "bin").mkdir()
    for name in ("nas-kd", "python"):
        (tmp_path / "bin" / name).write_text(STUB)
        (tmp_path / "bin" / name).chmod(0o755)
    for number in ("0002", "0007"):
        (tmp_path / "out" / "students" / f"trial-{number}").mkdir(parents=True)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "CALLS": str(tmp_path / "calls")}
    subprocess.run(["bash", SCRIPT, "out"], cwd=tmp_path, env=env, check=True, timeout=20)
    coded = [x for x in (tmp_path / "calls").read_text().splitlines() if "compress" in x]
    assert len(coded) == 2
    assert all(x.split("--student ")[1].startswith("out/students/trial-0007") for x in coded)
