"""Samplers on a tabulated problem: hypervolume against trials, seconds per proposal.

    python benchmarks/search.py [--space demo|asymmetric] [--quick] [--seeds 10] [--trials 200]
    python benchmarks/search.py --space asymmetric --samplers exact-cost,gp --out FILE     # goes on from FILE
    python benchmarks/search.py --measure 32 --slices FILE      # score slices anew, the problem's ground

MACs are exact. BD-rate is a linear model of logarithms (MACs of both sides, M, hyper-width) and of the blocks of each
side, fitted to real slices of ``mini``, the family of ``demo``, plus a fixed draw per arch (from a hash of its key)
from the fit's residuals, so that the table is as rough as the slices are. Samplers are told values through Optuna's
ask and tell, as a search does; only ours knows an arch's MACs beforehand: it counts them.

``demo``: every arch is listed, so that the true front is known, and nothing is extrapolated (--quick: a sample).

``asymmetric``: 10^9 archs. The same model; extrapolated are more MACs than ``demo`` has, hyper-widths over 64, M over
256, more than six blocks a side. Unknown, and without a term beside their MACs: residual blocks, the entropy models
scale and checkerboard. So this is a problem of the space's shape and size, no forecast of its BD-rates. No arch lacks
a BD-rate in it. The reference front is that of 20,000 random archs, refined by an evolution that knows the table (120
generations of 1,000 children): it may fall short of the true one.

The last line is JSON. By sampler: hv_ratio at 50, 100, 200 trials (share of the reference front's hypervolume, mean
over seeds) and seconds_per_proposal at 200 trials (median of the last ten in each run) and at 1,000 (median of
three, the history being random archs; --thousand). trials_to_best_other: until ours, on average, has what the best
other has at the end. overhead_s_per_trial: the newest that benchmarks/overhead.py recorded.
"""

from __future__ import annotations

import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import optuna
import torch
from harness import family, finish, hardware, keep, newest, options

from nas_kd.codec.arch import Arch, Choice
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.data.images import open_images
from nas_kd.evaluation.bd_rate import bd_rate
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate
from nas_kd.seeds import derived_seed
from nas_kd.study.anchor import interval_db
from nas_kd.study.front import hypervolume
from nas_kd.study.sampler import make_sampler
from nas_kd.teachers.teacher import load_teacher

LOOKS = (50, 100, 200)
TWO = ("bd_rate", "flops")
CHILDREN = 1000
EXTRAPOLATED = [
    "MACs over those of demo",
    "more than 6 blocks a side",
    "hyper-widths over 64",
    "M over 256",
    "residual blocks, scale and checkerboard entropy models: no effect beside their MACs",
]
ARMS = ("exact-cost", "gp", "tpe-multivariate", "tpe", "nsga2", "random")


def measure(n: int, out: Path) -> None:
    """Real BD-rates of random archs straight from their slices of ``mini``, on the built-in photographs."""
    space, teacher, shared = load_space("demo"), load_teacher("mini"), family()
    images = open_images("builtin", "eval")
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
    keep(out, kept | {"teacher_fingerprint": teacher.fingerprint} | about_us())


def about_us() -> dict:
    """The machine and the sampler's library."""
    return hardware() | {"optuna": optuna.__version__}


def features(arch: Arch) -> list[float]:
    """Terms of the linear model: logarithms of sizes, and how many blocks stand on each side."""
    cost = arch_cost(arch)
    sizes = (cost.encoder.macs, cost.decoder.macs, arch.M, arch.hyper)
    blocks = (sum(arch.encoder.depths), sum(arch.decoder.depths))
    return [1.0, *np.log(sizes), *map(float, blocks)]


def skyline(points: list[tuple[float, float]]) -> list[int]:
    """The front of two objectives, by sorting: there are tens of thousands of points."""
    order = np.lexsort(np.array(points).T[::-1])
    second = np.array(points)[order, 1]
    before = np.append(np.inf, np.minimum.accumulate(second)[:-1])
    return [int(i) for i in order[second < before]]


