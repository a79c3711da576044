"""What trains a student best: forms of the trunk, optimisers, sides of crops; at equal steps, processor time beside.

    python benchmarks/training.py --quick
    python benchmarks/training.py --plan trunk --data photographs --steps 10000
    python benchmarks/training.py --plan entropy|optimisers|crops --data photographs

Every arm trains on the same pool from its linear start, without a teacher; its curve on the built-in evaluation
photographs is compared with that of the first arm's untrained start (mean logarithm of the R-D cost over levels, and
BD-rate; lower is better), and its MACs of a 768x512 picture stand beside.

trunk: the kind of block, where blocks stand (1/4, 1/8 or 1/16 of the picture's side), their kernel, and how far the
stem goes at once. Short runs mislead: what is ahead at 1,000 steps need not be ahead at 10,000.
entropy: what predicts the distribution of the middle student's latents.
optimisers: for the middle student of ``demo``; "soap both sides" is pytorch_optimizer's, with bases for all sides of a
kernel, ours has none for wide ones. "bf16" has the large networks in bfloat16; on a CPU that is slow, and
shows what it does to quality.
crops: sides in pixels, about as many pixels a step and in the pool for all.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytorch_optimizer
import torch
from harness import add_out, finish, hardware, options, rd_loss, said
from loops import in_bfloat16, in_float32

from nas_kd.codec.arch import Arch, Transform
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import Student
from nas_kd.data.images import crop_pool, open_images
from nas_kd.distillation.training import CropPool, Recipe, Run
from nas_kd.evaluation.bd_rate import bd_rate, quality_interval
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate
from nas_kd.teachers.targets import FIRST_CROPS

SIDES = {"width_1": 32, "width_2": 64, "depth_1": 1, "depth_2": 3, "depth_3": 1}
MIDDLE = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in SIDES.items()}
MIDDLE |= {"M": 256, "hyper": 32}
"""The middle student of ``demo``."""


def trunk(block: str, depths: tuple[int, ...], kernel: int = 3, stem: str = "trunk4") -> Arch:
    """As wide as the middle student, with other blocks."""
    side = Transform(stem, (12, 32, 64), depths, block=block, kernel=kernel)
    return Arch(side, side, M=256, hyper=32).canonical()


FORMS = {
    "depthwise": trunk("depthwise", (0, 1, 2, 1)),  # the middle student of demo
    "residual": trunk("residual", (0, 1, 1, 0)),
    "gated": trunk("gated", (0, 1, 3, 0)),
    "gated at 1/8 and 1/16": trunk("gated", (0, 0, 1, 1)),
    "no blocks": trunk("residual", (0, 0, 0, 0)),
    "blocks at 1/4": trunk("depthwise", (0, 6, 0, 0)),
    "blocks at 1/8": trunk("depthwise", (0, 0, 7, 0)),
    "blocks at 1/16": trunk("depthwise", (0, 0, 0, 2)),
    "kernel 5": trunk("depthwise", (0, 1, 2, 1), kernel=5),
    "stem to 1/2": trunk("depthwise", (1, 1, 2, 1), stem="trunk2"),
    "stem to 1/8": trunk("depthwise", (0, 0, 3, 1), stem="trunk8"),
}
PLANS = {
    "trunk": {name: dict(arch=arch) for name, arch in FORMS.items()},
    "entropy": {
        entropy: dict(entropy=entropy) for entropy in ("mean-scale", "checkerboard", "dual", "quad")
    },
    "optimisers": {
        "adam": dict(),
        "adam lr 2e-3": dict(lr=2e-3),
        "soap": dict(optimiser="soap"),
        "soap lr 2e-3": dict(optimiser="soap", lr=2e-3),
        "soap both sides": dict(optimiser="soap both sides"),
        "muon": dict(optimiser="muon", lr=1e-2),
        "bf16": dict(bf16=True),
    },
    "crops": {
        "256 px": dict(),
        "128 px": dict(side=128),
        "192 px": dict(side=192),
        "384 px": dict(side=384),
    },
}
QUICK = {
    "trunk": "depthwise,gated",
    "entropy": "mean-scale,dual",
    "optimisers": "adam,soap,muon",
    "crops": "256 px,128 px",
}
SIDE, BATCH = 256, 2
BESIDE_MUON = 0.1
"""Share of Muon's rate for Adam beside it."""


def make_run(student, pool, recipe, optimiser="adam"):
    if optimiser == "soap":
        recipe = replace(recipe, optimiser=optimiser)
    run = Run(student, pool, recipe)
    parameters = run.optimiser.param_groups[0]["params"]
    if optimiser == "soap both sides":
        run.optimiser = _Split(parameters, recipe.lr)
    elif optimiser == "muon":
        run.optimiser = _Muon(parameters, recipe.lr)
    return run


