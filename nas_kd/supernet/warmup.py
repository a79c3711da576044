"""The warm-up: one set of shared weights, distilled before the trials, that every trial starts from.

Each step follows the sandwich rule: the same pictures and levels pass through the largest arch, the
smallest and a few random ones, and the shared weights receive the sum of their gradients (Yu and Huang, 2019).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from nas_kd import __version__
from nas_kd.codec.arch import Arch
from nas_kd.codec.search_space import SearchSpace
from nas_kd.device import one_thread
from nas_kd.distillation.training import Forward, Report, Run
from nas_kd.files import build_once, write_bytes, write_text
from nas_kd.measurement.device_lock import training_on
from nas_kd.recipe import Recipe, Weights
from nas_kd.seeds import derived_seed
from nas_kd.supernet.shared_weights import Shared
from nas_kd.teachers.targets import Lessons

FORMAT = 4
"""Raised when the parameters that students share, or their training, change."""
STEPS = 1000
"""Steps where nothing is said and the teacher is no family of the space."""
SHARED, CARD = "shared.safetensors", "card.json"
CALM = 192
"""Channels of the widest stage up to which a trunk bears the whole rate (entry 69 of benchmarks/LOG.md)."""
BETWEEN = 2
"""Random archs per step, beside the largest and the smallest."""
FEW, EXCHANGE = 48, 500
"""Random archs that a GPU's warm-up has graphs of (48 took 13.7 s and 2.9 GiB on an H200), and steps that they stay."""


def rate_share(space: SearchSpace) -> float:
    """What a warm-up takes of the learning rate: a step moves what a stage gives by as much as the stage is wide."""
    sides = [side for arch in space.corners(True) for side in (arch.encoder, arch.decoder)]
    widest = max((width for side in sides if side.trunk for width in side.widths), default=0)
    return CALM / max(CALM, widest)


def sandwich(shared: Shared, seed: int, few: bool = False) -> Callable[[int], list[Forward]]:
    """The forwards of each step; which archs they are follows from (seed, step), and ``few`` as in ``drawn``."""

    def forwards(step: int) -> list[Forward]:
        generator = random.Random(derived_seed(seed, "sandwich", step))
        archs = [generator.choice(shared.largest), generator.choice(shared.smallest)]
        those = derived_seed(seed, "few", step // EXCHANGE) if few else None
        archs += [drawn(shared.space, generator, those) for _ in range(BETWEEN)]
        return [shared.through(arch) for arch in archs]

    return forwards


def drawn(space: SearchSpace, generator: random.Random, few: int | None) -> Arch:
    """Any arch of a space; of the few that a seed draws where one is given: a graph pays where its arch comes again."""
    if few is None:
        return space.draw(generator.randrange(2**32))
    return space.draw(derived_seed(few, generator.randrange(FEW)))


def warm_up(
    cache: Path,
    space: SearchSpace,
    lmbdas: tuple[float, ...],
    pool: Lessons,
    recipe: Recipe,
    weights: Weights,
    report: Report | None = None,
    further: Path | None = None,
) -> Path:
    """The folder of the shared weights below ``cache``: trained now on the pool's device, resumed, or there already.

    Args:
        cache: of all shared weights.
        space: of the students.
        lmbdas: one Lagrange multiplier per level.
        pool: crops with the teacher's outputs.
        recipe: steps and rates.
        weights: the loss.
        report: hears of the run as ``Run`` reports.
        further: the folder of shared weights to train on; else they start as a linear transform codec.
    """
    folder = cache / _key(space, lmbdas, pool, recipe, weights, further)

    def begun() -> Shared:
        if further is None:
            return Shared(space, lmbdas, pool.pictures())
        return load_shared(further, space, lmbdas)

    def build(unfinished: Path) -> None:
        with one_thread():
            torch.manual_seed(derived_seed(recipe.seed, "shared", space.fingerprint))
            _train(unfinished, begun().to(pool.device), pool, recipe, weights, report)

    return build_once(folder, build, lambda there: _is_whole(there, space, lmbdas))


def _is_whole(folder: Path, space: SearchSpace, lmbdas: tuple[float, ...]) -> bool:
    with suppress(OSError, RuntimeError, ValueError, SafetensorError):
        load_shared(folder, space, lmbdas)
        return bool(json.loads((folder / CARD).read_text()))
    return False


def _train(
    unfinished: Path,
    shared: Shared,
    pool: Lessons,
    recipe: Recipe,
    weights: Weights,
    report: Report | None,
) -> None:
    checkpoint = unfinished / "checkpoint.pt"
    forwards = sandwich(shared, recipe.seed, few=pool.device.startswith("cuda"))
    run = Run(shared, pool, recipe, weights, pool.latent_widths, checkpoint, forwards)
    with training_on(pool.device) as between_steps:
        run.run(report, between_steps)
    tensors = {n: p.detach().cpu().contiguous() for n, p in shared.named_parameters()}
    write_bytes(unfinished / SHARED, save(tensors))
    card = {
        "nas_kd": __version__,
        "torch": torch.__version__,
        "space": {"name": shared.space.name, "fingerprint": shared.space.fingerprint},
        "lmbdas": shared.lmbdas,
        "recipe": asdict(recipe),
        "weights": asdict(weights),
        "targets": pool.key,
        "device": pool.device,
    }
    write_text(unfinished / CARD, json.dumps(card, indent=1) + "\n")
    checkpoint.unlink()


def load_shared(folder: Path, space: SearchSpace, lmbdas: tuple[float, ...]) -> Shared:
    """The shared weights that ``warm_up`` wrote."""
    shared = Shared(space, lmbdas)
    tensors = load_file(folder / SHARED).items()
    shared.load_state_dict({name: tensor.float() for name, tensor in tensors})
    return shared.eval()


def _key(
    space: SearchSpace,
    lmbdas: tuple[float, ...],
    pool: Lessons,
    recipe: Recipe,
    weights: Weights,
    further: Path | None,
) -> str:
    trained = asdict(recipe)
    trained.pop("checkpoint_s")
    parts = [FORMAT, space.fingerprint, lmbdas, pool.key, trained, asdict(weights), BETWEEN]
    if further is not None:
        parts.append(hashlib.sha256((further / SHARED).read_bytes()).hexdigest())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