class Table:
    """BD-rates and MACs of the archs of a space, and the front to compare with.

    Args:
        name: of the space.
        slices: what ``measure`` wrote.
        sample: random archs; None: all of them, and nothing to refine.
        generations: of their refinement.
    """

    def __init__(self, name: str, slices: Path, sample: int | None, generations: int = 120):
        self.space, self.listed = load_space(name), sample is None
        rows = [r for r in json.loads(slices.read_text())["rows"] if r["bd_rate"] is not None]
        x = np.array([features(Arch.from_json(row["arch"])) for row in rows])
        y = np.array([row["bd_rate"] for row in rows])
        self.weights, *_ = np.linalg.lstsq(x, y, rcond=None)
        left = y - x @ self.weights
        self.sd = float(np.sqrt(left @ left / (len(y) - x.shape[1])))
        self.r2 = float(1 - (left @ left) / ((y - y.mean()) @ (y - y.mean())))
        self.values: dict[Arch, tuple[float, float]] = {}
        many = self.space.grid() if sample is None else map(self._drawn, range(sample))
        known = {self.space.arch(params): params for params in many}
        points = [self.value(arch) for arch in known]
        self.reference = tuple(1.05 * max(p[i] for p in points) for i in (0, 1))
        if not self.listed:
            self._refine(known, generations)
        self.archs, points = len(self.values), list(self.values.values())
        self.front = [points[i] for i in skyline(points)]
        self.best = hypervolume(self.front, self.reference)

    def _drawn(self, i: int) -> dict[str, Choice]:
        random = np.random.default_rng(derived_seed(0, "table", i))
        return {name: c[random.integers(len(c))] for name, c in self.space.vary.items()}

    def _refine(self, known: dict[Arch, dict[str, Choice]], generations: int) -> None:
        """Children of the front join the table: one to three choices of a member drawn anew."""
        random = np.random.default_rng(0)
        names = list(self.space.vary)
        for _ in range(generations):
            archs = list(known)
            front = skyline([self.values[arch] for arch in archs])
            known = {archs[i]: known[archs[i]] for i in front}
            parents = list(known.values())
            for i in range(CHILDREN):
                child = dict(parents[i % len(parents)])
                for name in random.choice(names, random.integers(1, 4), replace=False):
                    choices = self.space.vary[str(name)]
                    child[str(name)] = choices[random.integers(len(choices))]
                arch = self.space.arch(child)
                self.value(arch)
                known[arch] = child

    def value(self, arch: Arch) -> tuple[float, float]:
        """BD-rate and MACs."""
        if arch not in self.values:
            rough = np.random.default_rng(derived_seed(0, "rough", arch.key)).normal(0, self.sd)
            rate = float(np.dot(features(arch), self.weights) + rough)
            self.values[arch] = rate, float(arch_cost(arch).total.macs)
        return self.values[arch]

    def share(self, points: list[tuple[float, float]]) -> float:
        """Hypervolume over that of the front to compare with."""
        return hypervolume(points, self.reference) / self.best


def sampler(name: str, table: Table, seed: int):
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    plain = {"tpe-multivariate": "tpe"}.get(name, name)
    return make_sampler(plain, table.space, TWO, seed)


def run(name: str, table: Table, seed: int, trials: int) -> dict[str, list[float]]:
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
        study.tell(trial, table.value(arch))
        seen.append(table.value(arch))
        shares.append(table.share(seen))
    return {"shares": shares, "seconds": seconds}


def at_thousand(name: str, table: Table, proposals: int = 3) -> float:
    """Seconds per proposal after 1,000 trials of random archs, median."""
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler("random", table, 0))
    for _ in range(1000):
        trial = study.ask()
        study.tell(trial, table.value(table.space.suggest(trial)))
    took = []
    for n in range(proposals):
        if n == 0 or name == "exact-cost":
            study.sampler = sampler(name, table, n)
        began = time.perf_counter()
        trial = study.ask()
        arch = table.space.suggest(trial)
        took.append(time.perf_counter() - began)
        study.tell(trial, table.value(arch))
    return float(np.median(took))


def overhead() -> dict[str, object] | None:
    """What benchmarks/overhead.py last recorded."""
    file = newest("overhead")
    if file is None:
        return None
    found = json.loads(file.read_text())
    return {
        "nas-kd": found["nas_kd_s"]["per_trial"],
        "tune_with_optunasearch": found["tune_with_optunasearch_s"]["per_trial"],
        "from": f"overhead/{file.name}",
    }


