"""Train the shared weights that come with nas-kd, for one space and the teacher mini; resumes from its checkpoint.

    python benchmarks/train_warmup.py --data PICTURES --out nas_kd/warmups/demo-mini
    python benchmarks/train_warmup.py --data PICTURES --further nas_kd/warmups/demo-mini --lr 5e-4 --out better

The weights are stored in half precision; the last line is JSON: the card.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from nas_kd.data import open_images
from nas_kd.distill import Weights
from nas_kd.space import load_space
from nas_kd.targets import PoolRecipe, TargetPool, target_pool
from nas_kd.teacher import load_teacher
from nas_kd.train import Recipe
from nas_kd.warmup import CARD, SHARED, warm_up
from nas_kd.weights import write_text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", default="demo")
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--further", type=Path, help="shared weights to train on")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--crops", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="20 steps on 16 crops")
    parser.add_argument("--cache", type=Path, default=Path("studies/.cache"))
    given = parser.parse_args()
    if given.quick:
        given.steps, given.crops = 20, 16
    teacher, space = load_teacher("mini"), load_space(given.space)
    recipe = PoolRecipe(given.data, given.crops)
    pool = TargetPool(target_pool(given.cache / "targets", teacher, recipe))

    def report(step, metrics):
        if step % 100 == 0:
            print(f"step {step} of {given.steps}: loss {metrics['loss']:.4f}", flush=True)

    asked = Recipe(given.steps, lr=given.lr, decay=0.35)
    cache, weights = given.cache / "shared", Weights()
    folder = warm_up(cache, space, teacher.lmbdas, pool, asked, weights, report, given.further)
    given.out.mkdir(parents=True, exist_ok=True)
    halves = {name: t.half() for name, t in load_file(folder / SHARED).items()}
    temporary = given.out / f".{SHARED}.{os.getpid()}"
    save_file(halves, temporary)
    os.replace(temporary, given.out / SHARED)
    data = {
        "name": Path(given.data).name,
        "fingerprint": open_images(given.data, "train").fingerprint,
    }
    card = json.loads((folder / CARD).read_text())
    if given.further is not None:
        card["further"] = json.loads((given.further / CARD).read_text())
    card |= {"teacher": teacher.fingerprint, "pool": asdict(recipe) | {"data": data}}
    write_text(given.out / CARD, json.dumps(card, indent=1) + "\n")
    print(json.dumps(card))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
