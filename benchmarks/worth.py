"""What a search is worth: its front, the line of one shape scaled in width, and as many random archs.

    python benchmarks/worth.py --quick
    python benchmarks/worth.py --trials 100 --data photographs --pictures 8
    python benchmarks/worth.py --trials 100 --data photographs --steps 500 --train photographs

All are slices of the same shared weights (``mini``, the family of ``demo``), scored on the same pictures by estimated
rates, without a step of their own. Objectives are BD-rate against ``mini`` and the decoder's MACs, which the sampler
knows beforehand. The width arm is the paper's way: the largest arch's depths, with every choice of its widths (both
sides alike), M and hyper-width. A front says, at so many MACs, the best BD-rate for no more; compared are two fronts at
32 budgets between the larger of their least MACs and the smaller of their most, and the mean difference stands with its
95 % interval over pictures drawn anew. Below 0 the search is ahead.

With ``--steps`` each member of the three fronts is trained for so long on its own, from its slice, and the fronts are
compared again by what became of them.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from itertools import product

import numpy as np
import optuna
import torch
from harness import add_out, family, finish, hardware, options, said

from nas_kd.codec.arch import Arch
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.data.images import ImageSet, crop_pool, open_images
from nas_kd.distillation.training import CropPool, Run
from nas_kd.evaluation.bd_rate import RDCurve, bd_rate
from nas_kd.evaluation.rate_distortion import Measured, StudentCodec, evaluate
from nas_kd.recipe import Recipe
from nas_kd.seeds import derived_seed
from nas_kd.study.anchor import interval_db
from nas_kd.study.sampler import make_sampler
from nas_kd.study.task import SLICE_LR
from nas_kd.teachers.teacher import load_teacher

OBJECTIVES = ("bd_rate", "flops:decoder")
BUDGETS, DRAWS = 32, 300
CROPS, SIDE = 1500, 256
UNSCORED = 1e3
"""BD-rate in per cent of an arch that has none."""


class Scores:
    """Archs and what they were measured to be, each once."""

    def __init__(self, pictures):
        self.pictures, self.family = pictures, family()
        self.teacher = evaluate(load_teacher("mini"), pictures)
        self.measured: dict[Arch, Measured] = {}

    def of(self, arch: Arch) -> tuple[float, float]:
        """BD-rate and the decoder's kMAC/px."""
        if arch not in self.measured:
            self.measured[arch] = evaluate(StudentCodec(self.family.student(arch)), self.pictures)
        return self.rate(arch, np.arange(len(self.pictures))), kmac_px(arch)

    def rate(self, arch: Arch, drawn: np.ndarray) -> float:
        """BD-rate over pictures that are drawn with repetition."""
        anchor = curve(self.teacher, drawn)
        found = bd_rate(anchor, curve(self.measured[arch], drawn), interval_db(anchor))
        return UNSCORED if found.value is None else found.value


def trained(scores: Scores, archs: list[Arch], steps: int, crops: torch.Tensor) -> Scores:
    """Scores of archs that have each been trained for so many steps of 2 crops, from their slices."""
    found = copy.copy(scores)
    found.measured = {}
    for n, arch in enumerate(archs):
        student = scores.family.student(arch)
        Run(student, CropPool(crops), Recipe(steps, lr=SLICE_LR * Recipe(0).lr)).run()
        found.measured[arch] = evaluate(StudentCodec(student.eval()), scores.pictures)
        print(f"trained {n + 1} of {len(archs)}: {found.of(arch)[0]:+.1f} %", flush=True)
    return found


