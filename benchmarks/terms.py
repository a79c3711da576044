"""What each term of the distillation loss brings: the same student on the same batches, with and without the teacher.

An arm weighs kd_x, kd_y and kd_z ("x0.5 y0.05"); "fade" lets the weights fall to zero over that share of the steps.
Its figures are the mean logarithm of the R-D cost over levels on the evaluation pictures, and the BD-rate against the
control (no teacher, same seed) over the interval that studies use; lower is better for both.

    python benchmarks/terms.py --quick
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from harness import add_out, family, finish, hardware, options, rd_loss, said
from training import MIDDLE

from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import Student
from nas_kd.data.images import open_images
from nas_kd.distillation.loss import CONTROL, Weights
from nas_kd.distillation.training import Recipe, Run
from nas_kd.evaluation.bd_rate import bd_rate
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate
from nas_kd.recipe import Optimiser
from nas_kd.study.anchor import interval_db
from nas_kd.teachers.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teachers.teacher import load_teacher

ARMS = (
    "control;x0.5 y0.05;x0.5;x0.1;y0.05;y0.005;z0.05;x0.5 y0.05 fade0.5;x0.5 fade0.5;y0.05 fade0.5"
)


class Fading(Run):
    """A run whose teacher is heard less and less, and after a share of the steps no more."""

    fade = 0.0

    def _loss(self, forward, batch):
        left = 1.0
        if self.fade:
            left = max(0.0, 1 - self.step / (self.fade * self.recipe.steps))
        whole = w = self.weights
        self.weights = replace(w, kd_x=w.kd_x * left, kd_y=w.kd_y * left, kd_z=w.kd_z * left)
        try:
            return super()._loss(forward, batch)
        finally:
            self.weights = whole


def weights_of(arm: str) -> tuple[Weights, float]:
    """The loss's weights, and the share of the steps over which they fade (0: they stay)."""
    if arm == "control":
        return CONTROL, 0.0
    weighs = {"x": 0.0, "y": 0.0, "z": 0.0, "fade": 0.0}
    for word in arm.split():
        name = word.rstrip("0123456789.")
        weighs[name] = float(word[len(name) :])
    return Weights(weighs["x"], weighs["y"], weighs["z"]), weighs["fade"]


def begun(init: str, arch, pool: TargetPool, teacher) -> Student:
    """A student before its first step: a linear transform codec, or a slice of ``mini``."""
    if init == "slice":
        return family().student(arch)
    student = Student(arch, teacher.lmbdas)
    student.start_from(pool.pictures())
    return student


def trained(arm: str, init: str, arch, pool: TargetPool, teacher, recipe: Recipe):
    """The student of an arm, and processor seconds."""
    weights, fade = weights_of(arm)
    torch.manual_seed(recipe.seed)
    student = begun(init, arch, pool, teacher)
    run = Fading(student, pool, recipe, weights, pool.latent_widths, graphs=False)
    run.fade = fade
    started = time.process_time()
    run.run()
    return student.eval(), time.process_time() - started


def main() -> None:
    parser = options(__doc__)
    add_out(parser, "terms")
    parser.add_argument(
        "--arms", default=ARMS, help="separated by semicolons; the control is first"
    )
    parser.add_argument("--arch", choices=("middle", "largest"), default="middle")
    parser.add_argument("--init", choices=("trunk", "slice"), default="trunk")
    parser.add_argument("--teacher", default="mini")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--optimiser", choices=get_args(Optimiser), default="adam")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--eval-data", default="builtin")
    parser.add_argument("--crops", type=int, default=500)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "nas-kd-terms"))
    args = parser.parse_args()
    if args.quick:
        args.steps, args.crops, args.arms = 40, 16, "control;x0.5 y0.05;y0.05 fade0.5"
    torch.set_num_threads(1)
    space, teacher = load_space("demo"), load_teacher(args.teacher)
    arch = space.extreme(largest=True) if args.arch == "largest" else space.arch(MIDDLE)
    arms = args.arms.split(";")
    pictures_too = any(weights_of(arm)[0].kd_x for arm in arms)
    recipe_of = PoolRecipe(args.data, args.crops, x_hat=pictures_too)
    pool = TargetPool(target_pool(args.cache / "targets", teacher, recipe_of))
    images = open_images(args.eval_data, "eval")
    interval = interval_db(evaluate(teacher, images).curve())
    rows = []
    for seed in map(int, args.seeds.split(",")):
        controls = None
        for arm in arms:
            recipe = Recipe(
                args.steps, lr=args.lr, seed=seed, checkpoint_s=1e9, optimiser=args.optimiser
            )
            student, cpu_s = trained(arm, args.init, arch, pool, teacher, recipe)
            curve = evaluate(StudentCodec(student), images).curve()
            controls = curve if arm == "control" else controls
            rate = None if controls is None else bd_rate(controls, curve, interval)
            row = {"arm": arm, "seed": seed, "cpu_s": round(cpu_s, 1)}
            row |= {"rd_loss_percent": round(rd_loss(curve, teacher.lmbdas), 2)}
            row |= {"bd_rate_percent": rate and rate.value, "reason": rate and rate.reason}
            row |= {"bpp_est": [round(b, 4) for b in curve.bpp]}
            row |= {"psnr_db": [round(q, 3) for q in curve.psnr_db]}
            print(json.dumps(row), flush=True)
            rows.append(row)
    about = {"benchmark": "terms", "arch": str(arch), "settings": said(args)} | hardware()
    finish(about | {"rows": rows}, args.out)


if __name__ == "__main__":
    main()
