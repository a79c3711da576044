"""What blocks in bfloat16 save of a training step on a processor, and what they cost in quality.

    python benchmarks/arithmetic.py [--quick]
    python benchmarks/arithmetic.py --train 3000 --data DIR --eval-data DIR --kept FILE --out

Steps of `mini`, crops of 256 px, by both optimisers, with its blocks in float32 and in bfloat16, in turns; the
processor's milliseconds on one thread, medians. ``--train``: the form "depthwise" of ``blocks.py`` trained so many
steps from its linear start in both, on the same crops with the same seeds, judged in float32. A processor without
instructions for bfloat16 is far slower with it; ``quick_here`` says whether this one has them.

The last line is JSON: ms by optimiser and arithmetic, the ratio, and the trainings.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from functools import partial

import torch
from blocks import FORMS, SIDE, Kept, add_training, begun, numbers, pictures, timed, trained
from harness import MINI, add_out, finish, hardware, options, said

from nas_kd.codec.bfloat16 import is_quick
from nas_kd.codec.checkpoint import load_student
from nas_kd.distillation.training import CropPool, Recipe, Run

ARMS = {"float32": False, "bfloat16": True}
FORM = "depthwise"
AT_ONCE = 2
"""Steps of an arm before the next has its turn."""


class Arm(Run):
    """A run whose blocks are in the arithmetic that its name says."""

    def __init__(self, name: str, *given, **named):
        super().__init__(*given, **named)
        self.in_bfloat16 = ARMS[name]


def clocked(crops: torch.Tensor, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step by optimiser and arithmetic, and their ratio."""
    pool, runs = CropPool(crops), {}
    for optimiser in ("adam", "soap"):
        recipe = Recipe(10**9, batch, 1e-6, optimiser=optimiser, checkpoint_s=1e9)
        for name in ARMS:
            runs[optimiser, name] = Arm(name, load_student(MINI), pool, recipe)
            runs[optimiser, name].run(until=3)
    taken: dict = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            ms, _ = timed(lambda r=run: r.run(until=r.step + AT_ONCE))
            taken[key].append(ms / AT_ONCE)
    found: dict[str, dict[str, float]] = {}
    for (optimiser, name), ms in taken.items():
        found.setdefault(optimiser, {})[name] = round(statistics.median(ms), 1)
    for one in found.values():
        one["ratio"] = round(one["bfloat16"] / one["float32"], 3)
    return found


def main() -> None:
    parser = options(__doc__)
    add_out(parser, "arithmetic")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--train", type=int, default=0, help="steps of the trainings; 0: none")
    parser.add_argument("--seeds", default="0", help="of the trainings, comma-separated")
    add_training(parser)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.crops = 2, 24
        args.train = args.train and 10
    torch.set_num_threads(1)
    crops, images = pictures(args)
    result = {"benchmark": "arithmetic", "settings": said(args)} | hardware()
    result |= {"quick_here": is_quick(), "crop_px": SIDE, "trainings": []}
    result["step_ms"] = clocked(crops, args.batch, args.rounds)
    print(json.dumps(result["step_ms"]), flush=True)
    kept = Kept(args.kept)
    for seed in numbers(args.seeds) if args.train else []:
        for name in ARMS:
            recipe = Recipe(args.train, args.batch, seed=seed, optimiser=args.optimiser)
            of = [FORM, name, asdict(recipe), images.fingerprint, len(crops)]
            start = begun(FORMS[FORM], crops, seed)
            make = partial(trained, start, crops, recipe, images, run=partial(Arm, name))
            result["trainings"].append({"arithmetic": name} | kept.or_made(of, start, make)[0])
            print(json.dumps(result["trainings"][-1]), flush=True)
    finish(result, args.out)


if __name__ == "__main__":
    main()