def main() -> None:
    parser = options(__doc__, quick="2 seeds, 50 trials, a sample of archs, without gp")
    parser.add_argument("--space", choices=("demo", "asymmetric"), default="demo")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--samplers", default=",".join(ARMS))
    parser.add_argument("--thousand", default="", help="samplers to time after 1,000 trials")
    parser.add_argument("--slices", type=Path, default=newest("slices"))
    parser.add_argument("--measure", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep every run here, and go on from it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if args.measure:
        measure(args.measure, args.slices)
        return
    names = args.samplers.split(",")
    if args.quick:
        args.seeds, args.trials = 2, 50
        names = [name for name in names if name != "gp"]
    table = Table(args.space, args.slices, *sizes_of(args))
    print(f"{table.archs} archs, residual {table.sd:.2f} points, R2 {table.r2:.2f}", flush=True)
    problem = {"space": args.space, "trials": args.trials, "best": table.best}
    kept = Kept(args.out, problem)
    for seed, name in product(range(args.seeds), names):
        if seed < len(kept.runs.get(name, [])):
            continue
        found = run(name, table, seed, args.trials)
        kept.add(name, found)
        print(
            f"{name} seed {seed}: {found['shares'][-1]:.4f}, {np.mean(found['seconds']):.3f} s",
            flush=True,
        )
    for name in filter(None, args.thousand.split(",")):
        kept.thousand[name] = at_thousand(name, table)
        print(f"{name}: {kept.thousand[name]:.2f} s at 1,000 trials", flush=True)
    result = summary(kept, args.trials) | about(table) | about_us()
    kept.write(result)
    finish({"benchmark": "search"} | result)


def sizes_of(args) -> tuple[int | None, int]:
    """Archs of the table, None for all, and generations."""
    if args.quick:
        return 2000, 10
    return (None, 0) if args.space == "demo" else (20_000, 120)


def about(table: Table) -> dict:
    return {
        "space": table.space.name,
        "archs_in_the_table": table.archs,
        "front": "of all archs" if table.listed else "of a sample, refined",
        "residual_sd": table.sd,
        "r2": table.r2,
        "fitted": "BD-rates of real slices of demo",
        "extrapolated": [] if table.space.name == "demo" else EXTRAPOLATED,
        "overhead_s_per_trial": overhead(),
    }


class Kept:
    """Runs by sampler, in a file where one is given."""

    def __init__(self, path: Path | None, problem: dict):
        self.path, self.problem = path, problem
        self.runs: dict[str, list[dict[str, list[float]]]] = {}
        self.thousand: dict[str, float] = {}
        if path is not None and path.exists():
            there = json.loads(path.read_text())
            if there["problem"] != problem:
                raise SystemExit(f"{path}: holds {there['problem']}, this is {problem}")
            self.runs, self.thousand = there["runs"], there["thousand"]

    def add(self, name: str, found: dict[str, list[float]]) -> None:
        self.runs.setdefault(name, []).append(
            {key: [round(v, 5) for v in many] for key, many in found.items()}
        )
        self.write({})

    def write(self, result: dict) -> None:
        if self.path is not None:
            whole = {"problem": self.problem, "runs": self.runs, "thousand": self.thousand}
            keep(self.path, result | whole)


def summary(kept: Kept, trials: int) -> dict:
    looks = [n for n in LOOKS if n <= trials]
    mean = {
        name: np.mean([row["shares"] for row in rows], axis=0) for name, rows in kept.runs.items()
    }
    found: dict = {
        f"hv_ratio_{n}": {name: round(float(curve[n - 1]), 4) for name, curve in mean.items()}
        for n in looks
    }
    found["hv_ratio_end_standard_error"] = {
        name: round(float(np.std(ends, ddof=1) / np.sqrt(len(ends))), 4)
        if len(ends := [row["shares"][-1] for row in rows]) > 1
        else None
        for name, rows in kept.runs.items()
    }
    found["seeds"] = {name: len(rows) for name, rows in kept.runs.items()}
    found[f"seconds_per_proposal_{trials}"] = {
        name: round(float(np.median([row["seconds"][-10:] for row in rows])), 4)
        for name, rows in kept.runs.items()
    }
    found["seconds_per_proposal_1000"] = {
        name: round(kept.thousand[name], 3) if name in kept.thousand else None for name in mean
    }
    found["seconds_per_proposal_1000_null"] = "not measured: see --thousand"
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
