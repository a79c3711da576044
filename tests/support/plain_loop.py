"""The training loop as it was before its steps were phases, and CUDA graphs as a CPU can play them."""

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas_kd.codec.bfloat16 import bfloat16, is_quick
from nas_kd.distillation.graphs import Graphs
from nas_kd.distillation.loss import distillation_loss
from nas_kd.seeds import derived_seed


def plain_steps(student, pictures, recipe, weights, adapters, forwards, steps):
    """Train in place on a CPU for some steps; the first forward's terms at each of them."""
    student.to(memory_format=torch.channels_last).train()
    named = list(student.named_parameters())
    main = [p for name, p in named if not name.endswith(".quantiles")]
    main += list(adapters.parameters()) if adapters is not None else []
    quantiles = [p for name, p in named if name.endswith(".quantiles")]
    optimiser = torch.optim.Adam(main, lr=recipe.lr, fused=True)
    aux = torch.optim.Adam(quantiles, lr=recipe.aux_lr, fused=True)
    told = []
    for step in range(steps):
        own = torch.Generator().manual_seed(derived_seed(recipe.seed, "draw", step))
        index = torch.randint(len(pictures), (recipe.batch,), generator=own)
        level = torch.randint(1, student.levels + 1, (recipe.batch,), generator=own)
        batch = pictures.batch(index, level, torch.tensor(student.lmbdas)[level - 1], weights)
        x = batch.x.contiguous(memory_format=torch.channels_last)
        if batch.x_hat_T is not None:
            x_hat = batch.x_hat_T.contiguous(memory_format=torch.channels_last)
            batch = replace(batch, x_hat_T=x_hat)
        torch.manual_seed(derived_seed(recipe.seed, "step", step))
        optimiser.param_groups[0]["lr"] = recipe.lr * recipe.lr_factor(step)
        optimiser.zero_grad()
        aux.zero_grad()
        found = []
        for forward in forwards(step):
            with bfloat16(is_quick()):
                out = forward(x, level.float())
            terms = distillation_loss(out, batch, weights, adapters)
            terms["loss"].backward()
            found.append({name: float(term.detach()) for name, term in terms.items()})
        nn.utils.clip_grad_norm_(main, recipe.clip)
        optimiser.step()
        student.aux_loss().backward()
        aux.step()
        told.append(found[0])
    return told


def by_tape(run):
    """Let a run capture and replay, as on a GPU, with a rate in memory."""
    run.optimiser.param_groups[0]["lr"] = torch.tensor(run.recipe.lr)
    quantiles = run.aux_optimiser.param_groups[0]["params"]
    tape = Tape()
    run.way = Graphs([*run._trained(), *quantiles], quantiles, tape)
    return tape


class Tape:
    """Records a work's operations on tensors and does the same ones on the same memory again.

    As a CUDA graph does: no Python runs again, and what was a number of the host stays what it was.
    """

    captured = 0

    def here(self):
        return nullcontext()

    def __call__(self, work):
        operations = []
        with _Recording(operations):
            work()
        self.captured += 1
        done = [True]  # the recording has done it

        def replay():
            if done:
                done.clear()
                return
            with torch.no_grad():
                for operation in operations:
                    _again(*operation)

        return replay


class _Recording(TorchDispatchMode):
    def __init__(self, operations: list):
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits"
        assert func is not torch.ops.aten.lift_fresh.default, "a number comes from the host"
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out


def _again(func, args, kwargs, before) -> None:
    after = func(*args, **kwargs)
    for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
        if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
            old.detach().copy_(new)
