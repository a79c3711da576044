"""What trains a student best: optimisers, kernels of the linear shortcut, at equal steps; processor time beside.

Every arm trains the same arch from the same start on the same batches; its curve on the built-in evaluation
photographs is compared with that of the untrained start, a transform codec (mean logarithm of the R-D cost over levels,
and BD-rate; lower is better). The arms "klt" and "haar" start from other orthonormal transforms of 16x16 patches:
their principal components, and a wavelet of four stages, of which, too, the components with most energy are kept.
Arms named by a side in pixels take crops of that side, about as many pixels a step and in the pool as all others.
"bf16" has the large networks in bfloat16; on a CPU that is slow, and shows what it does to quality.

    python benchmarks/training.py --quick
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from unittest import mock

import pytorch_optimizer
import torch
from loops import in_bfloat16, in_float32
from sharing import rd_loss

from nas_kd.codec.space import load_space
from nas_kd.codec.student import Student, cosine_components
from nas_kd.data.images import crop_pool, open_images
from nas_kd.distillation.training import CropPool, Recipe, Run
from nas_kd.evaluation.bd_rate import bd_rate, quality_interval
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate
from nas_kd.teachers.targets import FIRST_CROPS

MIDDLE = {"encoder_width": 16, "encoder_depth": 0, "decoder_width": 16, "decoder_depth": 0} | {
    "decoder_stem": "unshuffle4",
    "M": 256,
    "hyper": 32,
    "entropy": "mean-scale",
}

ARMS = {
    "adam": dict(),
    "adam linear 0": dict(linear_lr=0.0),
    "adam linear 1": dict(linear_lr=1.0),
    "adam lr 2e-3": dict(lr=2e-3),
    "soap": dict(optimiser="soap", lr=3e-3),
    "soap lr 1e-3": dict(optimiser="soap", lr=1e-3),
    "muon": dict(optimiser="muon", lr=1e-2),
    "haar": dict(basis="haar"),
    "klt": dict(basis="klt"),
    "128 px": dict(side=128),
    "192 px": dict(side=192),
    "384 px": dict(side=384),
    "bf16": dict(bf16=True),
}
SIDE, BATCH = 256, 2


def haar() -> torch.Tensor:
    """Orthonormal basis [256, 256] of 16x16 patches: Haar's wavelet in four stages (only the mean goes on)."""
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    found, low = [], torch.eye(256, dtype=torch.float64).reshape(16, 16, 16, 16)
    while low.shape[0] > 1:
        n = low.shape[0] // 2
        bands = torch.einsum("ap,bq,ipjqyx->abijyx", pair, pair, low.reshape(n, 2, n, 2, 16, 16))
        found += [bands[a, b].reshape(-1, 256) for a, b in ((0, 1), (1, 0), (1, 1))]
        low = bands[0, 0]
    return torch.cat([*found, low.reshape(1, 256)])


def components_of(basis: torch.Tensor):
    """What stands in for principal components: a fixed transform of patches after a KLT of colours."""

    def components(crops, M):
        mean = crops.mean((0, 2, 3))
        centred = (crops - mean[None, :, None, None]).double()
        pixels = centred.permute(1, 0, 2, 3).reshape(3, -1)
        colours = torch.linalg.eigh(pixels @ pixels.T / pixels.shape[1])[1].T
        kernels = torch.einsum("kc,py->kpcy", colours, basis).reshape(-1, 3, 16, 16)
        patches = (
            torch.nn.functional.unfold(centred, 16, stride=16).transpose(1, 2).reshape(-1, 768)
        )
        energy = (patches @ kernels.reshape(-1, 768).T).square().mean(0)
        order = torch.argsort(energy, descending=True)[:M]
        return kernels[order].float(), energy[order].clamp(min=1e-16).sqrt().float(), mean

    return components


