"""What shared weights are worth: do slices rank archs as full training does, and how many steps do they save?

Shared weights of the space (a warm-up, or those of the family teacher that comes with nas-kd), then for some random
archs: the slice as it is, the slice distilled briefly and fully, and a student distilled from nothing, briefly and
fully. Slices train at the share of the learning rate that trials take. Beside it the control: the same trials without
a teacher, and a few students from nothing for long, to see when they are where a slice is. Finished students are kept
in the cache: the same command goes on.

    python benchmarks/sharing.py --quick
    python benchmarks/sharing.py --family --data photographs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from harness import add_out, family, finish, hardware, options, rd_loss
from scipy.stats import spearmanr, t

from nas_kd.codec.arch import Arch
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import Student
from nas_kd.data.images import open_images
from nas_kd.distillation.loss import CONTROL, Weights
from nas_kd.distillation.training import Recipe, Run
from nas_kd.evaluation.bd_rate import bd_rate
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate
from nas_kd.files import write_text
from nas_kd.seeds import derived_seed
from nas_kd.study.anchor import interval_db
from nas_kd.study.task import SLICE_LR
from nas_kd.supernet.channel_order import ordered
from nas_kd.supernet.from_teacher import Inherited, as_student, is_family
from nas_kd.supernet.warmup import CARD, load_shared, warm_up
from nas_kd.teachers.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teachers.teacher import load_teacher

LOOKS = (50, 100, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000)


TEACHERS = ("teacher", "teacher as it is")
"""Slices of the teacher with its channels in the order of their importance, and without."""


@cache
def scene(setup: str):
    """What every process needs, once: pool, teacher's curve and interval, shared weights."""
    s = json.loads(setup)
    teacher, images = load_teacher("mini"), open_images("builtin", "eval")
    curve = evaluate(teacher, images).curve()
    space = load_space(s["space"])
    warmed = s["shared"]
    shared = load_shared(Path(warmed), space, teacher.lmbdas) if warmed else family()
    return TargetPool(Path(s["pool"])), images, curve, shared


def score(student: Student, images, anchor) -> dict:
    """BD-rate against the teacher and the mean log R-D loss over levels (per cent), estimated rates."""
    measured = evaluate(StudentCodec(student), images)
    curve = measured.curve()
    rate = bd_rate(anchor, curve, interval_db(anchor))
    return {"bd": rate.value, "reason": rate.reason, "loss": rd_loss(curve, student.lmbdas)}


def started_from(init: str, arch: Arch, shared, pool: TargetPool) -> Student:
    """A student before its first step: a slice of the shared weights or of the teacher, or a transform codec."""
    if init == "slice":
        return shared.student(arch)
    if init in TEACHERS:
        wide = as_student(load_teacher("mini"))
        return Inherited(ordered(wide) if init == "teacher" else wide).student(arch)
    student = Student(arch)
    student.start_from(pool.pictures())
    return student


def cuts() -> list[str]:
    """Two archs that are parts of the teacher: fewer latents, and three quarters of every width."""
    arch = as_student(load_teacher("mini")).arch

    def narrow(side):
        return replace(side, widths=tuple(w * 3 // 4 for w in side.widths))

    latents = replace(arch, M=192)
    narrower = replace(
        latents,
        encoder=narrow(arch.encoder),
        decoder=narrow(arch.decoder),
        hyper=arch.hyper * 3 // 4,
    )
    return [json.dumps(a.to_json()) for a in (latents, narrower)]


def job(task: tuple[str, str, str, int, int, bool]) -> dict:
    """Train one student and look at it on the way."""
    setup, arch_json, init, steps, seed, control = task
    torch.set_num_threads(1)
    pool, images, anchor, shared = scene(setup)
    arch = Arch.from_json(json.loads(arch_json))
    torch.manual_seed(derived_seed(seed, "init", arch.key))
    student = started_from(init, arch, shared, pool)
    looks, started = {}, time.process_time()
    if init != "scratch":
        looks[0] = score(student.eval(), images, anchor)
    weights = CONTROL if control else Weights()
    recipe = Recipe(steps, lr=Recipe(steps).lr * (SLICE_LR if init == "slice" else 1.0), seed=seed)
    run = Run(student, pool, recipe, weights, pool.latent_widths)
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


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = options(__doc__)
    add_out(parser, "sharing")
    parser.add_argument("--space", default="demo")
    parser.add_argument("--archs", type=int, default=16)
    parser.add_argument("--family", action="store_true", help="slices of the teacher mini")
    parser.add_argument("--warmup", type=int, default=3000)
    parser.add_argument("--full", type=int, default=1500)
    parser.add_argument("--short", type=int, default=100)
    parser.add_argument(
        "--long", type=int, default=0, help="steps from nothing, of the first archs"
    )
    parser.add_argument("--long-cut", type=int, help="of a part of the teacher [default: --long]")
    parser.add_argument("--long-archs", type=int, default=2)
    parser.add_argument("--kd-archs", type=int, default=2)
    parser.add_argument("--kd-seeds", type=int, default=3)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--crops", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/nas-kd-sharing"))
    args = parser.parse_args()
    if args.quick:
        args.archs, args.warmup, args.full, args.short = 4, 40, 40, 10
        args.kd_archs, args.kd_seeds, args.crops = 1, 2, 16
    return args


