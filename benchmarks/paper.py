"""The paper's experiments (arXiv 2509.10366) at a scale that a small machine can train: its studies, narrower.

Two teachers are trained first, bmshj2018-hyperprior of qualities 5 and 1 at fewer channels and steps. Then
the study files of studies/ run, with fewer widths, steps and crops, several seeds each, through the same study and
trials as `nas-kd search FILE`, in processes of this script. What is compared is R + lambda 255^2 D on the middles of
pictures that were not trained on, as large as the crops.

    python benchmarks/paper.py --data photographs --eval-data others --folder work
    python benchmarks/paper.py --quick

Everything resumes: the same command goes on where it was stopped, in the same folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paper_figures
from harness import add_out, finish, hardware, options
from PIL import Image

from nas_kd.cluster.worker import Order, trial_alone
from nas_kd.data.images import open_images
from nas_kd.distillation.training import Recipe
from nas_kd.report.paper import device_name
from nas_kd.study.prepare import prepare
from nas_kd.study.settings import Settings, load_studies
from nas_kd.study.study import Study
from nas_kd.teachers.make import CropsOf, train_family
from nas_kd.teachers.teacher import load_teacher

FILES = Path(__file__).resolve().parents[1] / "studies"
FAMILY = "bmshj2018-hyperprior"
SCALED = ("steps", "lr", "batch", "crops", "crop_size")
"""What differs from the study files, for all forms alike, beside the grid."""


@dataclass(frozen=True)
class Part:
    """Some studies of one file: which of its ``[[each]]``, at which widths, for which seeds."""

    name: str
    file: str
    each: tuple[str, ...]
    widths: tuple[int, ...]
    seeds: int
    given: dict[str, Any] = field(default_factory=dict)

    def settings(self, args: argparse.Namespace, seed: int) -> Iterator[Settings]:
        """The studies of one seed."""
        given: dict[str, Any] = {key: getattr(args, key) for key in SCALED}
        given |= {"data": args.data, "eval_data": args.eval_data, "weights": "weights"}
        given |= {"seed": seed, "grid": {"N": list(self.widths)}} | self.given
        name = f"{self.name}-s{seed}"
        for found in load_studies(FILES / f"{self.file}.toml", name, given):
            if found.name.removeprefix(f"{name}-") in self.each or found.name == name:
                yield found


def plan(args: argparse.Namespace) -> list[Part]:
    """All parts, the ones that decide most first."""
    one, narrow = (args.width,), (args.narrow,)
    lambdas = tuple(f"teacher-{q}-lambda-{i}" for q in (5, 1) for i in range(1, 6))
    control = {"form": "kd", "kd_x": 0.0, "kd_y": 0.0}
    sliced = {"init": "teacher"}
    return [
        Part("sizes", "prim-corrected", ("paper", "control", "ours"), args.widths, args.seeds),
        Part("defects", "prim-corrected", ("scaled", "clean", "corrected"), one, args.seeds),
        Part(
            "slices",
            "prim-corrected",
            ("paper", "control", "ours"),
            args.widths,
            args.slice_seeds,
            sliced,
        ),
        Part("lambda", "prim-lambda", lambdas, narrow, args.lambda_seeds),
        Part("lambda-control", "prim-lambda", lambdas[:5], narrow, args.lambda_seeds, control),
        Part("weights", "prim-weights", ("1-1-8", "3-3-4", "4-4-2"), narrow, args.other_seeds),
        Part("terms", "prim-weights", ("ours-output", "ours-latents"), narrow, args.other_seeds),
        Part("kld", "prim-kld", (), narrow, args.other_seeds),
        Part("hyper", "prim-hyper", ("paper", "ours"), narrow, args.other_seeds),
        Part("hybrid", "prim-hybrid", ("paper", "ours"), narrow, args.other_seeds),
    ]


def middles(data: str, size: int) -> str:
    """A folder with the middle of every evaluation picture, ``size`` px square.

    A hyperprior that was trained on crops of 64 px, where z is one position, predicts scales badly on larger pictures.
    """
    folder = Path(f"middles-{size}").resolve()
    folder.mkdir(exist_ok=True)
    images = open_images(data, "eval")
    for i, image in enumerate(images.images):
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        Image.fromarray(image[top : top + size, left : left + size]).save(folder / f"{i:03d}.png")
    return str(folder)


def train_teachers(args: argparse.Namespace) -> dict[str, Any]:
    """Both teachers, as `nas-kd teacher train` trains them; returns their cards."""
    Path("weights").mkdir(exist_ok=True)
    cards = {}
    for quality, steps in ((5, args.teacher_steps), (1, args.teacher_steps * 2 // 5)):
        out = Path(f"teacher{quality}")
        if not (out / "card.json").is_file():
            pool = CropsOf(args.data, args.crop_size)
            recipe = Recipe(steps, args.batch, args.lr)
            train_family(FAMILY, args.teacher_width, (quality,), pool, recipe, args.eval_data, out)
        for file in out.glob("*.pth.tar"):
            shutil.copy(file, "weights")
        card = json.loads((out / "card.json").read_text())
        kept = ("family", "width", "lmbdas", "bpp_est", "bpp", "psnr_db", "training")
        cards[str(quality)] = {key: card[key] for key in kept}
    return cards


def run(args: argparse.Namespace, parts: list[Part]) -> list[tuple[Part, int, Study]]:
    """Every study of every part, run to its end or found to be there already; first seeds first."""
    asked = [
        (part, seed, settings)
        for seed in range(max(part.seeds for part in parts))
        for part in parts
        if seed < part.seeds
        for settings in part.settings(args, seed)
    ]
    with multiprocessing.get_context("spawn").Pool(args.workers) as workers:
        for name, took_s in workers.imap(in_process, [settings for _, _, settings in asked]):
            print(f"{name}: {took_s:.0f} s", flush=True)
    return [(part, seed, Study(settings)) for part, seed, settings in asked]


def in_process(settings: Settings) -> tuple[str, float]:
    """A study's trials one after another in this process: as the engine runs them, without Ray's seconds."""
    started = time.monotonic()
    study = Study(settings)
    budget = study.affordable(None)
    with study.driving():
        study.reap()
        if study.counted() < budget:
            teacher = load_teacher(*settings.teacher_spec)
            prepared = prepare(study, teacher, lambda kind, detail: None)
            while (asked := study.ask(budget)) is not None:
                number, arch = asked
                order = Order(number, arch, prepared)
                study.tell(number, trial_alone(order, "cpu"))
    return settings.name, time.monotonic() - started


def parsed() -> argparse.Namespace:
    """The options."""
    parser = options(__doc__, quick="a few steps of everything")
    add_out(parser, "paper")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/nas-kd-paper"))
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--eval-data", default="builtin")
    parser.add_argument("--teacher-width", type=int, default=64)
    parser.add_argument("--teacher-steps", type=int, default=10000)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--width", type=int, default=32, help="of the loss put right term by term")
    parser.add_argument("--narrow", type=int, default=16, help="of all other parts but the first")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crops", type=int, default=2000)
    parser.add_argument("--crop-size", type=int, default=64)
    parser.add_argument(
        "--whole",
        action="store_true",
        help="judge by whole pictures, not by middles of --crop-size",
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slice-seeds", type=int, default=1)
    parser.add_argument("--lambda-seeds", type=int, default=1)
    parser.add_argument("--other-seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.quick:
        args.folder = Path(f"{args.folder}-quick")
        args.teacher_width, args.teacher_steps, args.steps, args.crops = 16, 20, 5, 32
        args.widths, args.width, args.narrow, args.seeds = [16], 16, 16, 2
    args.widths = tuple(args.widths)
    args.out = args.out and args.out.resolve()
    for name in ("data", "eval_data"):
        given = getattr(args, name)
        if given != "builtin":
            setattr(args, name, str(Path(given).resolve()))
    return args


def main() -> None:
    args = parsed()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(args.folder)
    if not args.whole:
        args.eval_data = middles(args.eval_data, args.crop_size)
    cards = train_teachers(args)
    parts = plan(args)
    if args.quick:
        parts = [parts[0], parts[1]]
    done = run(args, parts)
    found: dict[str, Any] = {
        "benchmark": "paper",
        **hardware(),
        "processor": device_name("cpu"),
        "options": {
            k: v for k, v in vars(args).items() if k not in ("folder", "data", "eval_data", "out")
        },
        "teachers": cards,
    }
    rows = [row for part, seed, study in done for row in paper_figures.rows(part.name, seed, study)]
    found |= paper_figures.summary(rows)
    found["defects"] = paper_figures.defects(done, args.width, rows)
    finish(found | {"rows": rows}, args.out)


if __name__ == "__main__":
    main()
