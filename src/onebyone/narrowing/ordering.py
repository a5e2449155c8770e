"""Statistics of the layers that read a hidden space → which of its channels are needed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from onebyone.factorize.judging import JUDGED
from onebyone.factorize.selection import Order, Reading, judged, needed_order
from onebyone.narrowing.spaces import Space
from onebyone.recorder import LayerStatistics

# The error of a form is an upper bound, as the solution may move outputs where an activation cuts
# them off; that of a width is not. Measured on trained networks, this makes the two alike.
CAUTION = 2.0

# `input_form` of each layer, within each range of its channels that it recorded
Forms = Mapping[str, Mapping[range, Tensor]]


def channel_orders(
    spaces: Sequence[Space],
    seen: Mapping[str, LayerStatistics],
    forms: Forms,
    halves: Sequence[tuple[Mapping[str, LayerStatistics], Forms]] = (),
) -> dict[str, Order]:
    """The order of the channels of every space that can be cut, by the space's name.

    Errors are half the loss-weighted energy that the readers miss, summed over the images, times
    `CAUTION`; of at most `JUDGED` channels, where both halves of the images reached all readers, those
    that one half's refits leave on the other.
    """
    found: dict[str, Order] = {}
    whole, parts = _Readings(seen, forms), [_Readings(*half) for half in halves]
    for space in spaces:
        if space.refusal is not None or not whole.has(space):
            continue
        order = needed_order(whole.of(space))
        parted = [part.of(space) for part in parts if part.has(space, 2)]  # one does not vary
        if len(parted) == 2 and space.channels <= JUDGED:
            order = judged(order, *parted)
        found[space.name] = order
    return found


class _Readings:
    """What readers saw in some of the images; how much to shrink a covariance is worked out once."""

    def __init__(self, seen: Mapping[str, LayerStatistics], forms: Forms) -> None:
        self.seen, self.forms = seen, forms
        self.shrinking: dict[tuple[str, range], tuple[float, float]] = {}

    def has(self, space: Space, samples: int = 1) -> bool:
        """Whether every reader of a space saw as many samples."""
        return all(
            layer in self.forms and self.seen[layer].channels.samples >= samples
            for layer in space.readers
        )

    def of(self, space: Space) -> list[Reading]:
        """Of each reader of a space; copies that one reads side by side are taken for themselves.

        What k of them miss may add up: E‖Σ e‖² is at most k Σ E‖e‖².
        """
        found = []
        for layer in space.readers:
            ranges = space.channels_of(layer)
            found += [self._reading(layer, own, len(ranges)) for own in ranges]
        return found

    def _reading(self, layer: str, own: range, copies: int) -> Reading:
        seen = self.seen[layer]
        around, moments = seen.channels.around(own)
        if (layer, around) not in self.shrinking:
            amount, variance = moments.shrinking
            if len(seen.channels.ranges) > 1:  # that of more channels is known better
                variance = seen.channels.variance
            self.shrinking[layer, around] = amount, variance
        inside = slice(own.start - around.start, own.stop - around.start)
        covariance = moments.covariance_of(inside, self.shrinking[layer, around])
        form = copies * CAUTION * self.forms[layer][around][inside, inside] / 2
        return Reading(covariance, form, seen.outputs.samples)