def shared_weights(
    args: argparse.Namespace, space, teacher, pool: Path
) -> tuple[Path | None, float]:
    """Their folder, None for the teacher's own, and the processor time that making them took."""
    if args.family:
        if not is_family(teacher, space):
            raise SystemExit(f"mini is not the family of {space.name}: leave out --family")
        return None, 0.0
    started, recipe = time.process_time(), Recipe(args.warmup)
    cache, opened = args.cache / "shared", TargetPool(pool)
    return warm_up(
        cache, space, teacher.lmbdas, opened, recipe, Weights()
    ), time.process_time() - started


def tasks_of(args: argparse.Namespace, setup: str, archs: list[str]) -> list[tuple]:
    """Everything to train, what decides most first."""
    tasks = [(setup, a, "slice", args.full, 0, False) for a in archs]
    tasks += [(setup, a, "slice", args.short, 0, False) for a in archs]
    tasks += [(setup, a, "scratch", args.short, 0, False) for a in archs]
    for seed in range(args.kd_seeds):
        for a in archs[: args.kd_archs]:
            tasks += [(setup, a, "slice", args.full, seed, True)]
            tasks += [(setup, a, "slice", args.full, seed, False)] if seed else []
    tasks += [(setup, a, "scratch", args.full, 0, False) for a in archs]
    for a in cuts():
        tasks += [(setup, a, init, args.full, 0, False) for init in (*TEACHERS, "scratch")]
    if args.long:
        tasks += [(setup, cuts()[-1], "scratch", args.long_cut or args.long, 0, False)]
        tasks += [(setup, a, "scratch", args.long, 0, False) for a in archs[: args.long_archs]]
    return tasks


def kept(args: argparse.Namespace, tasks: list[tuple]) -> list[dict]:
    """The result of every task: found in the cache, or trained now and put there."""
    folder = args.cache / "results"
    folder.mkdir(parents=True, exist_ok=True)
    names = [hashlib.sha256(json.dumps(task).encode()).hexdigest()[:16] for task in tasks]
    files = [folder / f"{name}.json" for name in names]
    missing = [i for i, file in enumerate(files) if not file.is_file()]
    with multiprocessing.get_context("spawn").Pool(args.workers) as workers:
        trained = workers.imap(job, [tasks[i] for i in missing])
        for n, (i, done) in enumerate(zip(missing, trained, strict=True), start=1):
            write_text(files[i], json.dumps(done))
            last = done["looks"][max(done["looks"])]
            about = f"{done['init']} {done['steps']} kd={not done['control']} {done['arch']}"
            print(f"{n}/{len(missing)} {about}: {last}", flush=True)
    return [json.loads(file.read_text()) for file in files]


def main() -> None:
    args = parsed()
    space, teacher = load_space(args.space), load_teacher("mini")
    recipe = PoolRecipe(args.data, args.crops)
    pool = target_pool(args.cache / "targets", teacher, recipe)
    shared, warm_s = shared_weights(args, space, teacher, pool)
    setup = json.dumps(
        {"space": args.space, "pool": str(pool), "shared": None if shared is None else str(shared)}
    )
    archs = [
        json.dumps(space.draw(derived_seed(0, "arch", i)).to_json()) for i in range(args.archs)
    ]
    results = kept(args, tasks_of(args, setup, archs))
    about = {"family": args.family, "cpu_s": warm_s, "teacher": teacher.fingerprint}
    if shared is not None:
        about["recipe"] = json.loads((shared / CARD).read_text())["recipe"]
    finish(summarise(args, results, about), args.out)


