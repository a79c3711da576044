"""What distillation costs: the paper's loop, a step without a teacher, and ours, side by side in one run.

    python benchmarks/distill.py [--quick] [--data DIR] [--parts graphs,speed,outside,quality,compile,packed]
    python benchmarks/distill.py --plan gpu    # eight minutes of a GPU, the most valuable part first

Same student (PRIM, N = 64, M = 192), same teacher, same batch, same machine, interleaved rounds, medians. The arms:

- ``paper``: the loop of arXiv 2509.10366 from its description: two workers decode files and crop, the teacher
  runs on every step with autograd on, its outputs are not detached, so that the backward pass goes through it too; the
  paper's loss, Adam, no auxiliary loss. ``paper_detached`` is the same with its outputs detached, which is kinder.
- ``floor``: a plain training step without any teacher, crops in memory, Adam.
- ``control``: our loop without a teacher. ``ours_1``, ``ours_6``: our loop, one level and six.

The part ``graphs`` has no teacher: a step of `mini` as it comes, as CUDA graphs, and as graphs of several students on
as many streams. ``packed`` is what a search gains by the last against processes whose steps come as they are, as it ran
until 0.1.

The cheng2020 teacher has untrained weights: the time does not depend on them. Seconds are wall time; beside them CPU
time of this process, since others may be at work on the machine. The last line is one JSON object.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from harness import add_out, finish, hardware, keep, options, said
from loops import (
    CHENG_WIDTHS,
    Files,
    LiveTeacher,
    Ours,
    Paper,
    Plain,
    batches,
    in_bfloat16,
    in_float32,
    one_level,
    untrained_cheng,
)
from PIL import Image
from several import compiled, packed, phases

from nas_kd.codec.arch import prim
from nas_kd.codec.cost import count
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.data.images import open_images
from nas_kd.device import best_device, numerics, synchroniser
from nas_kd.distillation.loss import CONTROL, Weights
from nas_kd.distillation.training import Recipe, Run
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate
from nas_kd.measurement.codec_energy import energy_of
from nas_kd.measurement.device_lock import in_use
from nas_kd.measurement.energy import QUICK
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.profiling import LiveBytes, gpu_busy_share
from nas_kd.measurement.reading import Reading
from nas_kd.report.illustrate import illustrate
from nas_kd.study.anchor import Anchor, interval_db
from nas_kd.study.trial import Task, rd_cost, run_trial
from nas_kd.teachers.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teachers.teacher import load_teacher

TRIALS = 200
"""Trials that one pass of the teacher serves, where its seconds are spread over them."""
STEPS = 5000
"""Of a trial, for the share of it that is spent outside distillation."""
GRAPH_BATCH = 8
"""Crops a step, as in the figures of docs and LOG."""
READING_S = 120.0
"""What must be left for a reading of energy: on an H200 one took over 55 s with its retry."""
GPU_PLAN = {"graphs": 60.0, "packed": 120.0, "speed": 150.0, "trial": 45.0}
"""Parts of eight minutes of a GPU, and the seconds that must be left for each to begin."""
GPU_PLAN_S = 480.0
LEVEL = 5  # the paper's teacher: quality 5


# ---------------------------------------------------------------- speed


def matrix_rate(device: str) -> float:
    """Multiply-adds per second of this machine in float32: the best of some products of matrices."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
    wait, best = synchroniser(device), math.inf
    # Others may be at work on a CPU: its own time, there.
    clock = time.perf_counter if device == "cuda" else time.process_time
    for _ in range(6):
        wait()
        start = clock()
        a @ b
        wait()
        best = min(best, clock() - start)
    return n**3 / best


