"""The training loops and teachers that ``distill.py`` compares: the paper's, a plain step, and ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from nas_kd.codec.student import LMBDAS
from nas_kd.distillation.loss import Adapters, Batch, Weights, distillation_loss, rate_bpp
from nas_kd.distillation.training import Run
from nas_kd.teachers.teacher import FixedRateTeacher
from nas_kd.teachers.zoo import Member

PAPER = Weights(0.2, 0.2, 0.0, "paper")
CHENG_WIDTHS = (128, 128, 128, 192, 192, 192)

# ---------------------------------------------------------------- the teachers


def untrained_cheng() -> FixedRateTeacher:
    """cheng2020-anchor as the zoo has it, six qualities, weights untrained."""
    from compressai.models import Cheng2020Anchor

    torch.manual_seed(0)
    members = [
        Member("cheng2020-anchor", q, Cheng2020Anchor(N), f"untrained-{q}")
        for q, N in enumerate(CHENG_WIDTHS, start=1)
    ]
    return FixedRateTeacher("cheng2020-anchor, untrained", members, LMBDAS)


def one_level(teacher, level: int):
    """The teacher's level alone, as a teacher of one level (its own where it is of variable rate)."""
    if not teacher.shared_latents:
        member = Member(teacher.name, level, teacher.members[level - 1], f"untrained-{level}")
        return FixedRateTeacher(teacher.name, [member], (teacher.lmbdas[level - 1],))
    return OneLevel(teacher, level)


class OneLevel:
    """A variable-rate teacher held at one level."""

    shared_latents = True

    def __init__(self, teacher, level: int):
        self.teacher, self.level = teacher, level
        self.name, self.levels = f"{teacher.name}:{level}", 1
        self.fingerprint = f"{teacher.fingerprint} level {level}"
        self.lmbdas, self.latent_widths = (teacher.lmbdas[level - 1],), teacher.latent_widths

    def outputs(self, x, level):
        return self.teacher.outputs(x, self.level)

    def latents(self, x, level):
        return self.teacher.latents(x, self.level)

    def to(self, device):
        self.teacher.to(device)
        return self


class LiveTeacher:
    """A teacher that runs on every step with autograd on: x_hat and y of pictures."""

    def __init__(self, teacher, level: int, device: str):
        self.level, self.seen = level, None
        student = getattr(teacher, "student", None)
        self.model = teacher.members[level - 1] if student is None else student
        self.model = self.model.to(device).eval().requires_grad_(True)
        self.variable = student is not None
        if not self.variable:
            self.model.g_a.register_forward_hook(self._see)

    def _see(self, module, given, y):
        self.seen = y

    def __call__(self, x):
        if self.variable:
            out = self.model(x, self.level)
            return out["x_hat"], out["y"]
        return self.model(x)["x_hat"], self.seen


# ---------------------------------------------------------------- the paper's loop


class Files(Dataset):
    """Random crops of picture files, decoded when asked for."""

    def __init__(self, folder: Path, size: int):
        self.paths, self.size = sorted(folder.rglob("*.[pj][np]g")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        with Image.open(self.paths[index]) as file:
            picture = np.array(file.convert("RGB"))
        top, left = (int(torch.randint(0, side - self.size + 1, ())) for side in picture.shape[:2])
        crop = picture[top : top + self.size, left : left + self.size]
        return torch.from_numpy(crop.transpose(2, 0, 1).copy()).float() / 255


def batches(files: Files, batch: int, device: str, workers: int = 2):
    sampler = RandomSampler(files, replacement=True, num_samples=10**9)
    loader = DataLoader(
        files, batch, sampler=sampler, num_workers=workers, pin_memory=device == "cuda"
    )
    return iter(loader)


class Paper:
    """The paper's loop."""

    def __init__(self, student, teacher, lmbda, loader, widths, recipe, device, detached=False):
        self.student, self.teacher, self.loader = student, teacher, loader
        self.lmbda, self.device, self.detached, self.recipe = lmbda, device, detached, recipe
        own = (student.arch.M, student.arch.hyper)
        self.adapters = None if own[0] == widths[0] else Adapters(1, own, widths).to(device)
        self.parameters = [p for n, p in student.named_parameters() if "quantiles" not in n]
        more = [] if self.adapters is None else [self.adapters.y]
        self.optimiser = torch.optim.Adam([*self.parameters, *more], lr=recipe.lr)
        self.step = 0

    def __call__(self, steps: int) -> None:
        self.student.train()
        for _ in range(steps):
            x = next(self.loader).to(self.device)
            ones = torch.ones(len(x), device=self.device)
            x_hat_T, y_T = self.teacher(x)
            if self.detached:
                x_hat_T, y_T = x_hat_T.detach(), y_T.detach()
            batch = Batch(x, ones, ones * self.lmbda, x_hat_T, y_T)
            out = self.student(x, ones)
            loss = distillation_loss(out, batch, PAPER, self.adapters)["loss"]
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            for group in self.optimiser.param_groups:
                group["lr"] = self.recipe.lr * self.recipe.lr_factor(self.step)
            self.optimiser.step()
            self.step += 1


class Plain:
    """A training step without any teacher: R + lambda 255^2 MSE, crops in memory on the device."""

    def __init__(self, student, crops, lmbda, recipe, device):
        self.student, self.crops, self.lmbda, self.batch = student, crops, lmbda, recipe.batch
        quantiles = [p for n, p in student.named_parameters() if n.endswith(".quantiles")]
        self.rest = [p for n, p in student.named_parameters() if not n.endswith(".quantiles")]
        self.optimiser = torch.optim.Adam(self.rest, lr=recipe.lr)
        self.aux = torch.optim.Adam(quantiles, lr=recipe.aux_lr)
        self.ones = torch.ones(recipe.batch, device=device)

    def __call__(self, steps: int) -> None:
        self.student.train()
        for _ in range(steps):
            index = torch.randint(len(self.crops), (self.batch,), device=self.crops.device)
            x = self.crops[index].float() / 255
            out = self.student(x, self.ones)
            rate = rate_bpp(out["likelihoods"], x.shape[-1] * x.shape[-2]).mean()
            loss = rate + self.lmbda * 255**2 * (out["x_hat"] - x).square().mean()
            self.optimiser.zero_grad()
            self.aux.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.rest, 1.0)
            self.optimiser.step()
            self.student.aux_loss().backward()
            self.aux.step()


def in_bfloat16(student):
    """The student with the four large networks under autocast; entropy model and shortcut stay in float32."""

    def lowered(forward, device):
        def inner(*given):
            with torch.autocast(device, torch.bfloat16):
                return forward(*given).float()

        return inner

    for part in (student.g_a, student.g_s, student.h_a, student.h_s):
        part.forward = lowered(part.forward, next(part.parameters()).device.type)
    return student


def in_float32(student):
    """The student as it was before ``in_bfloat16``, if it was there: for its evaluation."""
    for part in (student.g_a, student.g_s, student.h_a, student.h_s):
        vars(part).pop("forward", None)
    return student


class Ours:
    """Our loop, as a trial runs it."""

    def __init__(self, student, pool, recipe, weights=None, layout=None):
        weights = Weights() if weights is None else weights
        self.run = Run(student, pool, recipe, weights, pool.latent_widths)
        if layout is not None:
            self.run.layout = layout
            student.to(memory_format=layout)

    def __call__(self, steps: int) -> None:
        self.run.run(until=self.run.step + steps)