def principal_components(
    crops: torch.Tensor, M: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading principal components of 16x16 patches: a KLT of colours and places at once."""
    mean = crops.mean((0, 2, 3))
    patches = torch.nn.functional.unfold(crops - mean[None, :, None, None], 16, stride=16)
    flat = patches.transpose(1, 2).reshape(-1, 768).double()
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    order = torch.argsort(values, descending=True)[:M]
    std = values[order].clamp(min=1e-8).sqrt()
    vectors = vectors[:, order] * torch.sign(vectors[:, order].sum(0) + 1e-12)
    return vectors.T.reshape(M, 3, 16, 16).float(), std.float(), mean


BASES = {
    "cosine": cosine_components,
    "haar": components_of(haar()),
    "klt": principal_components,
}


def make_run(student, pool, recipe, optimiser="adam"):
    run = Run(student, pool, recipe)
    groups = run.optimiser.param_groups
    bare = [{"params": g["params"], "scale": g["scale"]} for g in groups]
    if optimiser == "soap":
        run.optimiser = _Split(bare, _soap, lambda p: p.dim() == 4, recipe.lr)
    elif optimiser == "muon":
        run.optimiser = _Muon(bare, recipe.lr)
    return run


def _soap(groups, lr):
    return pytorch_optimizer.SOAP(groups, lr=lr, weight_decay=0.0)


class _Split:
    """One optimiser for the tensors it is made for, Adam for the rest."""

    def __init__(self, groups, make, belongs, lr):
        mine, rest = [], []
        for g in groups:
            chosen = [p for p in g["params"] if belongs(p)]
            others = [p for p in g["params"] if not belongs(p)]
            mine += [{**g, "params": chosen}] if chosen else []
            rest += [{**g, "params": others}] if others else []
        self.parts = (make(mine, lr), torch.optim.Adam(rest, lr=lr))

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
    """Muon on matrices of the main group, Adam on everything else, at a tenth of its rate."""

    def __init__(self, groups, lr):
        main = [p for p in groups[0]["params"] if p.dim() >= 2 and p.shape[0] > 6]
        kept = {id(p) for p in main}
        rest = [{**g, "params": [p for p in g["params"] if id(p) not in kept]} for g in groups]
        for g in rest:
            g["scale"] = g["scale"] * 0.1
        self.views = [torch.nn.Parameter(p.detach().flatten(1)) for p in main]
        self.main = main
        self.muon = torch.optim.Muon(
            [{"params": self.views, "scale": 1.0}], lr=lr, weight_decay=0.0
        )
        self.adam = torch.optim.Adam(rest, lr=lr * 0.1)

    @property
    def param_groups(self):
        return self.muon.param_groups + self.adam.param_groups

    def zero_grad(self, set_to_none=True):
        for p in self.main:
            p.grad = None
        self.adam.zero_grad(set_to_none=set_to_none)

    def step(self):
        for view, p in zip(self.views, self.main, strict=True):
            view.data = p.data.flatten(1)
            view.grad = p.grad.flatten(1)
        self.muon.step()
        self.adam.step()


def begun(arch, crops, basis="cosine", seed=0):
    torch.manual_seed(seed)
    student = Student(arch)
    with mock.patch("nas_kd.codec.student.cosine_components", BASES[basis]):
        student.start_from(crops[:FIRST_CROPS].float() / 255)
    return student


def train(student, crops, recipe, optimiser):
    run = make_run(student, CropPool(crops), recipe, optimiser)
    started = time.process_time()
    run.run()
    return student.eval(), time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--crops", type=int, default=128, help=f"of {SIDE} px")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--arch", choices=("largest", "middle"), default="largest")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--data", default="builtin")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.crops, args.arms = 60, 32, "adam,adam linear 0,soap"
    torch.set_num_threads(1)
    space = load_space("demo")
    arch = space.extreme(largest=True) if args.arch == "largest" else space.arch(MIDDLE)
    photographs = open_images(args.data, "train", 0)

    def crops_of(side):
        count = args.crops * SIDE**2 // side**2
        return torch.from_numpy(crop_pool(photographs, count, side, 0))

    crops = crops_of(SIDE)
    images = open_images("builtin", "eval")
    anchor = evaluate(StudentCodec(begun(arch, crops)), images).curve()
    results = []
    for seed in map(int, args.seeds.split(",")):
        for name in args.arms.split(","):
            arm = dict(ARMS[name])
            optimiser, basis = arm.pop("optimiser", "adam"), arm.pop("basis", "cosine")
            side, lowered = arm.pop("side", SIDE), arm.pop("bf16", False)
            recipe = replace(Recipe(args.steps, round(BATCH * SIDE**2 / side**2), seed=seed), **arm)
            pool = crops if side == SIDE else crops_of(side)
            start = begun(arch, crops, basis, seed)
            if lowered:
                in_bfloat16(start)
            student, seconds = train(start, pool, recipe, optimiser)
            curve = evaluate(StudentCodec(in_float32(student)), images).curve()
            rate = bd_rate(anchor, curve, quality_interval(anchor))
            row = {"arm": name, "seed": seed, "steps": args.steps, "cpu_s": round(seconds, 1)}
            row |= {"rd_loss_percent": round(rd_loss(curve, student.lmbdas), 2)}
            row |= {"bd_rate_percent": rate.value, "reason": rate.reason}
            row |= {"bpp_est": [round(b, 4) for b in curve.bpp]}
            row |= {"psnr_db": [round(q, 3) for q in curve.psnr_db]}
            print(json.dumps(row), flush=True)
            results.append(row)
    print(
        json.dumps(
            {
                "arch": str(arch),
                "start": {
                    "bpp_est": anchor.bpp,
                    "psnr_db": anchor.psnr_db,
                    "rd_loss_percent": rd_loss(anchor, begun(arch, crops).lmbdas),
                },
                "steps": args.steps,
                "date": time.strftime("%F"),
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
                "arms": results,
            }
        )
    )


if __name__ == "__main__":
    main()