def rounds(arms: dict, n: int, steps: int, device: str, dear: dict[str, int], ends):
    """Wall and CPU seconds per step of every arm, a row per round; ``dear`` arms take fewer steps.

    After two rounds none begins once the time is up.
    """
    wait = synchroniser(device)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for i in range(n + 1):
        for name, arm in arms.items():
            arm(1)
            taken = dear.get(name, steps)
            wait()
            start, cpu = time.perf_counter(), time.process_time()
            arm(taken)
            wait()
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
            if i:  # the first round warms up
                found[name].append((wall_s / taken, cpu_s / taken))
        print(f"  round {i} of {n}", flush=True)
        if i > 1 and ends.passed():
            break
    return {name: list(zip(*pairs, strict=True)) for name, pairs in found.items()}


def memory_mb(arm, device: str) -> float:
    """The most that tensors take at once in a step."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        arm(1)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 1e6
    with LiveBytes() as live:
        arm(1)
    return live.peak / 1e6


def joules(arm, device: str, meter, ends) -> dict:
    """Energy of a step in J, or the reason why there is none."""
    if ends.left_s() < READING_S:
        return {"step_j": None, "reason": "no time left for a reading"}
    reading = meter
    if not isinstance(meter, Reading):
        with in_use(device).exclusive():  # for this alone: it stops every training on the machine
            reading = energy_of(meter, lambda: arm(1), device, QUICK)
    mj = reading.value_or_none
    return {"step_j": None if mj is None else mj / 1000, "reason": reading.reason}


def make_arms(teacher, args, folder: Path, scratch: Path):
    """The arms of one teacher, what the targets cost, and the student's multiply-adds per pixel."""
    device, recipe = args.device, Recipe(10**6, args.batch, seed=0, checkpoint_s=1e9)
    lmbda = teacher.lmbdas[LEVEL - 1]

    def student(lmbdas) -> Student:
        torch.manual_seed(0)
        return Student(prim(64), lmbdas).to(device)

    recipes, pools, target_s = PoolRecipe(args.data, args.crops, args.crop), {}, {}
    for name, taught in (("1", one_level(teacher, LEVEL)), ("6", teacher)):
        start = time.perf_counter()
        where = target_pool(scratch / name, taught, recipes, device=device)
        target_s[name] = time.perf_counter() - start
        pools[name] = TargetPool(where, device)
    live, widths = LiveTeacher(teacher, LEVEL, device), teacher.latent_widths
    files = Files(folder, args.crop)

    def paper(live, detached=False):
        loader = batches(files, args.batch, device)
        return Paper(student((lmbda,)), live, lmbda, loader, widths, recipe, device, detached)

    crops = (pools["1"].pictures() * 255).round().to(torch.uint8).to(device)
    arms = {
        "paper": paper(live),
        "paper_detached": paper(live, True),
        "floor": Plain(student((lmbda,)), crops, lmbda, recipe, device),
        "control": Ours(student((lmbda,)), pools["1"], recipe, CONTROL),
        "ours_1": Ours(student((lmbda,)), pools["1"], recipe),
        "ours_6": Ours(student(LMBDAS), pools["6"], recipe),
    }
    if device == "cuda":  # what a GPU may be faster with; on a CPU it is known
        last = torch.channels_last
        arms |= {
            "ours_6_channels_last": Ours(student(LMBDAS), pools["6"], recipe, layout=last),
            "ours_6_bf16": Ours(in_bfloat16(student(LMBDAS)), pools["6"], recipe),
            "ours_6_bf16_channels_last": Ours(
                in_bfloat16(student(LMBDAS)), pools["6"], recipe, layout=last
            ),
        }
    if not teacher.shared_latents:  # qualities 1 to 3 have a narrower network
        low = LiveTeacher(teacher, 1, device)
        narrow = (CHENG_WIDTHS[0],) * 2
        loader = batches(files, args.batch, device)
        own = student((lmbda,))
        arms["paper_low"] = Paper(own, low, lmbda, loader, narrow, recipe, device)
    return arms, target_s


