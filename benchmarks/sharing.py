"""What shared weights are worth: do slices rank archs as full training does, and how many steps do they save?

One warm-up of the space, then for each of some random archs: its slice as it is, its slice distilled briefly, and a
student distilled from nothing, briefly and fully. Beside it the control: the same students without a teacher.

    python benchmarks/sharing.py --quick
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from nas_kd.bd import bd_rate
from nas_kd.data import derived_seed, open_images
from nas_kd.distill import CONTROL, Weights
from nas_kd.evaluate import StudentCodec, evaluate
from nas_kd.prepare import interval_db
from nas_kd.space import Arch, load_space
from nas_kd.student import Student
from nas_kd.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teacher import load_teacher
from nas_kd.train import Recipe, Run
from nas_kd.warmup import load_shared, warm_up

LOOKS = (50, 100, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000)


@cache
def scene(setup: str):
    """What every process needs, once: pool, teacher's curve and interval, shared weights."""
    s = json.loads(setup)
    teacher, images = load_teacher("mini"), open_images("builtin", "eval")
    curve = evaluate(teacher, images).curve()
    space = load_space(s["space"])
    shared = load_shared(Path(s["shared"]), space, teacher.lmbdas)
    return TargetPool(Path(s["pool"])), images, curve, shared


def score(student: Student, images, anchor) -> dict:
    """BD-rate against the teacher and the mean log R-D loss over levels (per cent), estimated rates."""
    measured = evaluate(StudentCodec(student), images)
    curve = measured.curve()
    rate = bd_rate(anchor, curve, interval_db(anchor))
    mse = 10 ** (-np.array(curve.psnr_db) / 10)
    loss = np.log(np.array(curve.bpp) + np.array(student.lmbdas) * 255**2 * mse)
    return {"bd": rate.value, "reason": rate.reason, "loss": 100 * float(loss.mean())}


def job(task: tuple[str, str, str, int, int, bool]) -> dict:
    """Train one student and look at it on the way."""
    setup, arch_json, init, steps, seed, control = task
    torch.set_num_threads(1)
    pool, images, anchor, shared = scene(setup)
    arch = Arch.from_json(json.loads(arch_json))
    torch.manual_seed(derived_seed(seed, "init", arch.key))
    student = shared.student(arch) if init == "slice" else Student(arch, shared.lmbdas)
    if init == "scratch":
        student.initialise_linear(pool.pictures())
    looks, started = {}, time.process_time()
    if init == "slice":
        looks[0] = score(student.eval(), images, anchor)
    weights = CONTROL if control else Weights()
    run = Run(student, pool, Recipe(steps, seed=seed), weights, pool.latent_widths)
    for stop in [n for n in LOOKS if n < steps] + [steps]:
        run.run(until=stop)
        looks[run.step] = score(student.eval(), images, anchor)
    return {
        "arch": str(arch),
        "init": init,
        "seed": seed,
        "control": control,
        "steps": steps,
        "looks": looks,
        "cpu_s": time.process_time() - started,
    }


def interval(values_a, values_b, n=2000) -> dict:
    """Spearman correlation with its bootstrap interval (95 %)."""
    a, b = np.array(values_a, float), np.array(values_b, float)
    generator = np.random.default_rng(0)
    draws = [generator.integers(0, len(a), len(a)) for _ in range(n)]
    rhos = [
        spearmanr(a[d], b[d]).statistic for d in draws if len(set(a[d])) > 1 and len(set(b[d])) > 1
    ]
    low, high = np.nanpercentile(rhos, [2.5, 97.5])
    return {"rho": float(spearmanr(a, b).statistic), "low": float(low), "high": float(high)}