class _Split:
    """SOAP for kernels, Adam for the rest."""

    def __init__(self, parameters, lr):
        kernels = [p for p in parameters if p.dim() == 4]
        rest = [p for p in parameters if p.dim() != 4]
        soap = pytorch_optimizer.SOAP(kernels, lr=lr, weight_decay=0.0)
        self.parts = (soap, torch.optim.Adam(rest, lr=lr))

    @property
    def param_groups(self):
        return [g for part in self.parts for g in part.param_groups]

    def zero_grad(self, set_to_none=True):
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self):
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {}


class _Muon:
    """Muon on matrices, Adam on everything else, at a share of its rate."""

    def __init__(self, parameters, lr):
        self.main = [p for p in parameters if p.dim() >= 2 and p.shape[0] > 6]
        kept = {id(p) for p in self.main}
        self.views = [torch.nn.Parameter(p.detach().flatten(1)) for p in self.main]
        self.muon = torch.optim.Muon(self.views, lr=lr, weight_decay=0.0)
        self.adam = torch.optim.Adam([p for p in parameters if id(p) not in kept], lr=lr)

    @property
    def param_groups(self):
        return self.muon.param_groups + self.adam.param_groups

    def zero_grad(self, set_to_none=True):
        for p in self.main:
            p.grad = None
        self.adam.zero_grad(set_to_none=set_to_none)

    def step(self):
        for group in self.adam.param_groups:
            group["lr"] *= BESIDE_MUON
        for view, p in zip(self.views, self.main, strict=True):
            view.data = p.data.flatten(1).clone()
            view.grad = p.grad.flatten(1)
        self.muon.step()
        with torch.no_grad():
            for view, p in zip(self.views, self.main, strict=True):
                p.copy_(view.view_as(p))
        self.adam.step()

    def state_dict(self):
        return {}


def begun(arch, crops, seed=0):
    torch.manual_seed(seed)
    student = Student(arch)
    student.start_from(crops[:FIRST_CROPS].float() / 255)
    return student


def train(student, crops, recipe, optimiser):
    run = make_run(student, CropPool(crops), recipe, optimiser)
    started = time.process_time()
    run.run()
    return student.eval(), time.process_time() - started


def parsed():
    parser = options(__doc__)
    add_out(parser, "training")
    parser.add_argument("--plan", choices=tuple(PLANS), default="trunk")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--crops", type=int, default=128, help=f"of {SIDE} px")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--arms", help="comma-separated [default: all of the plan]")
    parser.add_argument("--data", default="builtin")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.crops = 20, 32
    args.arms = args.arms or (QUICK[args.plan] if args.quick else ",".join(PLANS[args.plan]))
    return args


def main() -> None:
    args = parsed()
    torch.set_num_threads(1)
    middle, photographs = load_space("demo").arch(MIDDLE), open_images(args.data, "train", 0)

    def crops_of(side):
        count = args.crops * SIDE**2 // side**2
        return torch.from_numpy(crop_pool(photographs, count, side, 0))

    crops, images = crops_of(SIDE), open_images("builtin", "eval")
    names = args.arms.split(",")
    first = PLANS[args.plan][names[0]].get("arch", middle)
    untrained = begun(first, crops)
    anchor = evaluate(StudentCodec(untrained.eval()), images).curve()
    results = []
    for seed in map(int, args.seeds.split(",")):
        for name in names:
            arm = dict(PLANS[args.plan][name])
            arch, optimiser = arm.pop("arch", middle), arm.pop("optimiser", "adam")
            arch = replace(arch, entropy=arm.pop("entropy", arch.entropy))
            side, lowered = arm.pop("side", SIDE), arm.pop("bf16", False)
            recipe = replace(Recipe(args.steps, round(BATCH * SIDE**2 / side**2), seed=seed), **arm)
            pool = crops if side == SIDE else crops_of(side)
            start = begun(arch, crops, seed)
            if lowered:
                in_bfloat16(start)
            student, seconds = train(start, pool, recipe, optimiser)
            curve = evaluate(StudentCodec(in_float32(student)), images).curve()
            rate = bd_rate(anchor, curve, quality_interval(anchor))
            row = {"arm": name, "seed": seed, "steps": args.steps, "cpu_s": round(seconds, 1)}
            row |= {"arch": str(arch), "gmac": round(arch_cost(arch).total.macs / 1e9, 3)}
            row |= {"rd_loss_percent": round(rd_loss(curve, student.lmbdas), 2)}
            row |= {"bd_rate_percent": rate.value, "reason": rate.reason}
            row |= {"bpp_est": [round(b, 4) for b in curve.bpp]}
            row |= {"psnr_db": [round(q, 3) for q in curve.psnr_db]}
            print(json.dumps(row), flush=True)
            results.append(row)
    start = {"arch": str(first), "rd_loss_percent": rd_loss(anchor, untrained.lmbdas)}
    start |= {"bpp_est": anchor.bpp, "psnr_db": anchor.psnr_db}
    about = {"benchmark": "training", "settings": said(args), "start": start} | hardware()
    finish(about | {"arms": results}, args.out)


if __name__ == "__main__":
    main()
