"""Statistics of the layers that read a hidden space → which of its channels are needed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onebyone.factorize.metric import factor
from onebyone.factorize.selection import Order, Reading, needed_order
from onebyone.factorize.squeeze import input_energy
from onebyone.narrowing.spaces import Space

if TYPE_CHECKING:
    from onebyone.statistics import LayerStatistics


def channel_orders(
    spaces: Sequence[Space], weights: Mapping[str, Tensor], seen: Mapping[str, LayerStatistics]
) -> dict[str, Order]:
    """The order of the channels of every space that can be cut, by the space's name.

    Errors are half the loss-weighted energy that the readers miss, summed over the images.
    """
    return {
        space.name: needed_order([_reading(space, name, weights[name], seen[name])
                                  for name in space.readers])
        for space in spaces
        if space.refusal is None and all(name in seen for name in space.readers)
    }  # fmt: skip


def _reading(space: Space, layer: str, weight: Tensor, seen: LayerStatistics) -> Reading:
    cut = space.reading(layer)
    size, first = space.channels, cut.start // cut.block
    own = weight.detach()[:, cut.start : cut.start + size * cut.block]
    kernel = own.reshape(len(weight), size, -1).transpose(1, 2).cpu()
    taps = seen.taps / seen.taps.diagonal().mean().clamp_min(1e-30)
    every = torch.eye(size, dtype=torch.float64)
    form = input_energy(kernel, every, taps, factor(seen.gradients)) / 2
    covariance = seen.channels.covariance[first : first + size, first : first + size]
    return Reading(covariance, form, seen.outputs.samples)