def steps_to_reach(looks: dict[int, dict], goal: float) -> float | None:
    """Steps after which the R-D loss is at the goal, interpolated; None where it never is."""
    points = sorted((int(n), look["loss"]) for n, look in looks.items())
    for (n0, a), (n1, b) in zip(points, points[1:], strict=False):
        if b <= goal:
            return n0 + (n1 - n0) * (a - goal) / (a - b) if a > goal else float(n0)
    return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--space", default="demo")
    parser.add_argument("--archs", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=3000)
    parser.add_argument("--full", type=int, default=1500)
    parser.add_argument("--short", type=int, default=100)
    parser.add_argument("--kd-archs", type=int, default=2)
    parser.add_argument("--kd-seeds", type=int, default=3)
    parser.add_argument("--crops", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/nas-kd-sharing"))
    args = parser.parse_args()
    if args.quick:
        args.archs, args.warmup, args.full, args.short = 4, 40, 40, 10
        args.kd_archs, args.kd_seeds, args.crops = 1, 2, 64
    space, teacher = load_space(args.space), load_teacher("mini")
    recipe = PoolRecipe("builtin", args.crops, 128, 0)
    pool = target_pool(args.cache / "targets", teacher, recipe)
    started = time.process_time()
    shared = warm_up(
        args.cache / "shared",
        space,
        teacher.lmbdas,
        TargetPool(pool),
        Recipe(args.warmup),
        Weights(),
    )
    warm_s = time.process_time() - started
    print(f"warm-up: {warm_s:.0f} s of processor time", flush=True)
    setup = json.dumps({"space": args.space, "pool": str(pool), "shared": str(shared)})
    archs = [
        json.dumps(space.draw(derived_seed(0, "arch", i)).to_json()) for i in range(args.archs)
    ]
    tasks = [(setup, a, "slice", args.short, 0, False) for a in archs]
    tasks += [(setup, a, "scratch", args.short, 0, False) for a in archs]
    tasks += [(setup, a, "scratch", args.full, 0, False) for a in archs]
    for a in archs[: args.kd_archs]:
        for seed in range(args.kd_seeds):
            tasks += [(setup, a, "scratch", args.full, seed, True)]
            tasks += [(setup, a, "scratch", args.full, seed, False)] if seed else []
    results = []
    with multiprocessing.get_context("spawn").Pool(args.workers) as workers:
        for done in workers.imap(job, tasks):
            results.append(done)
            last = done["looks"][max(done["looks"])]
            print(
                f"{len(results)}/{len(tasks)} {done['init']} {done['steps']} kd={not done['control']} "
                f"{done['arch']}: {last}",
                flush=True,
            )
    summary = summarise(args, archs, results, warm_s)
    print(json.dumps(summary))


def summarise(args, archs, results, warm_s) -> dict:
    n = len(archs)
    slices, brief, full = results[:n], results[n : 2 * n], results[2 * n : 3 * n]

    def loss(result, step):
        return result["looks"][step]["loss"]

    truth = [loss(r, args.full) for r in full]
    ratios = []
    for s, f in zip(slices, full, strict=True):
        reached = steps_to_reach(f["looks"], loss(s, args.short))
        ratios.append(None if reached is None else reached / args.short)
    known = [r for r in ratios if r is not None]
    valid = [r["looks"][0]["bd"] is not None for r in slices]
    pairs = kd_pairs(args, results[2 * n :])
    return {
        "space": args.space,
        "archs": n,
        "warmup_steps": args.warmup,
        "warmup_cpu_s": warm_s,
        "full_steps": args.full,
        "short_steps": args.short,
        "spearman_slice": interval([loss(r, 0) for r in slices], truth),
        "spearman_slice_short": interval([loss(r, args.short) for r in slices], truth),
        "spearman_scratch": interval([loss(r, args.short) for r in brief], truth),
        "steps_ratio": float(np.median(known)) if len(known) > n / 2 else None,
        "steps_ratio_unreached": ratios.count(None),
        "steps_ratio_at_least": args.full / args.short,
        "valid_bd_share": sum(valid) / n,
        "kd_gain_percent": pairs,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} cores",
        "results": [{**r, "looks": r["looks"]} for r in results],
    }


def kd_pairs(args, rows) -> dict:
    """Paired difference of the R-D loss (per cent; positive: distillation helps), mean and t interval."""
    with_kd = {(r["arch"], r["seed"]): r for r in rows if not r["control"]}
    gains = [
        r["looks"][args.full]["loss"] - with_kd[r["arch"], r["seed"]]["looks"][args.full]["loss"]
        for r in rows
        if r["control"] and (r["arch"], r["seed"]) in with_kd
    ]
    half = float(2.0 * np.std(gains, ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else None
    return {"mean": float(np.mean(gains)), "half_width": half, "pairs": len(gains)}


if __name__ == "__main__":
    main()
