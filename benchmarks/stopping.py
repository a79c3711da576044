"""Early stopping on and off at equal compute: hypervolume of searches with simulated time.

    python benchmarks/stopping.py --measure 8 --data FOLDER --curves FILE    # real curves, the problem's ground
    python benchmarks/stopping.py [--quick] [--seeds 5] [--full 40] --curves FILE

Measured: random archs of ``demo``, each trained --steps steps (2 crops of 256 px, no teacher) from its slice of
``mini`` and from the trunk's linear start (arm "klt"); R-D loss at the two rungs as a search sees it, R-D cost on the
built-in photographs at the end, processor seconds per step and for what is around the steps.

Simulated: final BD-rates and MACs are the table of benchmarks/search.py. A trial's loss at a rung is drawn once per
arch, normal in its logarithm, with the means, deviations and correlations that were measured (Pearson, between both
rungs and the end, per start). Its seconds follow from its MACs by a line fitted to the measured ones. Everything else
is the product's own: a ``Study`` with its sampler, ``Study.goes_on`` (successive_halving.py) at the rungs, trials told
as a search tells them; one trial at a time. Both arms have the seconds of --full trials that run to their end. With
few curves the correlations are rough: their bootstrap interval is in the result.

The last line is JSON: by start and arm, the share of the true front's hypervolume (mean and standard error over seeds)
and how many trials ran; ``gain`` is on minus off, with its standard error over seeds.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import torch
from harness import add_out, family, finish, keep, newest, options
from search import Table, about_us

from nas_kd.codec.arch import Arch
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.data.images import crop_pool, open_images
from nas_kd.distillation.training import CropPool, Recipe, Run
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate
from nas_kd.reasons import Reason
from nas_kd.seeds import derived_seed
from nas_kd.study.record import Outcome
from nas_kd.study.study import Settings, Study
from nas_kd.study.successive_halving import rungs_of
from nas_kd.study.task import SLICE_LR
from nas_kd.study.trial import rd_cost

STARTS = ("slice", "klt")


def measure(n: int, steps: int, data: str, out: Path) -> None:
    """Real curves; the file is written anew after each and gone on from."""
    space, shared = load_space("demo"), family()
    crops = torch.from_numpy(crop_pool(open_images(data, "train", 0), 128, 256, 0))
    images = open_images("builtin", "eval")
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    done = {(row["start"], row["key"]) for row in rows}
    for i in range(n):
        arch = space.draw(derived_seed(0, "curve", i))
        for start in STARTS:
            if (start, arch.key) in done:
                continue
            rows.append(curve(arch, start, shared, CropPool(crops), images, steps))
            keep(out, {"steps": steps, "rows": rows} | about_us())
            print(
                f"{i + 1} of {n}, {start}: {rows[-1]['rungs']}, {rows[-1]['end']:.4f}", flush=True
            )


def curve(arch: Arch, start: str, shared, pool: CropPool, images, steps: int) -> dict:
    torch.manual_seed(derived_seed(0, "init", arch.key))
    if start == "slice":
        student = shared.student(arch)
    else:
        student = Student(arch, LMBDAS)
        student.start_from(pool.crops.float() / 255)
    lr = 1e-3 * (SLICE_LR if start == "slice" else 1.0)
    seen: list[tuple[int, float]] = []
    began = time.process_time()
    Run(student, pool, Recipe(steps, 2, lr)).run(
        lambda step, terms: seen.append((step, terms["rd"]))
    )
    steps_s = time.process_time() - began
    measured = evaluate(StudentCodec(student.eval()), images)
    rungs, since = {}, 0
    for rung in rungs_of(steps):  # means since the last rung, as a worker has them
        at = next(step for step, _ in seen if step >= rung)
        rungs[str(rung)] = float(np.mean([v for step, v in seen if since < step <= at]))
        since = at
    return {
        "key": arch.key,
        "start": start,
        "macs": arch_cost(arch).total.macs,
        "rungs": rungs,
        "end": rd_cost(measured, LMBDAS),
        "s_per_step": steps_s / steps,
        "around_s": time.process_time() - began - steps_s,
    }


@dataclass
class Curves:
    """What the measured trials of one start say of all."""

    steps: int
    mean: np.ndarray
    """[3] of the logarithms at the rungs, in order, and at the end."""
    sd: np.ndarray
    correlation: np.ndarray
    """[3, 3]"""
    interval: list[list[float]]
    """Of each rung's correlation with the end: bootstrap, 95 per cent."""
    line: tuple[float, float]
    """Seconds per step: per MAC, and at none."""
    around_s: float

    @classmethod
    def of(cls, rows: list[dict], steps: int) -> Curves:
        there = np.log([[*row["rungs"].values(), row["end"]] for row in rows])
        random, n = np.random.default_rng(0), len(rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = [np.corrcoef(there[random.integers(n, size=n)].T)[:2, 2] for _ in range(2000)]
        line = np.polyfit([r["macs"] for r in rows], [r["s_per_step"] for r in rows], 1)
        around = float(np.mean([row["around_s"] for row in rows]))
        interval = np.nanpercentile(drawn, [2.5, 97.5], axis=0).T.tolist()
        mean, sd = there.mean(axis=0), there.std(axis=0, ddof=1)
        return cls(steps, mean, sd, np.corrcoef(there.T), interval, (line[0], line[1]), around)

    def seconds(self, macs: float, steps: int) -> float:
        return max(self.line[0] * macs + self.line[1], 1e-3) * steps

    def losses(self, arch: Arch, z: float) -> list[float]:
        """At both rungs, of an arch whose final quality is ``z`` standard deviations from the mean."""
        to_end, among = self.correlation[:2, 2], self.correlation[:2, :2]
        left = among - np.outer(to_end, to_end)
        random = np.random.default_rng(derived_seed(0, "rungs", arch.key))
        drawn = random.multivariate_normal(to_end * z, left, check_valid="ignore")
        return np.exp(self.mean[:2] + self.sd[:2] * drawn).tolist()


def run(table: Table, curves: Curves, settings: Settings, budget_s: float) -> dict[str, float]:
    """A search until the simulated seconds are spent."""
    study, clock, ended, points = Study(settings), 0.0, 0, []
    rates = np.array([p[0] for p in table.values.values()])
    trials = 0
    while clock < budget_s:
        asked = study.ask(10**9)
        assert asked is not None
        number, arch = asked
        rate, macs = table.value(arch)
        losses = curves.losses(arch, float((rate - rates.mean()) / rates.std()))
        steps, stopped = curves.steps, None
        for rung, loss in zip(rungs_of(curves.steps), losses, strict=True):
            if settings.early_stopping and not study.goes_on(number, rung, [loss, macs]):
                steps, stopped = rung, Reason.STOPPED.because(rung)
                break
        clock += curves.seconds(macs, steps) + (0.0 if stopped else curves.around_s)
        trials += 1
        if clock > budget_s:
            break  # it would have ended too late
        study.tell(number, Outcome(None if stopped else [rate, macs], stopped))
        if not stopped:
            ended += 1
            points.append((rate, macs))
    return {"share": table.share(points), "trials": trials, "ended": ended}


def compare(table: Table, curves: Curves, full: int, seeds: int, sampler: str) -> dict:
    """Both arms with the same seconds."""
    macs = np.mean([p[1] for p in table.values.values()])
    budget_s = full * (curves.seconds(macs, curves.steps) + curves.around_s)
    found: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    for seed in range(seeds):
        for arm in found:
            with tempfile.TemporaryDirectory() as scratch:
                os.chdir(scratch)
                settings = Settings(
                    name="s",
                    space="demo",
                    objectives=("bd_rate", "flops"),
                    steps=curves.steps,
                    sampler=sampler,
                    early_stopping=arm == "on",
                    seed=seed,
                )
                found[arm].append(run(table, curves, settings, budget_s))
                os.chdir("/")
            print(f"seed {seed}, {arm}: {found[arm][-1]}", flush=True)
    gain = [on["share"] - off["share"] for on, off in zip(found["on"], found["off"], strict=True)]
    return {arm: mean_of(rows) for arm, rows in found.items()} | {
        "gain": mean_and_error(gain),
        "budget_s": budget_s,
        "correlation_with_the_end": curves.correlation[:2, 2].tolist(),
        "bootstrap_95": curves.interval,
    }


def mean_of(rows: list[dict[str, float]]) -> dict:
    shares = mean_and_error([row["share"] for row in rows])
    counts = {name: float(np.mean([row[name] for row in rows])) for name in ("trials", "ended")}
    return {"hv_ratio": shares} | counts


def mean_and_error(values: list[float]) -> list[float | None]:
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return [float(np.mean(values)), error]


def main() -> None:
    parser = options(__doc__, quick="1 seed, the seconds of 12 trials, a sample of archs")
    add_out(parser, "stopping")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--full", type=int, default=40)
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--curves", type=Path, default=newest("curves"))
    parser.add_argument("--slices", type=Path, default=newest("slices"))
    parser.add_argument("--measure", type=int, default=0, help="archs to train for their curves")
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--data", default="builtin")
    args = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    files = [None if p is None else p.resolve() for p in (args.curves, args.slices, args.out)]
    if args.measure:
        measure(args.measure, args.steps, args.data, files[0])
        return
    if args.quick:
        args.seeds, args.full = 1, 12
    there = json.loads(files[0].read_text())
    table = Table("demo", files[1], *((2000, 10) if args.quick else (None, 0)))
    result: dict = {"benchmark": "stopping", "full_trials": args.full, "seeds": args.seeds}
    result |= {"sampler": args.sampler, "curves": files[0].name}
    for start in STARTS:
        rows = [row for row in there["rows"] if row["start"] == start]
        curves = Curves.of(rows, there["steps"])
        result[start] = compare(table, curves, args.full, args.seeds, args.sampler)
        result[start]["measured_trials"] = len(rows)
    finish(result | about_us(), files[2])


if __name__ == "__main__":
    main()
