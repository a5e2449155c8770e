"""Statistics of the layers that read a hidden space → which of its channels are needed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from onebyone.factorize.judging import JUDGED
from onebyone.factorize.selection import Order, Reading, judged, needed_order
from onebyone.narrowing.spaces import Space
from onebyone.recorder import Half, LayerStatistics

# The error of a form is an upper bound, as the solution may move outputs where an activation cuts
# them off; that of a width is not. Measured on trained networks, this makes the two alike.
CAUTION = 2.0


def channel_orders(
    spaces: Sequence[Space],
    seen: Mapping[str, LayerStatistics],
    needs: Mapping[str, Tensor],
    halves: Sequence[Half] = (),
) -> dict[str, Order]:
    """The order of the channels of every space that can be cut, by the space's name.

    needs: `input_form` of every reader. Errors are half the loss-weighted energy that the readers
    miss, summed over the images, times `CAUTION`; of at most `JUDGED` channels, where both halves of
    the images reached all readers, those that one half's refits leave on the other.
    """
    found: dict[str, Order] = {}
    for space in spaces:
        readers = space.readers
        if space.refusal is not None or not all(n in needs for n in readers):
            continue
        whole = [_reading(space, n, seen[n], needs[n]) for n in readers]
        parts = [
            [_reading(space, n, half.layers[n], half.needs[n]) for n in readers]
            for half in halves
            if all(n in half.needs for n in readers)
        ]
        order = needed_order(whole)
        if len(parts) == 2 and space.channels <= JUDGED:
            order = judged(order, *parts)
        found[space.name] = order
    return found


def _reading(space: Space, layer: str, seen: LayerStatistics, needs: Tensor) -> Reading:
    cut = space.reading(layer)
    first = cut.start // cut.block
    own = slice(first, first + space.channels)
    covariance = seen.channels.covariance[own, own]
    return Reading(covariance, CAUTION * needs[own, own] / 2, seen.outputs.samples)
