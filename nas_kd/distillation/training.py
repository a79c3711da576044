"""One training run: steps, checkpoints, resume.

A step is phases: it draws a batch, goes forward and backward through one codec or several, and updates
the weights. On a CPU they run as they come, on a GPU as CUDA graphs (``graphs``). Every step draws
its pictures, levels and noise from (seed, step), so that a run that was killed and resumed takes the
very steps it would have taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.codec.bfloat16 import bfloat16, is_quick
from nas_kd.data.image_file import Image8
from nas_kd.data.images import at_least, to_device
from nas_kd.distillation.feed import Feed
from nas_kd.distillation.graphs import CudaCapture, Eager, Graphs, Numbers, Terms, Way
from nas_kd.distillation.loss import CONTROL, Adapters, Batch, distillation_loss
from nas_kd.distillation.placed_pictures import (
    SYMMETRIES,
    Layout,
    PlacedPictures,
    fits,
    flat,
)
from nas_kd.distillation.soap import Soap
from nas_kd.errors import TrialFailed
from nas_kd.files import write_bytes
from nas_kd.reasons import Reason
from nas_kd.recipe import Recipe, Weights
from nas_kd.seeds import derived_seed
from nas_kd.turns import turn_of

CHECK_EVERY = 20
"""Steps between looks at the loss: a look waits for the device."""


Trainable = Any
"""A torch module with arch, lmbdas, levels and aux_loss: a student, or the weights that many students share."""


class Pictures(Protocol):
    """Where batches come from: crops, with or without the teacher's outputs on them."""

    pattern: Hashable = None
    """What distinguishes the work of a batch from that of others; few differ, for each has a graph."""

    def __len__(self) -> int: ...

    def of_one_run(self) -> Pictures:
        """What a run may draw from while others draw elsewhere."""
        return self

    def turn(self, step: int) -> None:
        """Lay out what a step draws from; steps may be taken up anywhere."""
        return

    def drawn_levels(
        self, count: int, levels: int, weights: Weights, generator: torch.Generator
    ) -> Tensor:
        """Levels [count] from 1 to ``levels``, each as likely as any other."""
        return torch.randint(1, levels + 1, (count,), generator=generator)

    def at_levels(self, level: Tensor, weights: Weights) -> Pictures:
        """The same pictures for batches of these levels [B], known to the host: with their ``pattern``."""
        return self

    def batch(self, index: Tensor, level: Tensor, lmbda: Tensor, weights: Weights) -> Batch:
        """The pictures at ``index`` [B] with what ``weights`` asks for, on the training device."""

    def is_far(self, weights: Weights) -> bool:
        """Whether batches have to be fetched from elsewhere than the training device."""


class CropPool(Pictures):
    """Crops without a teacher: uint8 [n, 3, S, S], moved to the device once."""

    def __init__(self, crops: Tensor, device: str = "cpu"):
        self.crops = crops.to(device)

    def __len__(self) -> int:
        return len(self.crops)

    def batch(self, index: Tensor, level: Tensor, lmbda: Tensor, weights: Weights) -> Batch:
        """Pictures in [0, 1]; there is no teacher here."""
        index, level, lmbda = (to_device(t, self.crops.device) for t in (index, level, lmbda))
        return Batch(self.crops[index].float() / 255, level, lmbda)

    def is_far(self, weights: Weights) -> bool:
        """They are on the device."""
        return False


class EveryCrop(Pictures):
    """All crops of all pictures, flipped and turned: cut anew for every step, hardly one comes again.

    On a GPU the pictures lie in its memory where they have room, and crops are gathered there.

    Args:
        images: uint8 [H, W, 3] each, in memory; those smaller than the crop are extended by reflection.
        size: side of a crop, in pixels.
        device: where batches are wanted.
    """

    def __init__(self, images: Sequence[Image8], size: int, device: str = "cpu"):
        self.images = [at_least(image, size) for image in images]
        self.size, self.device = size, device
        self.layout = Layout.of([(a.shape[0], a.shape[1]) for a in self.images], size)
        self.placed: PlacedPictures | None = None
        if fits(sum(image.nbytes for image in self.images), device):
            self.place()
            self.images = []

    def place(self) -> None:
        """Lay the pictures into the device's memory; crops are gathered there from now on."""
        pixels = sum(image.shape[0] * image.shape[1] for image in self.images)
        self.placed = PlacedPictures(self.size, pixels, len(self.images), self.device)
        self.placed.put(map(flat, self.images), self.layout)

    def __len__(self) -> int:
        return int(self.layout.ends[-1])

    def batch(self, index: Tensor, level: Tensor, lmbda: Tensor, weights: Weights) -> Batch:
        """Pictures in [0, 1]; there is no teacher here."""
        level, lmbda = (to_device(t, self.device) for t in (level, lmbda))
        return Batch(self._crops(index).float() / 255, level, lmbda)

    def _crops(self, index: Tensor) -> Tensor:
        if self.placed is not None:
            return self.placed.crops(to_device(index, self.device))
        crops = np.stack([self._cut(int(i)) for i in index])
        return to_device(torch.from_numpy(crops), self.device)

    def _cut(self, index: int) -> Image8:
        ends = self.layout.ends
        which = int(np.searchsorted(ends, index, side="right"))
        place, symmetry = divmod(int(ends[which]) - 1 - index, SYMMETRIES)
        image = self.images[which]
        top, left = divmod(place, image.shape[1] - self.size + 1)
        crop = image[top : top + self.size, left : left + self.size].transpose(2, 0, 1)
        crop = np.rot90(crop, symmetry % 4, axes=(1, 2))
        return np.ascontiguousarray(crop[..., ::-1] if symmetry >= 4 else crop)

    def sample(self, count: int, seed: int) -> Tensor:
        """Float [count, 3, S, S] in [0, 1] on the host: what a trunk starts from."""
        generator = torch.Generator().manual_seed(derived_seed(seed, "start"))
        index = torch.randint(len(self), (count,), generator=generator)
        return self._crops(index).cpu().float() / 255

    def is_far(self, weights: Weights) -> bool:
        """Whether crops are cut on the host for another device."""
        return self.placed is None and torch.device(self.device).type != "cpu"


