"""One choice for every layer at once: least error under one or several budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Choices:
    """The candidates of one layer: their errors (n,) and costs (n, budgets), a cost column a budget."""

    errors: NDArray[np.float64]
    costs: NDArray[np.float64]


def cheapest(layers: Sequence[Choices]) -> NDArray[np.float64]:
    """The lowest total cost that any choice reaches, for each budget by itself."""
    return np.sum([choices.costs.min(0) for choices in layers], axis=0)


def allocate(layers: Sequence[Choices], limits: Sequence[float]) -> list[int] | None:
    """One candidate index for every layer: total costs within the limits, small total error.

    Minimises Σ error + Σ_b λ_b Σ cost_b, the multipliers found by bisection (Shoham & Gersho,
    "Efficient bit allocation for an arbitrary set of quantizers", 1988), then spends what the
    convex hull leaves over, one best exchange at a time. None if no multipliers meet the limits.
    """
    if not layers:
        return []
    bounds = np.asarray(limits, dtype=np.float64)
    pruned = [_worthwhile(choices, bounds) for choices in layers]
    small = [Choices(c.errors[i], c.costs[i]) for c, i in zip(layers, pruned, strict=True)]
    chosen = _lagrange(small, bounds)
    if chosen is None:
        return None
    _spend(small, chosen, bounds)
    return [int(index[pick]) for index, pick in zip(pruned, chosen, strict=True)]


def _worthwhile(choices: Choices, limits: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of candidates that no cheaper one beats, under mixtures of the budgets' costs."""
    kept: set[int] = set()
    for weights in _mixtures(len(limits)):
        mixed = (choices.costs / np.maximum(limits, 1)) @ weights
        order = np.lexsort((choices.errors, mixed))
        lowest = np.minimum.accumulate(choices.errors[order])
        first = np.concatenate([[True], lowest[1:] < lowest[:-1]])
        kept.update(order[first].tolist())
    return np.asarray(sorted(kept), dtype=np.intp)


def _mixtures(budgets: int) -> list[NDArray[np.float64]]:
    """Weights of the budgets' costs that add up to 1: nine between any two, and all alike for three."""
    if budgets == 1:
        return [np.ones(1)]
    found = [np.full(budgets, 1 / budgets)] if budgets > 2 else []
    for one, other in combinations(range(budgets), 2):
        for share in np.linspace(0, 1, 9):
            weights = np.zeros(budgets)
            weights[one], weights[other] = 1 - share, share
            found.append(weights)
    return found


def _pick(layers: Sequence[Choices], multipliers: NDArray[np.float64]) -> list[int]:
    return [int(np.argmin(c.errors + c.costs @ multipliers)) for c in layers]


def _total(layers: Sequence[Choices], chosen: Sequence[int]) -> NDArray[np.float64]:
    return np.sum([c.costs[i] for c, i in zip(layers, chosen, strict=True)], axis=0)


def _lagrange(layers: Sequence[Choices], limits: NDArray[np.float64]) -> list[int] | None:
    """Multipliers one budget after another, each by bisection with those after it solved inside."""

    def solve(multipliers: NDArray[np.float64], budget: int) -> list[int] | None:
        if budget == len(limits):
            return _pick(layers, multipliers)

        def attempt(value: float) -> list[int] | None:
            trial = multipliers.copy()
            trial[budget] = value
            found = solve(trial, budget + 1)
            if found is not None and _total(layers, found)[budget] <= limits[budget]:
                return found
            return None

        best = attempt(0.0)
        if best is not None:
            return best
        low, high = -60.0, 60.0
        best = attempt(10.0**high)
        if best is None:
            return None
        for _ in range(48):
            middle = (low + high) / 2
            found = attempt(10.0**middle)
            if found is None:
                low = middle
            else:
                high, best = middle, found
        return best

    return solve(np.zeros(len(limits)), 0)


def _spend(layers: Sequence[Choices], chosen: list[int], limits: NDArray[np.float64]) -> None:
    """Exchange candidates while that lowers the error within what is left, best first; in place."""
    while True:
        slack = limits - _total(layers, chosen)
        gains: list[tuple[float, int, int]] = []
        for layer, choices in enumerate(layers):
            now = chosen[layer]
            fits = (choices.costs - choices.costs[now] <= slack).all(1)
            drop = np.where(fits, choices.errors[now] - choices.errors, 0.0)
            best = int(np.argmax(drop))
            if drop[best] > 0:
                gains.append((float(drop[best]), layer, best))
        if not gains:
            return
        _, layer, best = max(gains)
        chosen[layer] = best
