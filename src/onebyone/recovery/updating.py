"""What a step changes: the weights by their optimizer, and their average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from onebyone.recovery.recipe import Recipe
from onebyone.recovery.shampoo import Shampoo


def optimizer_of(student: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weights decay; biases and normalization do not."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    several = {id(m.weight): int(m.groups) for m in student.modules() if isinstance(m, _ConvNd)}
    matrices = {id(p): several.get(id(p), 1) for p in parameters if p.ndim > 1}
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in parameters if matrices.get(id(p)) == number],
            "weight_decay": recipe.decay,
            "matrices": number,
        }
        for number in sorted(set(matrices.values()))
    ]
    groups.append({"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "shampoo":
        return Shampoo(groups, lr=recipe.rate, momentum=recipe.momentum)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.rate)
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum, nesterov=nesterov)


def averager_of(recipe: Recipe) -> Callable[..., None]:
    """New averages of all tensors at once; whole numbers are copied."""

    def update(averages: list[Tensor], values: list[Tensor], steps: Tensor | int) -> None:
        count = int(steps)
        keep = min(recipe.average, (1 + count) / (10 + count)) if recipe.average else 0.0
        if averages and averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - keep)
        else:
            torch._foreach_copy_(averages, values)

    return update