def summarise(args, results, about: dict) -> dict:
    n = args.archs

    def loss(result, step):
        return result["looks"][str(step)]["loss"]

    own = {r["arch"] for r in results[:n]}  # of the space; the rest are parts of the teacher

    def those(init, steps):
        return [
            r
            for r in results
            if r["arch"] in own
            and (r["init"], r["steps"], r["seed"], r["control"]) == (init, steps, 0, False)
        ][:n]

    slices, brief = those("slice", args.short), those("scratch", args.short)
    full, alone = those("slice", args.full), those("scratch", args.full)
    ratios = [
        ratio(s, f, args.short)
        for s, f in zip(slices, those("scratch", args.long or args.full), strict=False)
    ]
    known = [r for r in ratios if r is not None]
    valid = [r["looks"]["0"]["bd"] is not None for r in slices]
    scores = {
        "slice": [loss(r, 0) for r in slices],
        "slice_short": [loss(r, args.short) for r in slices],
        "scratch": [loss(r, args.short) for r in brief],
    }
    truth, truth_alone = [loss(r, args.full) for r in full], [loss(r, args.full) for r in alone]
    return {
        "benchmark": "sharing",
        "space": args.space,
        "archs": n,
        "shared_weights": about,
        "full_steps": args.full,
        "short_steps": args.short,
        **{f"spearman_{name}": interval(found, truth) for name, found in scores.items()},
        "against_full_from_scratch": {
            **{f"spearman_{name}": interval(found, truth_alone) for name, found in scores.items()},
            "spearman_full_from_slice": interval(truth, truth_alone),
        },
        "steps_ratio": float(np.median(known)) if len(known) > len(ratios) / 2 else None,
        "steps_ratio_unreached": ratios.count(None),
        "steps_ratio_at_least": (args.long or args.full) / args.short,
        "slice_ahead_of_full_scratch": sum(
            a < b for a, b in zip(scores["slice"], truth_alone, strict=True)
        ),
        "valid_bd_share": sum(valid) / n,
        "kd_gain_percent": kd_pairs(args, results),
        "from_teacher": from_teacher(args, results),
        **hardware(),
        "results": results,
    }


def ratio(of_slice: dict, of_scratch: dict, short: int) -> float | None:
    """Steps from nothing over steps from the slice, to the loss that the slice has after its short training."""
    goal = of_slice["looks"][str(short)]["loss"]
    reached = steps_to_reach(of_scratch["looks"], goal)
    return None if reached is None else reached / short


def from_teacher(args, results) -> list[dict]:
    """By arch: R-D loss by step from slices of the teacher and from nothing, and the ratio of steps to a loss.

    The loss is the one that the slice has after its brief training, as far as it was looked at.
    """
    found = []
    for arch in dict.fromkeys(r["arch"] for r in results if r["init"] in TEACHERS):
        mine = [r for r in results if r["arch"] == arch]
        from_slice = next(r for r in mine if r["init"] == "teacher")
        alone = max((r for r in mine if r["init"] == "scratch"), key=lambda r: r["steps"])
        losses = {
            f"{r['init']}, {r['steps']} steps": {n: v["loss"] for n, v in r["looks"].items()}
            for r in mine
        }
        at = min(int(n) for n in from_slice["looks"] if int(n) >= args.short)
        found.append(
            {
                "arch": arch,
                "losses": losses,
                "at_step": at,
                "steps_ratio": ratio(from_slice, alone, at),
            }
        )
    return found


def kd_pairs(args, results) -> dict:
    """Paired difference of the R-D loss (per cent; positive: distillation helps), mean and t interval."""
    rows = [r for r in results if (r["init"], r["steps"]) == ("slice", args.full)]
    with_kd = {(r["arch"], r["seed"]): r for r in rows if not r["control"]}
    end = str(args.full)
    gains = [
        r["looks"][end]["loss"] - with_kd[r["arch"], r["seed"]]["looks"][end]["loss"]
        for r in rows
        if r["control"]
    ]
    half = None
    if len(gains) > 1:
        half = float(t.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / np.sqrt(len(gains)))
    return {"mean": float(np.mean(gains)), "half_width": half, "pairs": len(gains), "gains": gains}


if __name__ == "__main__":
    main()
