"""Random changes of a batch that leave what it shows as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

SHARE = 14  # a shift is at most this fraction of the size: 2 of 28 pixels, 16 of 224


def augmented(
    inputs: Float[Tensor, "batch c *size"], names: Sequence[str], generator: torch.Generator
) -> Float[Tensor, "batch c *size"]:
    """The batch with each item changed by chance; the edge's values fill what a shift uncovers."""
    if "mirror" in names:
        mirrored = torch.rand(len(inputs), generator=generator) < 0.5
        inputs = torch.where(
            mirrored.to(inputs.device).view(-1, *[1] * (inputs.ndim - 1)), inputs.flip(-1), inputs
        )
    if "shift" in names:
        for axis in range(2, inputs.ndim):
            inputs = _shifted(inputs, axis, generator)
    return inputs


def _shifted(inputs: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """Each item moved along one axis by its own whole number of pixels."""
    size = inputs.shape[axis]
    most = size // SHARE
    if not most:
        return inputs
    by = torch.randint(-most, most + 1, (len(inputs), 1), generator=generator)
    place = (torch.arange(size) + by).clamp_(0, size - 1).to(inputs.device)
    shape = [len(inputs)] + [1] * (inputs.ndim - 1)
    shape[axis] = size
    return inputs.gather(axis, place.view(shape).expand_as(inputs))
