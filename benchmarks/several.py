"""Parts of ``distill.py`` without the paper's loop: steps as CUDA graphs, compiled, and of several students at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from nas_kd.cluster.gpu_sharing import Together, best, free_bytes
from nas_kd.codec.checkpoint import load_student
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.data.images import decoded, open_images
from nas_kd.device import synchroniser
from nas_kd.distillation.loss import Weights
from nas_kd.distillation.training import CHECK_EVERY, CropPool, EveryCrop, Recipe, Run
from nas_kd.places import TEACHERS
from nas_kd.teachers.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teachers.teacher import load_teacher
from nas_kd.turns import side_by_side

PROCESSES, PATIENCE_S = 16, 120.0
"""What a search packed onto an H200 until 0.1, and the time they have to load PyTorch and begin."""


# ---------------------------------------------------------------- graphs


def phases(args) -> dict:
    """A step of `mini` as it comes, as CUDA graphs, and as those of several students at once, crops drawn anew.

    By row: ms of a step (of several at once, of one of them), crops per second, the share of the time that the host
    works, and students per stream where there are several.
    """
    crops = EveryCrop(decoded(open_images(args.data, "train")), args.crop, args.device)
    gpu, rows = args.device == "cuda", []
    for name in ("eager", "graph") if gpu else ("eager",):
        rows.append({"row": name} | at_once([mini_run(crops, args, name == "graph")], args))
        print(json.dumps(rows[-1]), flush=True)
    runs = []
    for streams in args.streams:
        runs += [mini_run(crops, args, gpu) for _ in range(streams - len(runs))]
        rows.append(
            {"row": "1 stream" if streams == 1 else f"{streams} streams"} | at_once(runs, args)
        )
        print(json.dumps(rows[-1]), flush=True)
    by_row = {row["row"]: row for row in rows}
    table = {"batch": args.graph_batch, "rows": rows, "streams_gain": None}
    for name in ("eager", "graph"):
        table[f"{name}_ms"] = by_row[name]["step_ms"] if name in by_row else None
    if gpu:
        fastest = min(row["step_ms"] for row in rows if row["students"] > 1)
        table["streams_gain"] = table["graph_ms"] / fastest
    table["crops_per_s"] = max(row["crops_per_s"] for row in rows)
    return table


def mini_run(crops: EveryCrop, args, graphs: bool) -> Run:
    """A training of `mini` that has taken its first steps."""
    recipe = Recipe(10**6, args.graph_batch, checkpoint_s=1e9)
    student = load_student(TEACHERS / "mini").requires_grad_(True).to(args.device)
    run = Run(student, crops, recipe, graphs=graphs)
    run.run(until=4 if graphs else 1)  # captures
    return run


def at_once(runs: list[Run], args) -> dict:
    """Medians over rounds of runs in as many threads."""
    wait, walls, cpus = synchroniser(args.device), [], []
    for _ in range(args.rounds):
        wait()
        start, cpu = time.perf_counter(), time.process_time()
        works = [lambda run=run: run.run(until=run.step + args.steps) for run in runs]
        for failed in (one for one in side_by_side(works) if isinstance(one, Exception)):
            raise failed
        wait()
        walls.append((time.perf_counter() - start) / args.steps / len(runs))
        cpus.append((time.process_time() - cpu) / args.steps / len(runs))
        if args.ends.passed():
            break
    step_s = statistics.median(walls)
    return {
        "students": len(runs),
        "step_ms": 1e3 * step_s,
        "crops_per_s": args.graph_batch / step_s,
        "host_share": statistics.median(cpus) / step_s,
    }


# ---------------------------------------------------------------- torch.compile


def compiled(args) -> list[dict]:
    """By arch of `demo`: what a compilation takes, what it saves per step, and after how many steps it has paid."""
    space, rows = load_space("demo"), []
    modes = ["default", "reduce-overhead"] if args.device == "cuda" else ["default"]
    with tempfile.TemporaryDirectory() as scratch:
        recipe = PoolRecipe(args.data, args.crops, args.crop)
        teacher = load_teacher("mini").to(args.device)
        pool = TargetPool(target_pool(Path(scratch), teacher, recipe), args.device)
        for i in range(1 if args.quick else 3):
            arch = space.draw(i)
            for mode in modes:
                found = pays_back(arch, mode, pool, args)
                rows.append({"arch": str(arch), "mode": mode} | found)
                print(f"  {rows[-1]}", flush=True)
    return rows


def pays_back(arch, mode: str, pool: TargetPool, args) -> dict:
    """Interleaved rounds of our loop, as it is and with the student's forward compiled."""
    recipe, wait = Recipe(10**6, args.batch, checkpoint_s=1e9), synchroniser(args.device)
    runs = {}
    for name in ("eager", "compiled"):
        torch.manual_seed(0)
        student = Student(arch, LMBDAS).to(args.device)
        forward = torch.compile(student, mode=mode) if name == "compiled" else student
        given = (student, pool, recipe, Weights(), pool.latent_widths)
        runs[name] = Run(*given, forwards=lambda step, f=forward: [f], graphs=False)
        start = time.perf_counter()
        runs[name].run(until=1)
        wait()
        if name == "compiled":
            compile_s = time.perf_counter() - start  # its first step included
    steps, found = args.steps, {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            wait()
            start = time.perf_counter()
            run.run(until=run.step + steps)
            wait()
            found[name].append((time.perf_counter() - start) / steps)
    eager, fast = (statistics.median(found[name][1:]) for name in ("eager", "compiled"))
    pays = compile_s / (eager - fast) if fast < eager else None
    return {"compile_s": compile_s, "eager_step_s": eager, "step_s": fast, "pays_after_steps": pays}


# ---------------------------------------------------------------- several trials on one GPU


def packed(args) -> dict:
    """Trials of `demo` at once on this GPU: steps per second together, on streams and in processes as until 0.1."""
    arch = max(load_space("demo").corners(True), key=lambda a: (a.M, a.hyper))
    free = free_bytes(args.device)
    together = Together(arch, LMBDAS, Recipe.batch, args.crop, args.device, free)
    chosen, seen = best(together.measure, free, PROCESSES)
    del together
    torch.cuda.empty_cache()
    found = {"trials": chosen.trials, "measured": [asdict(one) for one in seen]}
    found["ratio"] = chosen.steps_per_s / seen[0].steps_per_s
    print(json.dumps(found), flush=True)
    found["processes"] = min(PROCESSES, os.cpu_count() or 1)
    before = in_processes(found["processes"], arch, args)
    found["processes_steps_per_s"] = before
    found["gain"] = chosen.steps_per_s / before if before else None
    return found


def in_processes(n: int, arch, args) -> float | None:
    """Steps per second of ``n`` processes together, their steps as they come; None where one of them failed."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(n), context.Queue()
    given = (arch, args.crop, args.device, barrier, results)
    processes = [context.Process(target=one_process, args=given, daemon=True) for _ in range(n)]
    for process in processes:
        process.start()
    try:
        rates = [results.get(timeout=PATIENCE_S) for _ in processes]
    except queue.Empty:  # one of them was killed
        rates = [None]
    for process in processes:
        process.terminate()
        process.join()
    return None if None in rates else sum(rates)


def one_process(arch, size: int, device: str, barrier, results) -> None:
    """Tell the steps per second of one run while all others train too."""
    try:
        torch.set_num_threads(1)
        crops = torch.randint(0, 256, (64, 3, size, size), dtype=torch.uint8)
        recipe = Recipe(10**9, checkpoint_s=1e9)
        run = Run(Student(arch, LMBDAS).to(device), CropPool(crops, device), recipe, graphs=False)
        run.run(until=5)
        barrier.wait(PATIENCE_S)
        start, first = time.perf_counter(), run.step
        while time.perf_counter() - start < 5.0:
            run.run(until=run.step + CHECK_EVERY)
        results.put((run.step - first) / (time.perf_counter() - start))
        barrier.wait(PATIENCE_S)  # none ends while others still count
    except Exception:  # out of memory, or another process failed
        barrier.abort()
        results.put(None)