def some(images: ImageSet, count: int) -> ImageSet:
    """At most so many of the pictures, evenly spread."""
    kept = range(0, len(images), max(1, -(-len(images) // count)))
    lists = (images.images, images.names, images.sizes)
    pictures, names, sizes = ([each[i] for i in kept] for each in lists)
    return replace(images, images=pictures, names=tuple(names), sizes=tuple(sizes))


def curve(measured: Measured, drawn: np.ndarray) -> RDCurve:
    """The mean over some of the pictures."""
    rates, qualities = np.array(measured.rate)[:, drawn], np.array(measured.psnr_db)[:, drawn]
    return RDCurve(tuple(rates.mean(1).tolist()), tuple(qualities.mean(1).tolist()))


def kmac_px(arch: Arch) -> float:
    """Of the decoder."""
    return arch_cost(arch).decoder.macs / (512 * 768) / 1e3


def searched(scores: Scores, space, name: str, trials: int, seed: int) -> list[Arch]:
    """Archs that a sampler proposes, told their values as in a search."""
    study = optuna.create_study(directions=["minimize"] * 2)
    archs = []
    for n in range(trials):
        study.sampler = make_sampler(name, space, OBJECTIVES, derived_seed(seed, name, n))
        trial = study.ask()
        arch = space.suggest(trial)
        rate, macs = scores.of(arch)
        study.tell(trial, (rate, float(arch_cost(arch).decoder.macs)))
        archs.append(arch)
        print(f"{name} {n + 1} of {trials}: {rate:+.1f} % at {macs:.2f} kMAC/px", flush=True)
    return archs


def scaled(space) -> list[Arch]:
    """The largest arch with every choice of its widths, alike on both sides."""
    names = ("width_1", "width_2")
    deepest = {name: choices[-1] for name, choices in space.vary.items()}
    lists = [
        *(space.vary[f"encoder_{name}"] for name in names),
        space.vary["M"],
        space.vary["hyper"],
    ]
    archs = []
    for *widths, M, hyper in product(*lists):
        sides = {
            f"{side}_{n}": w
            for side in ("encoder", "decoder")
            for n, w in zip(names, widths, strict=True)
        }
        archs.append(space.arch(deepest | sides | {"M": M, "hyper": hyper}))
    return archs


def front(scores: Scores, archs: list[Arch]) -> list[Arch]:
    """Those that none other is better than in both, by falling MACs."""
    best, kept = np.inf, []
    for arch in sorted(set(archs), key=kmac_px):
        rate = scores.of(arch)[0]
        if rate < min(best, UNSCORED):
            best = rate
            kept.append(arch)
    return kept


def at_budgets(scores: Scores, members: list[Arch], budgets: np.ndarray, drawn) -> np.ndarray:
    """The best BD-rate for no more MACs."""
    costs = np.array([kmac_px(arch) for arch in members])
    rates = np.array([scores.rate(arch, drawn) for arch in members])
    return np.array([rates[costs <= budget * (1 + 1e-9)].min() for budget in budgets])


def compared(scores: Scores, ours: list[Arch], theirs: list[Arch]) -> dict:
    """The mean difference of two fronts at equal MACs, in points of BD-rate, and its interval over pictures."""
    low, high = (
        of(end(kmac_px(arch) for arch in members) for members in (ours, theirs))
        for of, end in ((max, min), (min, max))
    )
    budgets, rng = np.geomspace(low, high, BUDGETS), np.random.default_rng(0)
    n = len(scores.pictures)

    def difference(drawn):
        return float(
            np.mean(
                at_budgets(scores, ours, budgets, drawn)
                - at_budgets(scores, theirs, budgets, drawn)
            )
        )

    draws = [difference(rng.integers(n, size=n)) for _ in range(DRAWS)]
    return {
        "points_of_bd_rate": round(difference(np.arange(n)), 2),
        "interval_95": [round(float(q), 2) for q in np.quantile(draws, (0.025, 0.975))],
        "from_to_kmac_px": [round(low, 2), round(high, 2)],
    }


def told(scores: Scores, fronts: dict[str, list[Arch]]) -> dict:
    """The members of each front, and the search's front against the others."""
    members = {
        name: [[round(v, 3) for v in scores.of(arch)] + [str(arch)] for arch in archs]
        for name, archs in fronts.items()
    }
    ours = fronts["search"]
    against = {n: compared(scores, ours, fronts[n]) for n in ("width", "random")}
    return {"fronts": members} | {f"search_against_{n}": found for n, found in against.items()}


def main() -> None:
    parser = options(__doc__)
    add_out(parser, "worth")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--pictures", type=int, default=8, help="at most so many of them")
    parser.add_argument("--steps", type=int, default=0, help="train the fronts' members for")
    parser.add_argument("--train", default="builtin", help="on these pictures")
    args = parser.parse_args()
    if args.quick:
        args.trials, args.pictures, args.steps = 4, 1, 2
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, started = load_space("demo"), time.monotonic()
    scores = Scores(some(open_images(args.data, "eval"), args.pictures))
    archs = {"width": scaled(space)[:: 4 if args.quick else 1]}
    for name, sampler in (("search", "exact-cost"), ("random", "random")):
        archs[name] = searched(scores, space, sampler, args.trials, args.seed)
    fronts = {name: front(scores, tried) for name, tried in archs.items()}
    result = {"benchmark": "worth", "settings": said(args)} | hardware()
    result["archs"] = {name: len(set(tried)) for name, tried in archs.items()}
    result |= told(scores, fronts)
    if args.steps:
        members = list(dict.fromkeys(arch for front in fronts.values() for arch in front))
        count = 8 if args.quick else CROPS
        pool = crop_pool(open_images(args.train, "train", 0), count, SIDE, 0)
        crops = torch.from_numpy(np.asarray(pool))
        result["trained"] = told(trained(scores, members, args.steps, crops), fronts)
    result["seconds"] = round(time.monotonic() - started)
    finish(result, args.out)


if __name__ == "__main__":
    main()
