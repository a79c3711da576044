"""Train the built-in teacher's arch further from its weights, on the best device; resumes from its checkpoint.

python benchmarks/train_mini.py --out mini --steps 20000 [--data DIR]
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch

from nas_kd.data import crop_pool, open_images
from nas_kd.passes import best_device
from nas_kd.served import BUILT_IN
from nas_kd.targets import PoolRecipe
from nas_kd.teaching import write_teacher
from nas_kd.train import CropPool, Recipe, Run
from nas_kd.weights import load_student, ready


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--crops", type=int, default=6000)
    parser.add_argument("--crop-size", type=int, default=256)
    parser.add_argument("--data", default="builtin")
    given = parser.parse_args()
    device = best_device()
    pool = PoolRecipe(given.data, given.crops, given.crop_size, 0)
    images = open_images(pool.data, "train", pool.seed)
    crops = torch.from_numpy(crop_pool(images, pool.crops, pool.size, pool.seed))
    recipe = Recipe(given.steps, given.batch, given.lr)
    student = load_student(BUILT_IN / "mini").to(device)
    given.out.mkdir(parents=True, exist_ok=True)
    checkpoint = given.out / "checkpoint.pt"
    run = Run(student, CropPool(crops, device), recipe, checkpoint=checkpoint)
    first, started = run.step, time.monotonic()

    def report(step, metrics):
        if step % 500 == 0 or step == recipe.steps:
            rate = (step - first) / (time.monotonic() - started)
            print(f"step {step} of {recipe.steps}: {rate:.1f}/s, loss {metrics['loss']:.4f}")

    run.run(report)
    training = {"from": "mini", "pool": asdict(pool), "recipe": asdict(recipe)}
    training["data"] = images.fingerprint
    write_teacher(ready(student.cpu()), training, "builtin", given.out)
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
