"""How wide each hidden space is to be, with the forms of the layers around it in mind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from onebyone.conv import ConvSpec
from onebyone.narrowing.spaces import Space, tensor_name

Floats = NDArray[np.float64]
SWEEPS = 4
BISECTIONS = 20
MIXTURES = {1: 1, 2: 4, 3: 2}  # parts that are shared among so many budgets


@dataclass(frozen=True)
class Options:
    """What one layer can become, at any number of channels in and out.

    `errors` (n,) of its candidates; `costs` (n, 4, budgets) are the coefficients of
    1, c_out, c_in and c_in · c_out, as `FormCosts` gives them.
    """

    layer: str
    conv: ConvSpec
    errors: Floats
    costs: Floats


@dataclass(frozen=True)
class Hidden:
    """A space with the error at each width (channels + 1,), and the widths to choose from.

    `each` (budgets,) is what a channel costs outside of convolutions and linear layers.
    """

    space: Space
    errors: Floats
    widths: tuple[int, ...]
    each: Floats


def choose_widths(
    options: Sequence[Options], hidden: Sequence[Hidden], limits: Floats
) -> list[int]:
    """A width for every space: least error of widths and forms together within the limits.

    Minimises Σ errors + λ Σ costs by turns over the spaces, each at its best with the others as they
    are and with the best form of each layer that it touches; λ by bisection. For more than one budget
    several mixtures of their costs are tried. Where nothing meets the limits the narrowest is given back.
    """
    search = _Search(options, hidden, len(limits))
    parts = MIXTURES[len(limits)]
    best: tuple[float, list[int], Floats] | None = None
    for shares in product(range(parts + 1), repeat=len(limits)):
        if sum(shares) != parts:
            continue
        found = _bisect(search, np.asarray(shares) / parts / np.maximum(limits, 1), limits)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    if best is None:
        return [h.widths[0] for h in hidden]
    return search.spend(best[1], best[2], limits)


def _bisect(
    search: _Search, mixture: Floats, limits: Floats
) -> tuple[float, list[int], Floats] | None:
    """Error, widths and multipliers for the smallest multiple of a mixture that meets all limits."""
    low, high, best = -12.0, 9.0, None
    for step in range(BISECTIONS):
        middle = high if step == 0 else (low + high) / 2
        multipliers = 10**middle * mixture
        weighted = search.weighted(multipliers)
        widths = search.widths(multipliers, weighted)
        error, costs = search.total(widths, weighted)
        if (costs <= limits).all():
            high = middle
            if best is None or error < best[0]:
                best = (error, widths, multipliers)
        elif step == 0:
            return None
        else:
            low = middle
    return best


class _Search:
    """The best widths for given multipliers."""

    def __init__(self, options: Sequence[Options], hidden: Sequence[Hidden], budgets: int) -> None:
        self.options, self.hidden, self.budgets = options, hidden, budgets
        index = {o.layer: i for i, o in enumerate(options)}
        self.sides: list[list[tuple[int, int, int]]] = [[] for _ in options]  # space, axis, entries
        self.touched: list[list[int]] = []
        for number, one in enumerate(hidden):
            touched = {*one.space.writers, *one.space.through, *one.space.readers}
            for name in touched:
                weight = tensor_name(name, "weight")
                for cut in one.space.cuts:
                    if cut.tensor == weight:
                        self.sides[index[name]].append((number, cut.axis, cut.block))
            self.touched.append(sorted(index[name] for name in touched))

    def weighted(self, multipliers: Floats) -> list[Floats]:
        """Multipliers · costs of every candidate of each layer: coefficients (n, 4)."""
        return [option.costs @ multipliers for option in self.options]

    def widths(self, multipliers: Floats, weighted: list[Floats]) -> list[int]:
        """By turns, from full widths on; `weighted` is what the multipliers give."""
        widths = [h.widths[-1] for h in self.hidden]
        for _ in range(SWEEPS):
            before = list(widths)
            for number, one in enumerate(self.hidden):
                each = np.asarray(one.widths, dtype=np.float64)
                values = one.errors[list(one.widths)] + each * (one.each @ multipliers)
                for layer in self.touched[number]:
                    values += self._values(layer, widths, weighted, number, each)[0]
                widths[number] = one.widths[int(values.argmin())]
            if widths == before:
                break
        return widths

    def spend(self, widths: list[int], multipliers: Floats, limits: Floats) -> list[int]:
        """Widen what lowers the error most within what the limits leave, one space after another."""
        widths, weighted = list(widths), self.weighted(multipliers)
        for _ in range(4 * len(widths)):
            _, costs = self.total(widths, weighted)
            best: tuple[float, int, int] | None = None
            for number, one in enumerate(self.hidden):
                each = np.asarray(one.widths, dtype=np.float64)
                now = one.widths.index(widths[number])
                lost = one.errors[list(one.widths)].copy()
                used = each[:, None] * one.each
                for layer in self.touched[number]:
                    _, error, cost = self._values(layer, widths, weighted, number, each)
                    lost, used = lost + error, used + cost
                fits = (used - used[now] <= limits - costs).all(1)
                gain = np.where(fits, lost[now] - lost, 0.0)
                pick = int(gain.argmax())
                if gain[pick] > 0 and (best is None or gain[pick] > best[0]):
                    best = (float(gain[pick]), number, one.widths[pick])
            if best is None:
                break
            widths[best[1]] = best[2]
        return widths

    def total(self, widths: list[int], weighted: list[Floats]) -> tuple[float, Floats]:
        """The error and the costs at these widths, with the forms that are best for the multipliers."""
        error = sum(float(h.errors[w]) for h, w in zip(self.hidden, widths, strict=True))
        costs = np.zeros(self.budgets)
        for one, width in zip(self.hidden, widths, strict=True):
            costs += width * one.each
        for layer in range(len(self.options)):
            _, lost, cost = self._values(layer, widths, weighted, None, None)
            error += float(lost[0])
            costs += cost[0]
        return error, costs

    def _values(
        self, layer: int, widths: list[int], weighted: list[Floats], number: int | None,
        each: Floats | None,
    ) -> tuple[Floats, Floats, Floats]:  # fmt: skip
        """The least error + multipliers · costs of a layer, for each width of one space."""
        option = self.options[layer]
        sides: list[Floats | float] = [option.conv.c_out, option.conv.c_in]
        for space, axis, entries in self.sides[layer]:
            one = self.hidden[space]
            width = each if space == number and each is not None else widths[space]
            sides[axis] = sides[axis] - (one.space.channels - width) * entries
        basis = np.ones((4, 1 if each is None else len(each)))
        basis[1], basis[2], basis[3] = sides[0], sides[1], sides[0] * sides[1]
        values = option.errors + basis.T @ weighted[layer].T
        picked = values.argmin(1)
        costs = np.einsum("wfb,fw->wb", option.costs[picked], basis)
        return values[np.arange(len(values)), picked], option.errors[picked], costs
