"""Train the weights that come with nas-kd: those of every arch of a space, the largest of which is a teacher.

    python scripts/train_family.py --data PICTURES --data MORE --out family [--steps 60000] [--quick]

Each step trains the largest arch, every other one a random one too, on crops drawn anew. It resumes from its
checkpoint; a finished run is trained on with ``--further FAMILY``, which grows where the space is deeper.
"""

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch

from nas_kd.codec.checkpoint import in_half_precision, load_student
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import LMBDAS
from nas_kd.data.images import decoded, open_images
from nas_kd.device import best_device
from nas_kd.distillation.training import EveryCrop, Run
from nas_kd.recipe import Optimiser, Recipe
from nas_kd.seeds import derived_seed
from nas_kd.supernet.growth import grown
from nas_kd.supernet.shared_weights import Shared, shared_name
from nas_kd.supernet.warmup import EXCHANGE, FEW
from nas_kd.teachers.make import write_teacher

START = 600
"""Crops that the trunk starts from."""
PROBE = 10
"""Steps between looks at the clock."""


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", default="demo")
    parser.add_argument("--data", action="append", required=True, help="a folder; may be repeated")
    parser.add_argument("--eval-data", default="builtin", help="the pictures of the card's curves")
    parser.add_argument("--steps", type=int, default=60000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.5)
    parser.add_argument("--optimiser", choices=get_args(Optimiser), default="soap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--others", type=float, default=0.5, help="random archs a step, in the mean"
    )
    parser.add_argument("--further", type=Path, help="folder of a family to train on")
    parser.add_argument("--until", type=int, help="stop at this step, with a checkpoint")
    parser.add_argument("--seconds", type=float, help="as many steps as this time allows")
    parser.add_argument("--quick", action="store_true", help="20 steps")
    given = parser.parse_args()
    given.steps = 20 if given.quick else given.steps
    return given


def family_of(given, crops):
    torch.manual_seed(derived_seed(given.seed, "family"))
    if given.further is None:
        return Shared(load_space(given.space), LMBDAS, crops.sample(START, given.seed))
    shared = Shared(load_space(given.space), LMBDAS)
    wide = load_student(given.further)
    if wide.arch != shared.arch:
        wide = grown(wide, shared.arch)
    with torch.no_grad():
        for name, p in wide.named_parameters():
            shared.get_parameter(shared_name(name, wide.arch)).copy_(p)
    return shared


def forwards_of(shared, seed, others, few):
    """The largest arch in each step; of the others a quarter are the smallest, the rest lie anywhere between."""

    def forwards(step):
        draw = random.Random(derived_seed(seed, "family", step))
        those = derived_seed(seed, "few", step // EXCHANGE) if few else None
        archs = [draw.choice(shared.largest)]
        for _ in range(int(others + draw.random())):
            smallest = draw.random() < 0.25
            other = leaning(shared.space, draw, those)
            archs.append(draw.choice(shared.smallest) if smallest else other)
        return [shared.through(arch) for arch in archs]

    return forwards


def leaning(space, draw, few):
    """An arch of which a share, itself drawn, is as in the largest: uniform draws never come near it."""
    seed = draw.randrange(2**32)
    seed = seed if few is None else derived_seed(few, seed % FEW)
    share = random.Random(derived_seed(seed, "share")).random()
    return space.draw(seed, largest=share)


def recipe_of(given, steps):
    return Recipe(
        steps,
        given.batch,
        given.lr,
        decay=given.decay,
        seed=given.seed,
        optimiser=given.optimiser,
    )


def steps_within(given, crops, device):
    """Steps that the time allows, by those that a throw-away run takes in a tenth of it."""
    shared = family_of(given, crops).to(device)
    forwards = forwards_of(shared, given.seed, given.others, few=device == "cuda")
    run = Run(shared, crops, recipe_of(given, 10**9), forwards=forwards)
    run.run(until=PROBE // 2)  # libraries are loaded, graphs captured
    first, started, taken_s = run.step, time.monotonic(), 0.0
    while taken_s < given.seconds / 10:
        run.run(until=run.step + PROBE)
        taken_s = time.monotonic() - started
    return max(int(0.85 * given.seconds * (run.step - first) / taken_s), 1)


def main():
    given = parsed()
    sets = [open_images(folder, "train") for folder in given.data]
    device = best_device()
    pictures = [image for each in sets for image in decoded(each, told_decoding)]
    crops = EveryCrop(pictures, given.size, device)
    shared = family_of(given, crops).to(device)
    if given.seconds is not None:
        given.steps = steps_within(given, crops, device)
    recipe = recipe_of(given, given.steps)
    given.out.mkdir(parents=True, exist_ok=True)
    checkpoint = given.out / "checkpoint.pt"
    forwards = forwards_of(shared, given.seed, given.others, few=device == "cuda")
    run = Run(shared, crops, recipe, checkpoint=checkpoint, forwards=forwards)
    first, started = run.step, time.monotonic()
    run.run(told(recipe, first, started), until=given.until)
    training = {
        "space": shared.space.name,
        "recipe": asdict(recipe) | {"crop_size": given.size, "others": given.others},
        "steps": run.step,
        "device": device,
        "data": [
            {"name": Path(folder).name, "pictures": len(each), "fingerprint": each.fingerprint}
            for folder, each in zip(given.data, sets, strict=True)
        ],
    }
    if given.further is not None:
        training["from"] = json.loads((given.further / "card.json").read_text())["training"]
    mini = in_half_precision(shared.cpu().student(shared.arch))
    write_teacher(mini, training, given.eval_data, given.out, shared.space.fingerprint)


def told_decoding(done, of):
    if done % 500 == 0 or done == of:
        print(f"{done} of {of} pictures decoded", flush=True)


def told(recipe, first, started):
    losses = []

    def report(step, metrics):
        losses.append(metrics["loss"])
        if step % 500 == 0 or step == recipe.steps:
            per_step_s = (time.monotonic() - started) / (step - first)
            mean, left_min = sum(losses) / len(losses), (recipe.steps - step) * per_step_s / 60
            losses.clear()
            print(
                f"step {step} of {recipe.steps}: loss {mean:.4f} in the mean, "
                f"{1e3 * per_step_s:.0f} ms a step, {left_min:.0f} min left",
                flush=True,
            )

    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