def speed(name: str, teacher, args, folder: Path) -> dict:
    """The table of one teacher."""
    print(f"{name}: targets", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        arms, target_s = make_arms(teacher, args, folder, Path(scratch))
        dear = {arm: args.paper_steps for arm in arms if arm.startswith("paper")}
        taken = rounds(arms, args.rounds, args.steps, args.device, dear, args.ends)
        meter, rate = find_meter(args.device), matrix_rate(args.device)
        macs_px = count(Student(prim(64), (0.025,))).kmac_per_px * 1000
        step_macs = 3 * macs_px * args.batch * args.crop**2  # backward counts twice the forward
        table = {}
        for arm, (wall, cpu) in taken.items():
            step_s, step_cpu_s = statistics.median(wall), statistics.median(cpu)
            busy_s = step_s if args.device == "cuda" else step_cpu_s
            table[arm] = {
                "steps_per_s": 1 / step_s,
                "step_s": step_s,
                "step_s_rounds": list(wall),
                "step_cpu_s": step_cpu_s,
                "memory_mb": memory_mb(arms[arm], args.device),
                "mfu": step_macs / busy_s / rate,
                "energy": joules(arms[arm], args.device, meter, args.ends),
                "gpu_busy_share": gpu_busy_share(lambda a=arm: arms[a](1))
                if args.device == "cuda"
                else None,
            }
    return {"arms": table, "target_s": target_s, "matrix_mac_per_s": rate} | ratios(
        table, target_s, teacher, args
    )


def median_ratio(table: dict, a: str, b: str) -> dict:
    """How much dearer a step of one arm is than of another: by wall and by CPU time."""
    pairs = zip(table[a]["step_s_rounds"], table[b]["step_s_rounds"], strict=True)
    each = sorted(x / y for x, y in pairs)
    cpu = table[a]["step_cpu_s"] / table[b]["step_cpu_s"]
    return {"wall": statistics.median(each), "lowest": each[0], "highest": each[-1], "cpu": cpu}


def ratios(table: dict, target_s: dict, teacher, args) -> dict:
    """The figures that the aims are about."""
    low = table.get("paper_low", table["paper"])["step_s"]
    curve_steps_s = 3 * low + 3 * table["paper"]["step_s"]
    own = table["ours_6"]["step_s"]
    teachers_s = target_s["6"] / args.crops * args.study_crops
    return {
        "ours_over_floor": median_ratio(table, "ours_1", "floor"),
        "ours_6_over_floor": median_ratio(table, "ours_6", "floor"),
        "ours_over_control": median_ratio(table, "ours_1", "control"),
        "paper_over_ours": median_ratio(table, "paper", "ours_1"),
        "paper_detached_over_ours": median_ratio(table, "paper_detached", "ours_1"),
        "paper_curve_s": STEPS * curve_steps_s,
        "ours_curve_s": STEPS * own + teachers_s / TRIALS,
        "ours_curve_alone_s": STEPS * own + teachers_s,
        "curve_speedup": STEPS * curve_steps_s / (STEPS * own + teachers_s / TRIALS),
        "curve_speedup_alone": STEPS * curve_steps_s / (STEPS * own + teachers_s),
    }


# ---------------------------------------------------------------- a whole trial


def outside(args, step_s: float) -> dict:
    """Seconds of a trial of six levels that are not distillation, and their share at STEPS steps."""
    teacher, images = load_teacher("mini"), open_images(args.eval_data, "eval")
    recipe = PoolRecipe(args.data, args.crops, args.crop)
    curve = evaluate(teacher, images, "cpu").curve()
    with tempfile.TemporaryDirectory() as scratch:
        pool = TargetPool(
            target_pool(Path(scratch), teacher, recipe, device=args.device), args.device
        )
        anchor = Anchor(curve, interval_db(curve))
        task = Task(
            *(teacher.lmbdas, Recipe(20, args.batch), Weights(), ("bd_rate", "flops")),
            *(pool, images, anchor),
            device=args.device,
        )
        found = []
        for i in range(3):
            folder = Path(scratch, str(i))
            start = time.perf_counter()
            outcome = run_trial(task, prim(64), folder)
            illustrate(anchor, images, folder, outcome)
            whole_s = time.perf_counter() - start
            seconds = outcome.attrs["seconds"]
            found.append(whole_s - seconds["distil"])
            print(f"  trial {i}: {seconds}", flush=True)
    outside_s = statistics.median(found)
    share = outside_s / (outside_s + STEPS * step_s)
    return {"outside_s": outside_s, "trials_s": found, "outside_share": share, "of_last": seconds}


# ---------------------------------------------------------------- equal quality


def quality(args, folder: Path) -> dict:
    """R-D loss after equally many steps, ours with and without a teacher against the paper's loop: percent.

    On a GPU, where it is fast, also ours in bfloat16.
    """
    teacher, images = load_teacher("mini").to(args.device), open_images(args.eval_data, "eval")
    level, arch = 3, prim(args.quality_width)
    held = one_level(teacher, level)
    rows, arms = [], ["paper", "ours", "control"]
    arms += ["ours_bf16"] if args.device == "cuda" else []
    with tempfile.TemporaryDirectory() as scratch:
        pool_of = PoolRecipe(args.data, args.quality_crops, args.crop)
        pool = TargetPool(
            target_pool(Path(scratch), held, pool_of, device=args.device), args.device
        )
        for seed in range(3):
            recipe = Recipe(args.quality_steps, args.batch, seed=seed, checkpoint_s=1e9)
            losses = {}
            for name in arms:
                torch.manual_seed(seed)
                student = Student(arch, held.lmbdas).to(args.device)
                if name == "ours_bf16":
                    in_bfloat16(student)
                if name != "paper":
                    weights = CONTROL if name == "control" else Weights()
                    Run(student, pool, recipe, weights, pool.latent_widths).run()
                else:
                    live = LiveTeacher(teacher, level, args.device)
                    loader = batches(Files(folder, args.crop), args.batch, args.device)
                    widths = teacher.latent_widths
                    given = (student, live, held.lmbdas[0], loader, widths, recipe, args.device)
                    Paper(*given)(recipe.steps)
                measured = evaluate(StudentCodec(in_float32(student)), images, args.device)
                losses[name] = rd_cost(measured, held.lmbdas)
            rows.append(losses | {"seed": seed})
            print(f"  {rows[-1]}", flush=True)
    found = {"steps": args.quality_steps, "width": args.quality_width, "rows": rows}
    for name in arms[1:]:
        percent = [100 * (row[name] / row["paper"] - 1) for row in rows]
        half = 4.303 * statistics.stdev(percent) / math.sqrt(3)  # Student's t, 2 degrees, 95 %
        mean = statistics.fmean(percent)
        found[f"{name}_against_paper_percent"] = mean
        found[f"{name}_interval_percent"] = [mean - half, mean + half]
    return found


# ---------------------------------------------------------------- all of it


class Ends:
    """When a plan's time is up."""

    def __init__(self, limit_s: float):
        self.at_s = time.monotonic() + limit_s

    def left_s(self) -> float:
        return self.at_s - time.monotonic()

    def passed(self) -> bool:
        return self.left_s() <= 0


def picture_files(args, scratch: Path) -> Path:
    """A folder of files for the paper's loader: the one given, or the built-in set as PNG."""
    if args.data != "builtin":
        return Path(args.data)
    for i, image in enumerate(open_images("builtin", "train").images):
        if min(image.shape[:2]) >= args.crop:
            Image.fromarray(image).save(scratch / f"{i:03d}.png")
    return scratch


def arguments():
    parser = options(__doc__)
    add_out(parser, "distill")
    parser.add_argument("--parts", help="by default all, with --quick all but compile")
    parser.add_argument(
        "--plan", choices=["gpu"], help="parts for eight minutes of a GPU, in place of --parts"
    )
    parser.add_argument("--quality-steps", type=int)
    parser.add_argument("--quality-width", type=int, help="channels of the student, M = 192")
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--eval-data", default="builtin")
    parser.add_argument("--teachers", default="cheng2020,mini")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.device = best_device()
    gpu, quick = args.device == "cuda", args.quick
    args.parts = args.parts or "graphs,speed,outside,quality,packed" + ("" if quick else ",compile")
    args.ends = Ends(math.inf)
    if args.plan == "gpu":
        args.parts, args.teachers, args.ends = ",".join(GPU_PLAN), "mini", Ends(GPU_PLAN_S)
    args.streams = (1, 2, 4, 8) if gpu else (1, 2)
    args.graph_batch = 1 if quick and not gpu else GRAPH_BATCH
    args.batch, args.crop = 16 if gpu else 1 if quick else 2, 256
    args.crops, args.study_crops = (256 if gpu else 4 if quick else 16), 256
    args.rounds, args.steps = (2 if quick else 7), (100 if gpu else 2 if quick else 8)
    if args.plan == "gpu":
        args.rounds = min(args.rounds, 3)
    args.paper_steps = 20 if gpu else 1
    args.quality_steps = args.quality_steps or (6 if quick else 1000)
    args.quality_width = args.quality_width or (32 if gpu and not quick else 16)
    # As many as the steps draw: the paper's loop, too, sees no crop twice.
    args.quality_crops = 8 if quick else min(args.quality_steps * args.batch, 8192)
    return args


def machine(args) -> dict:
    return hardware(args.device) | {"numerics": numerics(args.device), "seed": 0}


def parts_of(args, folder: Path, result: dict) -> dict:
    """The parts by name, in their order; each takes what those before it found."""

    def speeds() -> dict:
        for name in args.teachers.split(","):
            teacher = untrained_cheng() if name == "cheng2020" else load_teacher(name)
            result[name] = speed(name, teacher, args, folder)
            print(json.dumps({name: result[name]}), flush=True)
        return result[args.teachers.split(",")[0]]

    def trial() -> dict | None:
        step_s = (result.get("speed") or {}).get("arms", {}).get("ours_6", {}).get("step_s")
        return outside(args, step_s) if step_s else None

    return {
        "graphs": lambda: phases(args),
        "packed": lambda: packed(args) if args.device == "cuda" else None,
        "speed": speeds,
        "trial": trial,
        "quality": lambda: quality(args, folder),
        "compile": lambda: compiled(args),
    }


def wanted(result: dict) -> dict:
    """The figures that the aims are about; null where they were not measured."""
    first, graphs = result.get("speed") or {}, result.get("graphs") or {}
    packing = result.get("packed") or {}
    found = {key: graphs.get(key) for key in ("eager_ms", "graph_ms", "streams_gain")}
    found["crops_per_s"] = graphs.get("crops_per_s")
    found["trials_per_hour_gain"] = packing.get("gain")
    found["trials_per_hour_packed_ratio"] = packing.get("ratio")
    for name in ("ours_over_floor", "paper_over_ours"):
        found[name] = first[name]["wall"] if first else None
    found["curve_speedup"] = first.get("curve_speedup")
    found["outside_share"] = (result.get("trial") or {}).get("outside_share")
    return found


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    told = {key: value for key, value in said(args).items() if key != "ends"}
    result = {"benchmark": "distill", "machine": machine(args), "settings": told}
    with tempfile.TemporaryDirectory() as scratch:
        parts = parts_of(args, picture_files(args, Path(scratch)), result)
        asked = args.parts.replace("outside", "trial").split(",")
        for name in (name for name in parts if name in asked):
            if args.ends.left_s() < GPU_PLAN.get(name, 0.0):
                print(f"{name}: left out, {args.ends.left_s():.0f} s are left", flush=True)
                continue
            result[name] = parts[name]()
            if name != "speed":  # told by teacher
                print(json.dumps({name: result[name]}), flush=True)
            if args.out is not None:  # as they come
                keep(args.out, told_of(result))
    finish(told_of(result), args.out)


def told_of(result: dict) -> dict:
    """All that was found, the wanted figures at the end."""
    return {key: value for key, value in result.items() if key != "speed"} | wanted(result)


if __name__ == "__main__":
    main()
