"""Samplers on a tabulated problem: hypervolume against trials, seconds per proposal.

    python benchmarks/search.py [--quick] [--seeds 10] [--trials 200] [--samplers exact-cost,gp,tpe,...]
    python benchmarks/search.py --measure 32 --slices FILE      # score slices anew, the problem's ground

The table holds every arch of the space ``demo``, so that the true front is known. MACs are exact; BD-rate is a linear
model of logarithms (MACs of both sides, M, hyper-width) and entropy model, fitted to real slices of the built-in
shared weights, plus a fixed draw per arch from the fit's residuals, so that the table is as rough as they are. Arms
are told values through Optuna's ask and tell, as a search does; only ours knows an arch's MACs beforehand: it
counts them.

The last line is JSON: hv_ratio at 50, 100, 200 trials (share of the true front's hypervolume, mean over seeds),
trials_to_best_other (until ours has what the best other has in the end), seconds per proposal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
import optuna
import torch

from nas_kd.bd import bd_rate
from nas_kd.data import derived_seed, open_images
from nas_kd.distill import Weights
from nas_kd.evaluate import StudentCodec, evaluate
from nas_kd.front import hypervolume, pareto_front
from nas_kd.macs import arch_cost
from nas_kd.prepare import interval_db
from nas_kd.sampler import make_sampler
from nas_kd.space import Arch, load_space
from nas_kd.teacher import load_teacher
from nas_kd.warmup import built_in, load_shared

RESULTS = Path(__file__).parent / "results"
LOOKS = (50, 100, 200)
TWO = ("bd_rate", "flops")
ARMS = ("exact-cost", "gp", "tpe-multivariate", "tpe", "nsga2", "random")


def measure(n: int, out: Path) -> None:
    """Real BD-rates of random archs straight from the built-in shared weights, on the built-in photographs."""
    space, teacher, images = (
        load_space("demo"),
        load_teacher("mini"),
        open_images("builtin", "eval"),
    )
    shared = load_shared(
        built_in(space, teacher.fingerprint, teacher.lmbdas, Weights()), space, teacher.lmbdas
    )
    anchor = evaluate(teacher, images).curve()
    rows = []
    for i in range(n):
        arch = space.draw(derived_seed(0, "arch", i))
        found = bd_rate(
            anchor,
            evaluate(StudentCodec(shared.student(arch)), images).curve(),
            interval_db(anchor),
        )
        rows.append({"arch": arch.to_json(), "bd_rate": found.value, "reason": found.reason})
        print(f"{i + 1} of {n}: {arch}: {found.value}", flush=True)
    valid = sum(row["bd_rate"] is not None for row in rows) / n
    kept = {"rows": rows, "valid_bd_share": valid, "data_fingerprint": images.fingerprint}
    out.write_text(json.dumps(kept | hardware(), indent=1) + "\n")


def hardware() -> dict:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
        "optuna": optuna.__version__,
        "date": date.today().isoformat(),
    }


def features(arch: Arch) -> np.ndarray:
    cost = arch_cost(arch)
    sizes = (cost.encoder.macs, cost.decoder.macs, arch.M, arch.hyper)
    return np.array([1.0, *np.log(sizes), float(arch.entropy == "checkerboard")])


class Table:
    """Every arch of the space with its BD-rate and MACs."""

    def __init__(self, slices: Path):
        self.space = load_space("demo")
        rows = [r for r in json.loads(slices.read_text())["rows"] if r["bd_rate"] is not None]
        x = np.array([features(Arch.from_json(row["arch"])) for row in rows])
        y = np.array([row["bd_rate"] for row in rows])
        self.weights, *_ = np.linalg.lstsq(x, y, rcond=None)
        left = y - x @ self.weights
        self.sd = float(np.sqrt(left @ left / (len(y) - x.shape[1])))
        self.r2 = float(1 - (left @ left) / ((y - y.mean()) @ (y - y.mean())))
        names = list(self.space.vary)
        archs = {
            self.space.arch(dict(zip(names, values, strict=True)))
            for values in product(*self.space.vary.values())
        }
        self.values = {arch: self._value(arch) for arch in archs}
        points = list(self.values.values())
        self.reference = tuple(1.05 * max(p[i] for p in points) for i in (0, 1))
        self.best = hypervolume([points[i] for i in pareto_front(points)], self.reference)

    def _value(self, arch: Arch) -> tuple[float, float]:
        rough = np.random.default_rng(derived_seed(0, "rough", arch.key)).normal(0, self.sd)
        return float(features(arch) @ self.weights + rough), float(arch_cost(arch).total.macs)

    def share(self, points: list[tuple[float, float]]) -> float:
        """Hypervolume over the true front's."""
        return hypervolume(points, self.reference) / self.best


