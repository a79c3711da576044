"""Shared weights against starting from nothing at equal compute: the hypervolume that the same archs reach.

    python benchmarks/equal.py [--quick] [--archs 200] [--data FOLDER]

"sharing" pays for a warm-up, scores every arch straight from its slice, and again after a few steps of its own;
"scratch" trains the same archs from the linear shortcut alone, each with as many steps as make the whole study's
processor seconds the same: warm-up, steps and evaluation. Both learn from the teacher's outputs, whose computation
either would pay for alike: it is left out. Archs are drawn at random, so that no sampler has a part in the difference.
Finished students are kept in the cache: the same command goes on.

Hypervolume of (BD-rate, MACs), where a student without a BD-rate adds nothing, and of (R-D cost, MACs), where every
student counts; each as a share of what both arms reach together, with a bootstrap interval over archs of the
difference. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sharing import SLICE_LR, scene, score, started_from

from nas_kd.data import derived_seed
from nas_kd.distill import Weights
from nas_kd.front import hypervolume
from nas_kd.macs import arch_cost
from nas_kd.space import Arch, load_space
from nas_kd.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teacher import load_teacher
from nas_kd.train import Recipe, Run
from nas_kd.warmup import warm_up
from nas_kd.weights import write_text

RESAMPLES = 1000


def job(task: tuple[str, str, str, tuple[int, ...], Path]) -> dict:
    """One arch, looked at after each number of steps; from its file where it was done before."""
    setup, arch_json, init, stops, file = task
    if file.is_file():
        return json.loads(file.read_text())
    torch.set_num_threads(1)
    pool, images, anchor, shared = scene(setup)
    arch = Arch.from_json(json.loads(arch_json))
    torch.manual_seed(derived_seed(0, "init", arch.key))
    student = started_from(init, arch, shared, pool)
    recipe = Recipe(max(stops[-1], 1))
    if init == "slice":
        recipe = replace(recipe, lr=recipe.lr * SLICE_LR)
    run = Run(student, pool, recipe, Weights(), pool.latent_widths)
    looks, train_s = {}, 0.0
    for stop in stops:
        began = time.process_time()
        if stop:
            run.run(until=stop)
        train_s += time.process_time() - began
        began = time.process_time()
        look = score(student.eval(), images, anchor)
        looks[stop] = look | {"train_s": train_s, "look_s": time.process_time() - began}
    macs = arch_cost(arch).total.macs
    done = {"arch": str(arch), "macs": macs, "init": init, "looks": looks}
    write_text(file, json.dumps(done))
    return json.loads(file.read_text())


def arm(workers, args, setup: str, init: str, stops: tuple[int, ...]) -> list[dict]:
    """Every arch of a study from one start."""
    space = load_space("demo")
    folder = args.cache / f"{init}-{'-'.join(map(str, stops))}"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for i in range(args.archs):
        arch = json.dumps(space.draw(derived_seed(0, "arch", i)).to_json())
        tasks.append((setup, arch, init, stops, folder / f"{i}.json"))
    found = []
    for done in workers.imap(job, tasks):
        found.append(done)
        if len(found) % 10 == 0:
            print(f"{init}: {len(found)} of {args.archs}", flush=True)
    return found


def cost_s(rows: list[dict], stop: int) -> float:
    """Processor seconds of a study whose trials have so many steps and one look."""
    looks = [row["looks"][str(stop)] for row in rows]
    return sum(look["train_s"] + look["look_s"] for look in looks)


def fair_steps(rows: list[dict], stop: int, seconds: float) -> int:
    """Steps per trial from nothing that spend these seconds, with what steps and looks cost from slices."""
    looks = [row["looks"][str(stop)] for row in rows]
    step_s = sum(look["train_s"] for look in looks) / stop
    return max(1, round((seconds - sum(look["look_s"] for look in looks)) / step_s))


def compare(sharing: list[dict], scratch: list[dict], steps: tuple[int, int]) -> dict:
    """Both arms at the same archs: shares of the hypervolume, and their difference over resampled archs."""
    found: dict = {"steps": dict(zip(("sharing", "scratch"), steps, strict=True))}
    both = [
        [row["looks"][str(stop)] | {"macs": row["macs"]} for row in rows]
        for rows, stop in zip((sharing, scratch), steps, strict=True)
    ]
    found["valid_bd_share"] = [float(np.mean([r["bd"] is not None for r in rows])) for rows in both]
    found["mean_log_cost_percent"] = [float(np.mean([r["loss"] for r in rows])) for rows in both]
    for name, key in (("bd_rate", "bd"), ("rd_cost", "loss")):
        points = [
            [None if row[key] is None else (row[key], float(row["macs"])) for row in rows]
            for rows in both
        ]
        there = [p for rows in points for p in rows if p is not None]
        if not there:
            found[name] = None
            continue
        corner = tuple(max(p[i] for p in there) * 1.05 for i in (0, 1))
        whole = hypervolume(there, corner)

        def share(rows, corner=corner, whole=whole) -> float:
            left = [p for p in rows if p is not None]
            return hypervolume(left, corner) / whole if left else 0.0

        shares = [share(rows) for rows in points]
        random, gains = np.random.default_rng(0), []
        for _ in range(RESAMPLES):
            drawn = random.integers(len(sharing), size=len(sharing))
            gains.append(
                share([points[0][i] for i in drawn]) - share([points[1][i] for i in drawn])
            )
        found[name] = {
            "sharing": shares[0],
            "scratch": shares[1],
            "gain": shares[0] - shares[1],
            "gain_95": np.percentile(gains, [2.5, 97.5]).tolist(),
            "best": [min((p[0] for p in rows if p is not None), default=None) for rows in points],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--archs", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=2000, help="steps")
    parser.add_argument("--steps", type=int, default=25, help="of a trial from its slice")
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--crops", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/nas-kd-equal"))
    args = parser.parse_args()
    if args.quick:
        args.archs, args.warmup, args.steps, args.crops = 6, 20, 5, 64
        args.cache = args.cache.with_name(args.cache.name + "-quick")
    torch.set_num_threads(1)
    space, teacher = load_space("demo"), load_teacher("mini")
    pool = target_pool(args.cache / "targets", teacher, PoolRecipe(args.data, args.crops, 128, 0))
    note = args.cache / f"warmup-{args.warmup}.json"
    began, opened = time.process_time(), TargetPool(pool)
    shared = warm_up(
        args.cache / "shared",
        space,
        teacher.lmbdas,
        opened,
        Recipe(args.warmup, decay=0.35),  # as those that come with nas-kd were trained
        Weights(),
    )
    if not note.is_file():
        write_text(note, json.dumps(time.process_time() - began))
    warm_s = json.loads(note.read_text())
    setup = json.dumps({"space": "demo", "pool": str(pool), "shared": str(shared)})
    with multiprocessing.get_context("spawn").Pool(args.workers) as workers:
        sharing = arm(workers, args, setup, "slice", (0, args.steps))
        looks = (0, args.steps)
        fair = tuple(
            fair_steps(sharing, args.steps, warm_s + cost_s(sharing, stop)) for stop in looks
        )
        scratch = arm(workers, args, setup, "scratch", fair)
    compared = [
        compare(sharing, scratch, pair)
        | {"cpu_s": [warm_s + cost_s(sharing, pair[0]), cost_s(scratch, pair[1])]}
        for pair in zip(looks, fair, strict=True)
    ]
    result = {
        "benchmark": "equal",
        "date": time.strftime("%F"),
        "space": "demo",
        "archs": args.archs,
        "warmup": {"steps": args.warmup, "cpu_s": warm_s},
        "data_fingerprint": opened.key,
        "order": "values of two: sharing, scratch",
        "ranked_by_slices": compared[0],
        "trained_from_slices": compared[1],
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
