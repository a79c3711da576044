"""Kills a search at random moments, resumes it, and counts what was lost or counted twice.

    python benchmarks/chaos.py --kills 50                # --quick: 4 kills, one of each kind
    python benchmarks/chaos.py --kills 5 --victims driver --storage postgresql://user@host/database

Victims: ``driver`` (SIGKILL), ``worker`` (SIGKILL of a trial's process), ``raylet`` (SIGKILL), ``ctrl-c`` (SIGINT).
The last line is JSON; ``lost``, ``duplicated``, ``stale_running`` and ``hung`` shall be 0. It counts the kills that
hit: with --minutes the series ends early, and says so by a smaller ``kills``. A share of the strikes waits until a
trial has written a checkpoint, so that the next search has something to go on from: ``struck_after_checkpoint`` counts
those kills, ``resumed_from_checkpoint`` the finished trials that went on from one.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import psutil
from harness import ROOT, add_out, finish, hardware, options
from optuna.trial import FrozenTrial, TrialState

from nas_kd.testing.tiny_study import write_tiny_study

VICTIMS = ("driver", "worker", "raylet", "ctrl-c")
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
ENDS_S = 300.0
"""A driver that was told to stop, or whose raylet died, and has not ended by then hangs."""
SAVED_S = 240.0
"""A checkpoint that has not come by then is not waited for any longer."""
FOREVER = 100_000
"""A budget that no series of kills reaches."""


def main() -> None:
    args = parse()
    about, out = hardware(), args.out and args.out.resolve()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_tiny_study(folder, "chaos", early_stopping=args.early_stop)
        began, seen = time.monotonic(), Counter[str]()
        victims = [args.victims[i % len(args.victims)] for i in range(args.kills)]
        rng.shuffle(victims)
        driver: psutil.Popen | None = None
        for victim in victims:
            if time.monotonic() - began > args.minutes * 60:
                break
            driver = driver or start(folder, args, FOREVER)
            driver = strike(driver, victim, folder, args, rng, seen)
            print(f"{sum(seen[v] for v in VICTIMS)} {victim} {dict(seen)}", flush=True)
        if driver is not None:
            seen["hung"] += end(driver, signal.SIGINT)
        left = (*COUNTED, TrialState.RUNNING, TrialState.WAITING)
        budget = max(1, sum(t.state in left for t in trials(folder, args)))
        last = start(folder, args, budget)
        code = last.wait(ENDS_S * 4)
        found = trials(folder, args)
        if args.log:
            args.log.write_text((folder / "log").read_text())
        took_s = time.monotonic() - began
        finish(report(found, seen, budget, code, took_s) | about, out)


def parse() -> Any:
    parser = options(__doc__, quick="4 kills, one of each kind")
    add_out(parser, "chaos")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="start no further kill after this"
    )
    parser.add_argument("--victims", type=lambda text: text.split(","), default=list(VICTIMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--after-checkpoint", type=float, default=0.5, help="share of strikes that wait for one"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage")
    parser.add_argument("--log", type=Path, help="keep what the searches print")
    parser.add_argument("--early-stop", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.kills = len(args.victims)
    return args


def start(folder: Path, args: Any, budget: int) -> psutil.Popen:
    """The same command each time."""
    words = ["search", "chaos.toml", "--budget", str(budget), "--workers", str(args.workers)]
    if args.storage:
        words += ["--storage", args.storage]
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with open(folder / "log", "a") as log:
        return psutil.Popen(
            [sys.executable, "-c", "from nas_kd.cli.main import main; main()", *words],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # A shell's background job, as this benchmark may be, hands on that SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )


def strike(
    driver: psutil.Popen,
    victim: str,
    folder: Path,
    args: Any,
    rng: random.Random,
    seen: Counter[str],
) -> psutil.Popen | None:
    """Wait for a random moment and kill; returns the driver where it goes on."""
    saved = False
    if rng.random() < args.after_checkpoint:
        saved = wait_for_checkpoint(driver, folder)
        time.sleep(rng.uniform(0, 0.5))
    else:
        if rng.random() < 0.8:  # else as it comes: while it starts, as a rule
            wait_for_trials(driver, folder, args)
        time.sleep(rng.uniform(0, 8))
    target = find(driver, victim)
    if target is None or driver.poll() is not None:
        seen["missed"] += 1
        return driver if driver.poll() is None else None
    seen[victim] += 1
    seen["struck_after_checkpoint"] += saved
    if victim == "ctrl-c":  # a terminal sends it to all of the group
        os.killpg(driver.pid, signal.SIGINT)
    else:
        target.kill()
    if victim == "worker":
        return driver
    if victim == "driver":
        driver.wait()
        return None
    seen["hung"] += end(driver, None)
    return None


def end(driver: psutil.Popen, with_signal: signal.Signals | None) -> int:
    """Wait until the driver has ended; 1 where it had to be killed."""
    if with_signal is not None:
        driver.send_signal(with_signal)
    try:
        driver.wait(ENDS_S)
        return 0
    except psutil.TimeoutExpired:
        driver.kill()
        driver.wait()
        return 1


def find(driver: psutil.Popen, victim: str) -> psutil.Process | None:
    """The process of a victim, where there is one now."""
    if victim in ("driver", "ctrl-c"):
        return driver
    try:
        children = driver.children(recursive=True)
        named = "ray::ResourceTrainable" if victim == "worker" else "raylet"
        return next((c for c in children if named in (c.cmdline() or [""])[0]), None)
    except psutil.Error:
        return None


def wait_for_trials(driver: psutil.Popen, folder: Path, args: Any) -> None:
    """Until a trial is under way."""
    while driver.poll() is None:
        running = any(t.state == TrialState.RUNNING for t in trials(folder, args))
        if running and find(driver, "worker") is not None:
            return
        time.sleep(0.5)


def wait_for_checkpoint(driver: psutil.Popen, folder: Path) -> bool:
    """Until a trial writes a checkpoint; False where none comes in time."""
    began, until = time.time(), time.monotonic() + SAVED_S
    while driver.poll() is None and time.monotonic() < until:
        for checkpoint in folder.glob("studies/chaos/students/*/checkpoint.pt"):
            with suppress(FileNotFoundError):  # the trial has just ended
                if checkpoint.stat().st_mtime > began:
                    return True
        time.sleep(0.05)
    return False


def trials(folder: Path, args: Any) -> list[FrozenTrial]:
    """All trials, as the storage has them."""
    url = args.storage or f"sqlite:///{folder}/studies/chaos/study.db"
    if args.storage is None and not (folder / "studies/chaos/study.db").exists():
        return []
    try:
        return optuna.load_study(study_name="chaos", storage=url).trials
    except (KeyError, optuna.exceptions.StorageInternalError):
        return []


def report(
    found: list[FrozenTrial], seen: Counter[str], budget: int, code: int, took_s: float
) -> dict[str, Any]:
    """What came of it: every arch that was ever begun has one trained trial, and all is told."""
    begun = {t.user_attrs["arch_key"] for t in found if "arch_key" in t.user_attrs}
    own = [t for t in found if t.state in COUNTED and "same_as" not in t.user_attrs]
    trained = Counter(t.user_attrs["arch_key"] for t in own)
    states = Counter(t.state.name for t in found)
    return {
        "benchmark": "chaos",
        "kills": sum(seen[v] for v in VICTIMS),
        "by_victim": {v: seen[v] for v in VICTIMS},
        "lost": len(begun - set(trained)),
        "duplicated": sum(n - 1 for n in trained.values()),
        "stale_running": states["RUNNING"] + states["WAITING"],
        "hung": seen["hung"],
        "missed": seen["missed"],
        "counted": states["COMPLETE"] + states["PRUNED"],
        "budget": budget,
        "last_exit_code": code,
        "resumed_from_checkpoint": sum(t.user_attrs.get("first_step", 0) > 0 for t in own),
        "struck_after_checkpoint": seen["struck_after_checkpoint"],
        "given_up": sum(t.user_attrs.get("reason") in ("worker_died", "crash") for t in own),
        "trials": dict(states),
        "took_s": round(took_s),
    }


if __name__ == "__main__":
    main()