def sampler(name: str, table: Table, seed: int):
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    plain = {"tpe-multivariate": "tpe"}.get(name, name)
    return make_sampler(plain, table.space, TWO, seed)


def run(name: str, table: Table, seed: int, trials: int) -> tuple[list[float], list[float]]:
    """Share of the hypervolume after each trial, and seconds per proposal."""
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler(name, table, seed))
    shares, seconds, seen = [], [], []
    for n in range(trials):
        if name == "exact-cost":  # a search makes it anew for every trial, and so must this
            study.sampler = sampler(name, table, derived_seed(seed, "sampler", n))
        began = time.perf_counter()
        trial = study.ask()
        arch = table.space.suggest(trial)
        seconds.append(time.perf_counter() - began)
        study.tell(trial, table.values[arch])
        seen.append(table.values[arch])
        shares.append(table.share(seen))
    return shares, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds, 50 trials, without gp")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--samplers", default=",".join(ARMS))
    parser.add_argument("--slices", type=Path, default=RESULTS / "slices-2026-11-25.json")
    parser.add_argument("--measure", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if args.measure:
        measure(args.measure, args.slices)
    names = args.samplers.split(",")
    if args.quick:
        args.seeds, args.trials = 2, 50
        names = [name for name in names if name != "gp"]
    table = Table(args.slices)
    print(
        f"{len(table.values)} archs, residual {table.sd:.2f} points, R2 {table.r2:.2f}", flush=True
    )
    shares = {name: [] for name in names}
    seconds = {name: [] for name in names}
    for seed, name in product(range(args.seeds), names):
        found, times = run(name, table, seed, args.trials)
        shares[name].append(found)
        seconds[name].append(times)
        print(f"{name} seed {seed}: {found[-1]:.4f}, {np.mean(times):.3f} s", flush=True)
    result = summary(shares, seconds, args.trials) | hardware()
    result |= {
        "archs": len(table.values),
        "residual_sd": table.sd,
        "r2": table.r2,
        "seeds": args.seeds,
    }
    if args.out:
        args.out.write_text(json.dumps(result | {"shares": shares}, indent=1) + "\n")
    print(json.dumps(result))


def summary(shares: dict, seconds: dict, trials: int) -> dict:
    looks = [n for n in LOOKS if n <= trials]
    mean = {name: np.mean(rows, axis=0) for name, rows in shares.items()}
    found = {
        f"hv_ratio_{n}": {name: float(curve[n - 1]) for name, curve in mean.items()} for n in looks
    }
    found["s_per_proposal_at_the_end"] = {
        name: float(np.median([row[-10:] for row in rows])) for name, rows in seconds.items()
    }
    ours = mean.get("exact-cost")
    others = {name: curve[-1] for name, curve in mean.items() if name != "exact-cost"}
    found["trials_to_best_other"] = None
    if ours is not None and others:
        there = np.flatnonzero(ours >= max(others.values()))
        found["trials_to_best_other"] = int(there[0]) + 1 if len(there) else None
        found["best_other"] = max(others, key=others.get)
    return found


if __name__ == "__main__":
    main()
