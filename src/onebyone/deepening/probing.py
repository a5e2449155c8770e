"""A short probe: what each insertion is worth when all of them learn for some tens of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onebyone.data import Images
from onebyone.deepening.insertions import Insertion, insert
from onebyone.errors import ModelError
from onebyone.recovery.objective import Objective
from onebyone.recovery.recipe import Recipe
from onebyone.running import suited
from onebyone.tree import deep_copy, evaluating, random_state, replace_modules

BATCHES, BATCH = 24, 64
RATE = 2e-4  # of Adam: all insertions move at once, so that each moves little
# Half of the loss looks at labels, where there are any: depth is for what the reference cannot do.
RECIPE = Recipe(soft=0.5, features=0.0)


@dataclass(frozen=True)
class _Group:
    """One insertion's parameters, and what they were before the last step."""

    parameters: list[nn.Parameter]
    before: list[Tensor]


def probe(
    model: nn.Module,
    insertions: Sequence[Insertion],
    images: Images,
    teacher: nn.Module | None,
    *,
    recipe: Recipe = RECIPE,
    batches: int = BATCHES,
    batch: int = BATCH,
    rate: float = RATE,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> tuple[float, ...]:
    """The fall of the loss that each insertion accounts for, in nats per image; the model is not touched.

    All are inserted at once into a copy, which computes the same at first. Only they learn. Every step
    Δθ of Adam is credited with −g·Δθ, g the gradient of the next batch, which the step has not seen: the
    line integral of the loss along the way, split by parameter (Lan et al., LCA: Loss Change Allocation
    for Neural Network Training, 2019). What an insertion merely fits to one batch earns nothing.
    """
    if not insertions:
        return ()
    with random_state(seed) as generator, ExitStack() as borrowed:
        trial = deep_copy(model)
        made = insert(trial, tuple(insertions), seed)
        blocks = _in_order(made, insertions)
        trial = replace_modules(trial, made)
        groups = _borrow(trial, blocks)
        if teacher is not None:
            borrowed.enter_context(evaluating(teacher))
        objective = borrowed.enter_context(Objective(trial, teacher, recipe, images.inputs[:1]))
        earned = torch.zeros(len(groups), dtype=torch.float64)
        optimizer = torch.optim.Adam([p for g in groups for p in g.parameters], lr=rate)
        for step in range(batches + 1):
            chosen = torch.randint(len(images), (min(batch, len(images)),), generator=generator)
            labels = None if images.labels is None else images.labels[chosen]
            optimizer.zero_grad(set_to_none=False)
            value = objective.loss(*_batch(trial, images.inputs[chosen], labels)).value
            _check(value, step)
            value.backward()
            if step:
                earned += torch.stack([_credit(g) for g in groups])
            for group in groups:
                group.before[:] = [p.detach().clone() for p in group.parameters]
            if step < batches:
                optimizer.step()
            if progress is not None:
                progress((step + 1) / (batches + 1))
    return tuple(earned.tolist())


def _batch(
    model: nn.Module, inputs: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """On the device, and in the dtype, of the network."""
    inputs = suited(model, inputs)
    return inputs, None if labels is None else labels.to(inputs.device)


def _in_order(made: dict[str, nn.Module], insertions: Sequence[Insertion]) -> list[nn.Module]:
    """The new blocks, as the insertions are given."""
    taken: dict[str, int] = {}
    blocks = []
    for insertion in insertions:
        taken[insertion.place] = taken.get(insertion.place, 0) + 1
        blocks.append(list(made[insertion.place].children())[taken[insertion.place]])
    return blocks


def _borrow(trial: nn.Module, blocks: list[nn.Module]) -> list[_Group]:
    """Only the blocks learn, and only their normalizations look at the batch."""
    trial.eval()
    for parameter in trial.parameters():
        parameter.requires_grad_(False)
    for block in blocks:
        block.train()
        block.requires_grad_(True)
    return [_Group(list(block.parameters()), []) for block in blocks]


def _credit(group: _Group) -> Tensor:
    """−g·Δθ of the last step."""
    total = torch.zeros((), dtype=torch.float64)
    for parameter, before in zip(group.parameters, group.before, strict=True):
        if parameter.grad is not None:
            moved = (parameter.detach() - before).double()
            total -= (parameter.grad.double() * moved).sum().cpu()
    return total


def _check(loss: Tensor, step: int) -> None:
    if not bool(torch.isfinite(loss)):
        raise ModelError(
            f"the loss is {float(loss.detach())} at batch {step + 1} of the probe: check the images' "
            "normalization and the networks' weights, or run them in float32"
        )
