"""What the benchmarks share: their options, where results lie, what a machine is called, the last line."""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MINI = ROOT / "nas_kd/assets/teachers/mini"


def options(doc: str, quick: str = "small numbers: does it run?") -> argparse.ArgumentParser:
    """A parser that says the first line of ``doc`` and has --quick."""
    lines = doc.splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0],
        epilog="\n".join(lines[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
    """--out: where a result is kept; by itself benchmarks/results/NAME/DATE.json."""
    parser.add_argument(
        "--out",
        type=Path,
        nargs="?",
        const=result_file(name),
        help=f"keep the result in this file [without a name: benchmarks/results/{name}/DATE.json]",
    )


def result_file(name: str) -> Path:
    """Where a benchmark's result of today lies."""
    return RESULTS / name / f"{date.today().isoformat()}.json"


def newest(name: str) -> Path | None:
    """The last result of a benchmark, if there is one."""
    return max((RESULTS / name).glob("*.json"), default=None)


def hardware(device: str = "cpu") -> dict[str, Any]:
    """The machine, how busy it is, torch and the date."""
    import torch

    from nas_kd.codec.bfloat16 import is_quick

    cuda = device == "cuda"
    where = torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability()
    where += " with bfloat16" if not cuda and is_quick() else ""
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {where}",
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def said(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run, as JSON can hold them; of paths the last part, for the rest is this machine's."""
    shown = vars(args).items()
    return {k: Path(v).name if isinstance(v, Path) or _is_place(v) else v for k, v in shown}


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and os.sep in value and Path(value).exists()


def keep(path: Path, result: Any) -> None:
    """Write a result: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    beside.replace(path)


def finish(result: dict[str, Any], out: Path | None = None) -> None:
    """The last line, which is JSON, and the file where one is wanted."""
    if out is not None:
        keep(out, result)
    print(json.dumps(result), flush=True)


def rd_loss(curve, lmbdas) -> float:
    """Mean logarithm of the R-D cost over levels, in per cent."""
    mse = 10 ** (-np.array(curve.psnr_db) / 10)
    return 100 * float(np.log(np.array(curve.bpp) + np.array(lmbdas) * 255**2 * mse).mean())


def family(name: str = "mini"):
    """A teacher as the weights that all students of its family share: ``.student(arch)`` starts from its slice."""
    from nas_kd.supernet.from_teacher import Inherited
    from nas_kd.teachers.teacher import load_teacher

    return Inherited(load_teacher(name).student)
