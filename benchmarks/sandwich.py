"""How shared weights are best trained: who teaches the narrow archs of a step, the teacher or the largest arch.

Every arm trains the shared weights of `demo` from the same start on the same batches; then some random archs are
scored straight from their slices. "teacher": every arch learns from the teacher's outputs. "in place": the largest
does, and the others take the largest's output of the same step in the teacher's place (Yu and Huang, 2019).
"alone": nobody has a teacher.

    python benchmarks/sandwich.py --quick
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from harness import add_out, finish, hardware, options
from sharing import score

from nas_kd.codec.search_space import load_space
from nas_kd.data.images import open_images
from nas_kd.distillation.loss import CONTROL, Weights, distillation_loss
from nas_kd.distillation.training import Recipe, Run
from nas_kd.evaluation.rate_distortion import evaluate
from nas_kd.seeds import derived_seed
from nas_kd.supernet.shared_weights import Shared
from nas_kd.supernet.warmup import sandwich
from nas_kd.teachers.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teachers.teacher import load_teacher


class InPlace(Run):
    """A run whose archs after the first learn from the first one's output."""

    def _gradients(self, batch):
        first = {}
        for forward in self.forwards(self.step):
            out = forward(batch.x, batch.level.float())
            terms = distillation_loss(out, batch, self.weights, self.adapters)
            terms["loss"].backward()
            if not first:
                first = {name: term.detach() for name, term in terms.items()}
                batch = replace(batch, x_hat_T=out["x_hat"].detach().clamp(0, 1))
        return first


OUTPUTS = Weights(0.5, 0.05, 0.0)
ARMS = {"teacher": (Run, OUTPUTS), "in place": (InPlace, OUTPUTS), "alone": (Run, CONTROL)}


def trained(name: str, space, pool: TargetPool, lmbdas, recipe: Recipe) -> Shared:
    """The shared weights of an arm."""
    run, weights = ARMS[name]
    torch.manual_seed(derived_seed(recipe.seed, "shared", space.fingerprint))
    shared = Shared(space, lmbdas, pool.pictures())
    forwards = sandwich(shared, recipe.seed)
    run(shared, pool, recipe, weights, pool.latent_widths, forwards=forwards, graphs=False).run()
    return shared.eval()


def main() -> None:
    parser = options(__doc__)
    add_out(parser, "sandwich")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--archs", type=int, default=8)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--crops", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/nas-kd-sandwich"))
    args = parser.parse_args()
    if args.quick:
        args.steps, args.archs, args.crops = 20, 2, 16
    torch.set_num_threads(1)
    space, teacher = load_space("demo"), load_teacher("mini")
    asked = PoolRecipe(args.data, args.crops, x_hat=True)
    pool = TargetPool(target_pool(args.cache / "targets", teacher, asked))
    images = open_images("builtin", "eval")
    anchor = evaluate(teacher, images).curve()
    archs = [space.draw(derived_seed(0, "arch", i)) for i in range(args.archs)]
    arms = {}
    for name in args.arms.split(","):
        started = time.process_time()
        recipe = Recipe(args.steps, seed=args.seed)
        shared = trained(name, space, pool, teacher.lmbdas, recipe)
        seconds = time.process_time() - started
        scores = [score(shared.student(arch).eval(), images, anchor) for arch in archs]
        mean = statistics.mean(s["loss"] for s in scores)
        arms[name] = {"cpu_s": seconds, "mean_loss": mean, "archs": scores}
        print(f"{name}: mean log R-D loss {mean:.2f} %, {seconds:.0f} s", flush=True)
    found = {"benchmark": "sandwich", "steps": args.steps} | hardware()
    found |= {"seed": args.seed, "archs": [str(a) for a in archs], "arms": arms}
    finish(found, args.out)


if __name__ == "__main__":
    main()
