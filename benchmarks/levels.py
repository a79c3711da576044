"""What six levels in one student cost against one, and what scales inside its transforms bring beside its gains.

    python benchmarks/levels.py --quick
    python benchmarks/levels.py --data DIR --eval-data DIR --steps 10000 --kept FILE --out

All arms are one arch, trained from the same linear start on the same crops, without a teacher. "gains" is a student of
nas-kd: six levels, which differ in the gains on y and z alone. "decoder" and "both" have, besides, a learned scale for
each level and channel on the trunk: behind the blocks at 1/4 and 1/8, in the decoder at 1/16 too, all at one in the
beginning. Scales in the encoder make y another one at each level. "alike" has gains alone, and a loss in which every
level weighs as much: divided by lambda^0.46, as which the R-D cost grows. "one level" has only the level whose lambda
stands beside it, with all steps for it alone: what it is ahead at that level is the price of six.

The R-D cost is the mean logarithm over levels in per cent (1 is 1 %; lower is better), by estimated rates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from blocks import FORMS, Kept, add_training, begun, numbers, pictures, trained
from harness import add_out, finish, hardware, options, said
from torch import Tensor, nn

from nas_kd.codec.layers import Stage
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.distillation.loss import rate_bpp
from nas_kd.distillation.training import Run
from nas_kd.evaluation.rate_distortion import StudentCodec
from nas_kd.recipe import Recipe

ARCH = FORMS["dual, depthwise"]
ARMS = "gains;alike;decoder;both;one level 0.0018;one level 0.013;one level 0.0483"
QUICK = "gains;both;one level 0.013"


GROWTH = 0.46
"""R-D cost by lambda: 0.51 at 0.0018, 2.33 at 0.0483, of mini on pictures of BSDS500."""
MIDDLE = math.sqrt(LMBDAS[0] * LMBDAS[-1])


class Scales(nn.Module):
    """One factor per level and channel, as a logarithm; which levels a batch has is told beforehand."""

    def __init__(self, levels: int, C: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(levels, C))
        self.rows: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w], each picture by its level; one row serves all."""
        rows = self.rows.expand(len(x)) if len(self.rows) == 1 else self.rows
        return x * torch.exp(self.log_scale[rows])[:, :, None, None]


class Scaled(Student):
    """A student with scales inside its transforms."""

    def scaled(self, both: bool) -> Scaled:
        """With scales, at one, on the decoder's trunk or on both trunks."""
        for side in (self.g_s, self.g_a) if both else (self.g_s,):
            for stage in side.stages.values():
                assert isinstance(stage, Stage)
                stage.attention = Scales(self.levels, self._width(stage))
        if len(self.g_s.latent):
            self.g_s.latent.append(Scales(self.levels, self.arch.M))
        return self

    @staticmethod
    def _width(stage: Stage) -> int:
        return (
            stage.blocks[0].spatial.in_channels
            if len(stage.blocks)
            else stage.resample.out_channels
        )

    def forward(self, x: Tensor, level: Any = 1.0) -> dict[str, Any]:
        """At the trained levels only."""
        self._tell(level)
        return super().forward(x, level)

    def _tell(self, level: Any) -> None:
        rows = torch.as_tensor(level).reshape(-1).long() - 1
        for module in self.modules():
            if isinstance(module, Scales):
                module.rows = rows


class LevelByLevel(StudentCodec):
    """With scales in the encoder the levels share no analysis."""

    def every_level(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each level from the picture on."""
        for level in range(1, self.levels + 1):
            yield self.reconstruct(x, level)


def start(arm: str, crops: Tensor, seed: int) -> Student:
    """What an arm trains."""
    if arm.startswith("one level"):
        return begun(ARCH, crops, seed, lmbdas=(float(arm.split()[-1]),))
    student = begun(ARCH, crops, seed)
    if arm in ("gains", "alike"):
        return student
    scaled = Scaled(ARCH)
    scaled.load_state_dict(student.state_dict())
    return scaled.scaled(both=arm == "both")


class Alike(Run):
    """Training in which no level outweighs another."""

    def _loss(self, forward, batch):
        out = self._out(forward, batch)
        mse = (out["x_hat"] - batch.x).square().flatten(1).mean(1)
        bpp = rate_bpp(out["likelihoods"], batch.x.shape[-1] * batch.x.shape[-2])
        cost = bpp + batch.lmbda * 255**2 * mse
        return {"loss": (cost * (batch.lmbda / MIDDLE) ** -GROWTH).mean()}


def at_each(found: dict[str, Any], lmbdas: tuple[float, ...]) -> dict[float, float]:
    """Logarithm of the R-D cost at each lambda, in per cent."""
    points = zip(lmbdas, found["bpp_est"], found["psnr_db"], strict=True)
    return {
        lmbda: 100 * math.log(bpp + lmbda * 255**2 * 10 ** (-psnr / 10))
        for lmbda, bpp, psnr in points
    }


def rows_of(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each arm's cost at its levels less that of the student with gains and the same seed; negative is better."""
    rows = []
    for arm, trainings in found.items():
        lmbdas = (float(arm.split()[-1]),) if arm.startswith("one level") else LMBDAS
        for one, base in zip(trainings, found["gains"], strict=True):
            costs, bases = at_each(one, lmbdas), at_each(base, LMBDAS)
            less = {str(lmbda): round(costs[lmbda] - bases[lmbda], 2) for lmbda in costs}
            mean = round(sum(less.values()) / len(less), 2)
            rows.append({"arm": arm, **one, "against_gains_percent": less, "mean_percent": mean})
    return rows


def parsed():
    parser = options(__doc__)
    add_out(parser, "levels")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--arms", default=ARMS, help="separated by semicolons; the first is gains")
    add_training(parser)
    args = parser.parse_args()
    if args.quick:
        args.steps, args.crops, args.arms = 10, 24, QUICK
    return args


def main() -> None:
    args = parsed()
    torch.set_num_threads(1)
    crops, images = pictures(args)
    kept, found = Kept(args.kept), {}
    for arm in args.arms.split(";"):
        for seed in numbers(args.seeds):
            recipe = Recipe(args.steps, args.batch, seed=seed, optimiser=args.optimiser)
            of = [arm, str(ARCH), asdict(recipe), images.fingerprint, len(crops)]
            student = start(arm, crops, seed)
            make = partial(
                trained,
                student,
                crops,
                recipe,
                images,
                LevelByLevel,
                Alike if arm == "alike" else Run,
            )
            found.setdefault(arm, []).append(kept.or_made(of, student, make)[0])
            print(json.dumps(rows_of(found)[-1]), flush=True)
    about = {"benchmark": "levels", "settings": said(args), "arch": str(ARCH)} | hardware()
    finish(about | {"arms": rows_of(found)}, args.out)


if __name__ == "__main__":
    main()
