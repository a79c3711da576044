"""Shared weights against starting from nothing at equal compute: the hypervolume that the same archs reach.

    python benchmarks/equal.py [--quick] [--archs 200] [--data FOLDER]

"sharing" pays for a warm-up and scores every arch straight from its slice, without a step of its own; "scratch" trains
the same archs from their linear start alone, each with as many steps as make the whole study's processor seconds the
same: warm-up, steps and evaluation. Both learn from the teacher's outputs, whose computation either would pay for:
it is left out. Archs are drawn at random, so that no sampler has a part in the difference. Finished students are kept
in the cache: the same command goes on.

Hypervolume of (BD-rate, MACs), where a student without a BD-rate adds nothing, and of (R-D cost, MACs), where every
student counts; each as a share of what both arms reach together, with a bootstrap interval over archs of the
difference. The last line is JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
from harness import add_out, finish, hardware, options
from sharing import scene, score, started_from

from nas_kd.codec.arch import Arch
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.distillation.loss import Weights
from nas_kd.distillation.training import Recipe, Run
from nas_kd.files import write_text
from nas_kd.seeds import derived_seed
from nas_kd.study.front import hypervolume
from nas_kd.supernet.warmup import warm_up
from nas_kd.teachers.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teachers.teacher import load_teacher

RESAMPLES = 1000
TIMED = 20
"""Steps by which it is found out how long one takes from nothing."""


def job(task: tuple[str, str, str, int, Path]) -> dict:
    """One arch, trained and scored; from its file where it was done before."""
    setup, arch_json, init, steps, file = task
    if file.is_file():
        return json.loads(file.read_text())
    torch.set_num_threads(1)
    pool, images, anchor, shared = scene(setup)
    arch = Arch.from_json(json.loads(arch_json))
    torch.manual_seed(derived_seed(0, "init", arch.key))
    student = started_from(init, arch, shared, pool)
    began = time.process_time()
    if steps:
        Run(student, pool, Recipe(steps), Weights(), pool.latent_widths).run()
    trained = time.process_time()
    done = score(student.eval(), images, anchor)
    done |= {"train_s": trained - began, "score_s": time.process_time() - trained}
    done |= {"arch": str(arch), "macs": arch_cost(arch).total.macs, "init": init, "steps": steps}
    write_text(file, json.dumps(done))
    return done


def arm(workers, args, setup: str, init: str, steps: int, archs: int) -> list[dict]:
    """The archs of a study from one start."""
    space = load_space("demo")
    folder = args.cache / f"{init}-{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for i in range(archs):
        arch = json.dumps(space.draw(derived_seed(0, "arch", i)).to_json())
        tasks.append((setup, arch, init, steps, folder / f"{i}.json"))
    found = []
    for done in workers.imap(job, tasks):
        found.append(done)
        if len(found) % 10 == 0:
            print(f"{init}, {steps} steps: {len(found)} of {archs}", flush=True)
    return found


def compare(sharing: list[dict], scratch: list[dict]) -> dict:
    """Both arms at the same archs: shares of the hypervolume, and their difference over resampled archs."""
    both, found = (sharing, scratch), dict[str, object]()
    found["valid_bd_share"] = [float(np.mean([r["bd"] is not None for r in rows])) for rows in both]
    found["mean_log_cost_percent"] = [float(np.mean([r["loss"] for r in rows])) for rows in both]
    for name, key in (("bd_rate", "bd"), ("rd_cost", "loss")):
        points = [
            [None if row[key] is None else (row[key], float(row["macs"])) for row in rows]
            for rows in both
        ]
        found[name] = shares_of(points)
    return found


def shares_of(points: list[list[tuple[float, float] | None]]) -> dict | None:
    """Of two lists of points, None where there is no value: None where neither has one."""
    there = [p for rows in points for p in rows if p is not None]
    if not there:
        return None
    corner = tuple(max(p[i] for p in there) * 1.05 for i in (0, 1))
    whole = hypervolume(there, corner)

    def share(rows) -> float:
        left = [p for p in rows if p is not None]
        return hypervolume(left, corner) / whole if left else 0.0

    shares = [share(rows) for rows in points]
    random, gains, n = np.random.default_rng(0), [], len(points[0])
    for _ in range(RESAMPLES):
        drawn = random.integers(n, size=n)
        gains.append(share([points[0][i] for i in drawn]) - share([points[1][i] for i in drawn]))
    return {
        "shares": shares,
        "gain": shares[0] - shares[1],
        "gain_95": np.percentile(gains, [2.5, 97.5]).tolist(),
        "best": [min((p[0] for p in rows if p is not None), default=None) for rows in points],
    }


def mean_of(rows: list[dict], *keys: str) -> float:
    return float(np.mean([sum(row[key] for key in keys) for row in rows]))


def main() -> None:
    parser = options(__doc__)
    add_out(parser, "equal")
    parser.add_argument("--archs", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=2000, help="steps")
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--crops", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/nas-kd-equal"))
    args = parser.parse_args()
    if args.quick:
        args.archs, args.warmup, args.crops = 6, 20, 16
        args.cache = args.cache.with_name(args.cache.name + "-quick")
    torch.set_num_threads(1)
    space, teacher = load_space("demo"), load_teacher("mini")
    pool = target_pool(args.cache / "targets", teacher, PoolRecipe(args.data, args.crops))
    note = args.cache / f"warmup-{args.warmup}.json"
    began, opened = time.process_time(), TargetPool(pool)
    shared = warm_up(
        args.cache / "shared",
        space,
        teacher.lmbdas,
        opened,
        Recipe(args.warmup),
        Weights(),
    )
    if not note.is_file():
        write_text(note, json.dumps(time.process_time() - began))
    warm_s = json.loads(note.read_text())
    setup = json.dumps({"space": "demo", "pool": str(pool), "shared": str(shared)})
    with multiprocessing.get_context("spawn").Pool(args.workers) as workers:
        sharing = arm(workers, args, setup, "slice", 0, args.archs)
        each_s = warm_s / args.archs + mean_of(sharing, "score_s")
        first = arm(workers, args, setup, "scratch", TIMED, min(args.archs, 8))
        step_s = mean_of(first, "train_s") / TIMED
        steps = max(1, round((each_s - mean_of(first, "score_s")) / step_s))
        scratch = arm(workers, args, setup, "scratch", steps, args.archs)
    result = {
        "benchmark": "equal",
        "space": "demo",
        "archs": args.archs,
        "warmup": {"steps": args.warmup, "cpu_s": warm_s},
        "scratch_steps": steps,
        "order": "sharing, scratch",
        "cpu_s": [each_s * args.archs, mean_of(scratch, "train_s", "score_s") * args.archs],
        **compare(sharing, scratch),
        "targets": opened.key,
        "seed": 0,
        **hardware(),
    }
    finish(result, args.out)


if __name__ == "__main__":
    main()