Report = Callable[[int, dict[str, float]], None]


Forward = Callable[[Tensor, Tensor], dict[str, Any]]
"""Pictures [B, 3, H, W] and levels [B] to what ``Student.forward`` returns."""


class Run:
    """A training run that can be saved at any step and taken up again.

    Args:
        student: trained in place, on the device where it is; or the weights that many students share.
        pictures: the pool that batches are drawn from.
        recipe: steps and rates.
        weights: the loss.
        latent_widths: channels of the teacher's y and z, where the loss matches latents.
        checkpoint: file to save to and to resume from, if any.
        forwards: what a step, given its number, trains through; the student itself where None.
            One that comes again is the same object, or has the same ``key``.
        graphs: whether the phases of a step are captured and replayed; on a GPU by default, never on a CPU.
    """

    def __init__(
        self,
        student: Trainable,
        pictures: Pictures,
        recipe: Recipe,
        weights: Weights = CONTROL,
        latent_widths: tuple[int, int] | None = None,
        checkpoint: Path | None = None,
        forwards: Callable[[int], list[Forward]] | None = None,
        graphs: bool = True,
    ):
        self.student, self.recipe = student, recipe
        self.pictures = pictures.of_one_run()
        self.forwards = forwards or (lambda step: [self.student])
        self.weights, self.checkpoint = weights, checkpoint
        self.device = next(student.parameters()).device
        # Faster on a CPU; on a GPU not measured.
        on_cpu = self.device.type == "cpu"
        self.layout = torch.channels_last if on_cpu else torch.contiguous_format
        self.in_bfloat16 = on_cpu and is_quick()
        student.to(memory_format=self.layout)
        self.adapters = self._make_adapters(latent_widths)
        self.optimiser, self.aux_optimiser = self._optimisers()
        self.lmbdas = torch.tensor(student.lmbdas)
        self.way, self.turn = self._way(graphs), turn_of(self.device)
        self.step = 0
        if checkpoint is not None and checkpoint.exists():
            self._restore(checkpoint)

    def _make_adapters(self, widths: tuple[int, int] | None) -> Adapters | None:
        if widths is None or not (self.weights.kd_y > 0 or self.weights.kd_z > 0):
            return None
        arch = self.student.arch
        adapters = Adapters(self.student.levels, (arch.M, arch.hyper), widths)
        return adapters.to(self.device)

    def _optimisers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """The recipe's for the networks, Adam for the quantiles alone, as CompressAI splits them."""
        main: list[Tensor] = []
        quantiles: list[Tensor] = []
        for name, p in self.student.named_parameters():
            (quantiles if name.endswith(".quantiles") else main).append(p)
        if self.adapters is not None:
            main += list(self.adapters.parameters())
        on_gpu = self.device.type == "cuda"
        # What a graph has recorded goes on to hold: a rate that changes lies in its memory.
        lr = torch.tensor(self.recipe.lr, device=self.device) if on_gpu else self.recipe.lr
        networks: torch.optim.Optimizer = (
            Soap(main, lr=lr)
            if self.recipe.optimiser == "soap"
            else torch.optim.Adam(main, lr=lr, fused=True, capturable=on_gpu)
        )
        aux_lr = self.recipe.aux_lr
        return networks, torch.optim.Adam(quantiles, lr=aux_lr, fused=True, capturable=on_gpu)

    def _way(self, graphs: bool) -> Way:
        quantiles = [p for group in self.aux_optimiser.param_groups for p in group["params"]]
        parameters = [*self._trained(), *quantiles]
        if graphs and self.device.type == "cuda":
            return Graphs(parameters, quantiles, CudaCapture(self.device))
        return Eager(parameters)

    def run(
        self,
        report: Report | None = None,
        between_steps: Callable[[], None] | None = None,
        until: int | None = None,
    ) -> dict[str, float]:
        """Take the remaining steps, or those up to step ``until``; returns the last reported terms.

        Raises TrialFailed with reason ``nan`` when the loss is no longer finite.
        """
        self.student.train()
        last = self.recipe.steps if until is None else min(until, self.recipe.steps)
        with self.way.here():
            metrics = self._steps(last, report, between_steps)
        self.save()
        self.student.eval()
        return metrics

    def _steps(
        self, last: int, report: Report | None, between_steps: Callable[[], None] | None
    ) -> dict[str, float]:
        saved_at, metrics = time.monotonic(), dict[str, float]()
        with Feed(self._draw, self.way.ahead and self._is_far()) as feed:
            while self.step < last:
                with self.turn:
                    terms = self._step(feed.at(self.step))
                self.step += 1
                if between_steps is not None:
                    between_steps()  # where a measurement may want the device alone
                if self.step % CHECK_EVERY == 0 or self.step == last:
                    metrics = self._look(terms)
                    if report is not None:
                        report(self.step, metrics)
                if time.monotonic() - saved_at > self.recipe.checkpoint_s:
                    self._look(terms)  # what is not finite is not saved
                    self.save()
                    saved_at = time.monotonic()
        return metrics

    # --- the phases of a step -----------------------------------------------------------------

    def _step(self, batch: Batch) -> Terms:
        torch.manual_seed(derived_seed(self.recipe.seed, "step", self.step))
        self._set_rate()
        self.way.clear()
        terms = self._gradients(batch)
        self.way.update(self._update)
        if isinstance(self.optimiser, Soap):
            self.optimiser.renew()
        return terms

    def _draw(self, step: int) -> Batch:
        self.pictures.turn(step)
        numbers = self._numbers(step)
        pictures = self.pictures.at_levels(numbers[1], self.weights)
        gather = partial(self._gather, pictures)
        return self.way.draw(numbers, gather, self._is_far(), pictures.pattern)

    def _is_far(self) -> bool:
        return self.pictures.is_far(self.weights)

    def _numbers(self, step: int) -> Numbers:
        """A step's crops; the generator is its own, since a thread may draw ahead of the step's noise."""
        seed = derived_seed(self.recipe.seed, "draw", step)
        generator = torch.Generator().manual_seed(seed)
        index = torch.randint(len(self.pictures), (self.recipe.batch,), generator=generator)
        level = self.pictures.drawn_levels(
            self.recipe.batch, self.student.levels, self.weights, generator
        )
        return index, level, self.lmbdas[level - 1]

    def _gather(self, pictures: Pictures, index: Tensor, level: Tensor, lmbda: Tensor) -> Batch:
        batch = pictures.batch(index, level, lmbda, self.weights)
        x_hat = None if batch.x_hat_T is None else self._laid_out(batch.x_hat_T)
        return replace(batch, x=self._laid_out(batch.x), x_hat_T=x_hat)

    def _laid_out(self, pictures: Tensor) -> Tensor:
        return pictures.contiguous(memory_format=self.layout)

    def _set_rate(self) -> None:
        rate = self.recipe.lr * self.recipe.lr_factor(self.step)
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _gradients(self, batch: Batch) -> Terms:
        """Sum the gradients of the step's forwards; the terms returned are the first one's."""
        first: Terms = {}
        for forward in self.forwards(self.step):
            terms = self.way.backward(forward, partial(self._loss, forward, batch))
            first = first or terms
        return first

    def _loss(self, forward: Forward, batch: Batch) -> Terms:
        return distillation_loss(self._out(forward, batch), batch, self.weights, self.adapters)

    def _out(self, forward: Forward, batch: Batch) -> dict[str, Any]:
        with bfloat16(self.in_bfloat16):
            return forward(batch.x, batch.level.float())

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self._trained(), self.recipe.clip)
        self.optimiser.step()
        self.student.aux_loss().backward()
        self.aux_optimiser.step()

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    # --- what is kept and told ----------------------------------------------------------------

    def _look(self, terms: Terms) -> dict[str, float]:
        """The terms on the host: the one wait for the device, for all of them at once."""
        values = torch.stack([term.detach() for term in terms.values()]).tolist()
        metrics = dict(zip(terms, values, strict=True))
        if not math.isfinite(metrics["loss"]):
            raise TrialFailed(Reason.NAN, f"loss is {metrics['loss']} at step {self.step}")
        return metrics

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.checkpoint is None:
            return
        state = {
            "step": self.step,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "aux_optimiser": self.aux_optimiser.state_dict(),
            "adapters": None if self.adapters is None else self.adapters.state_dict(),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        packed = BytesIO()
        torch.save(state, packed)
        write_bytes(self.checkpoint, packed.getbuffer())

    def _restore(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.student.load_state_dict(state["student"])
        _take_up(self.optimiser, state["optimiser"])
        _take_up(self.aux_optimiser, state["aux_optimiser"])
        if self.adapters is not None and state["adapters"] is not None:
            self.adapters.load_state_dict(state["adapters"])
        self.step = state["step"]


def _take_up(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Moments from a checkpoint; how a rate is kept is this device's, whichever wrote the checkpoint."""
    own = [(group["lr"], group["capturable"]) for group in optimiser.param_groups]
    optimiser.load_state_dict(state)
    for group, (lr, capturable) in zip(optimiser.param_groups, own, strict=True):
        group |= {"lr": lr, "capturable": capturable}
