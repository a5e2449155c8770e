"""Allocation against enumeration of every choice."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onebyone import allocation
from onebyone.allocation import Choices, cheapest


@st.composite
def layers(draw: st.DrawFn, budgets: int = 1) -> list[Choices]:
    """A few layers with a free candidate of full cost and some cheaper ones that cost accuracy."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        full = [draw(st.integers(5, 60)) for _ in range(budgets)]
        rows = [
            [draw(st.floats(0.01, 1)), *(draw(st.integers(1, f)) for f in full)]
            for _ in range(draw(st.integers(0, 5)))
        ]
        table = np.asarray([[0.0, *full], *rows], dtype=np.float64)
        found.append(Choices(table[:, 0], table[:, 1:]))
    return found


def cost(layers: list[Choices], picks: list[int]) -> np.ndarray:
    return np.sum([c.costs[i] for c, i in zip(layers, picks, strict=True)], axis=0)


def error(layers: list[Choices], picks: list[int]) -> float:
    return float(sum(c.errors[i] for c, i in zip(layers, picks, strict=True)))


def best(layers: list[Choices], limits: np.ndarray) -> float | None:
    """The least error of all choices within the limits."""
    every = itertools.product(*(range(len(c.errors)) for c in layers))
    allowed = [list(p) for p in every if (cost(layers, list(p)) <= limits).all()]
    return min((error(layers, p) for p in allowed), default=None)


def limits_of(layers: list[Choices], share: float) -> np.ndarray:
    return share * np.sum([c.costs[0] for c in layers], axis=0)


def check_within_limits(layers: list[Choices], share: float) -> None:
    """Law: never above a limit, and no single exchange that fits lowers the error."""
    limits = limits_of(layers, share)
    picks = allocation.allocate(layers, limits.tolist())
    if picks is None:
        return
    assert (cost(layers, picks) <= limits).all()
    for layer, choices in enumerate(layers):
        for other in range(len(choices.errors)):
            changed = [*picks[:layer], other, *picks[layer + 1 :]]
            if (cost(layers, changed) <= limits).all():
                assert error(layers, changed) >= error(layers, picks) - 1e-12


def check_near_the_best(layers: list[Choices], share: float) -> None:
    """Law (one budget): an answer wherever there is one, one layer's error from the best at most."""
    limits = limits_of(layers, share)
    optimum, picks = best(layers, limits), allocation.allocate(layers, limits.tolist())
    assert (picks is None) == (optimum is None)
    if picks is not None and optimum is not None:
        largest = max(float(c.errors.max()) for c in layers)
        assert optimum - 1e-12 <= error(layers, picks) <= optimum + largest + 1e-12


@given(layers(), st.floats(0.05, 1))
def test_one_budget(layers: list[Choices], share: float) -> None:
    check_within_limits(layers, share)
    check_near_the_best(layers, share)


@given(layers(budgets=2), st.floats(0.05, 1))
def test_two_budgets_both_hold(layers: list[Choices], share: float) -> None:
    check_within_limits(layers, share)


@given(layers(), st.floats(0.1, 0.95))
def test_on_average_the_best_is_nearly_reached(layers: list[Choices], share: float) -> None:
    """On the convex hull the answer is the best one: errors that are convex in the cost."""
    convex = []
    for c in layers:
        full, n = float(c.costs[0, 0]), np.arange(12)
        slope = 1 + float(c.errors.sum())
        errors = np.asarray(slope * n**2 / 144, dtype=np.float64)
        convex.append(Choices(errors, (full * (12 - n) / 12)[:, None]))
    limits = limits_of(convex, share)
    picks = allocation.allocate(convex, limits.tolist())
    assert picks is not None
    step = max(float(c.errors[11] - c.errors[10]) for c in convex)
    assert error(convex, picks) <= _lagrangian_bound(convex, float(limits[0])) + step + 1e-9


def _lagrangian_bound(layers: list[Choices], limit: float) -> float:
    """The dual bound: no choice within the limit has a smaller error."""
    multipliers = np.concatenate([[0.0], np.logspace(-6, 3, 400)])
    return max(
        float(sum((c.errors + m * c.costs[:, 0]).min() for c in layers) - m * limit)
        for m in multipliers
    )


@given(layers(budgets=2))
def test_cheapest_is_the_lowest_of_each_budget(layers: list[Choices]) -> None:
    every = itertools.product(*(range(len(c.errors)) for c in layers))
    costs = np.asarray([cost(layers, list(p)) for p in every])
    np.testing.assert_array_equal(cheapest(layers), costs.min(0))


def test_no_limit_bites_and_all_is_kept() -> None:
    table = [Choices(np.asarray([0.0, 1.0]), np.asarray([[8.0], [4.0]]))] * 3
    assert allocation.allocate(table, [24.0]) == [0, 0, 0]
    assert allocation.allocate(table, [23.0]) is not None
    assert allocation.allocate(table, [11.0]) is None


def test_many_equal_layers_use_the_whole_budget() -> None:
    table = [Choices(np.asarray([0.0, 1.0, 3.0]), np.asarray([[9.0], [6.0], [2.0]]))] * 10
    picks = allocation.allocate(table, [61.0])
    assert picks is not None
    assert 58 <= cost(table, picks)[0] <= 61


@given(layers(budgets=2), st.floats(0.1, 1))
def test_the_same_question_has_the_same_answer(layers: list[Choices], share: float) -> None:
    limits = limits_of(layers, share).tolist()
    assert allocation.allocate(layers, limits) == allocation.allocate(layers, limits)
