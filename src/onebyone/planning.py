"""Budget, Decision and Plan: what becomes of every layer, decided at once and written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from math import ceil
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from onebyone.allocation import Choices, allocate, cheapest
from onebyone.applying import renewed
from onebyone.candidates import Candidate, Candidates, Table
from onebyone.conv import ConvSpec
from onebyone.errors import BudgetError, PlanError, listed, said_of
from onebyone.narrowing.proposing import (
    AS_TIMES,
    COSTS,
    LOOSER,
    ROUGHLY,
    narrowed_ways,
    widened,
    widths_kept,
)
from onebyone.narrowing.spaces import Narrowing
from onebyone.plans import Budget, Decision, Plan, as_budget
from onebyone.statistics import Statistics
from onebyone.surveying import PLAIN, Seen, Survey
from onebyone.tree import check_networks, modules_by_name, uncompiled

ROUNDING = 1e-9
KEPT_ALONE = "no form of it is cheaper than the layer itself"
OUTSIDE = (
    "what no layer that can change computes, such as attention's products, an LSTM, or convolutions "
    "called as functions"
)
TOLD = 0.05  # of a cost: what stays is told from so much on
REPAIRS = 12  # widths that are tried once more at the end
NO_RANKS = np.zeros((1, 0), dtype=np.int64)  # those of a layer as it is


class Times(Protocol):
    """The times of layers in a runtime, in nanoseconds: the third cost that a plan can keep to."""

    @property
    def other_ns(self) -> float:
        """What the network takes beyond the layers that `of` knows."""
        ...

    def of(
        self, layer: str, form: str, ranks: NDArray[np.int64], conv: ConvSpec | None = None
    ) -> NDArray[np.float64]:
        """The times (n,) of a form in place of a layer at n pairs of ranks (n, sides).

        Of `conv` where the layer has fewer channels; infinite where a time is not known.
        """
        ...


def plan(
    model: nn.Module,
    statistics: Statistics,
    budget: Budget,
    *,
    times: Times | None = None,
    narrow: bool = True,
) -> Plan:
    """Choose widths, a form and ranks for every layer at once, within the budget; change nothing.

    A candidate's error is half its discarded energy in the metric of the loss (`factorize`), the
    second-order estimate of the rise of the loss in nats per image; the sum over the layers is
    minimised. Hidden spaces are narrowed where that is better by this estimate than forms alone, if
    `narrow` allows it. `times` are needed for a budget of latency: they leave out what is not faster
    than the layer.
    Raises BudgetError for a budget that no candidates meet, naming the lowest that can be and what stays.
    """
    check_seen(model, statistics)
    return Planner(statistics).plan(budget, times=times, narrow=narrow)


def check_seen(model: nn.Module, statistics: Statistics) -> None:
    """Raise an error for what are no statistics, or those of another network."""
    check_networks(model=model)
    if not isinstance(statistics, Statistics):
        raise PlanError(
            f"statistics= is {type(statistics).__name__}: give what onebyone.observe returned"
        )
    modules = modules_by_name(uncompiled(model))
    for seen in statistics.survey.layers:
        # A layer that a plain one stands in for may be two of them, inside of it.
        module = modules.get(seen.layer)
        parent = modules.get(seen.layer.rpartition(".")[0])
        if module is None:
            other = parent is None
        else:
            other = type(module) in PLAIN and ConvSpec.of(module) != seen.conv
        if other:
            raise PlanError(
                f"the statistics are of another network: its layer {seen.layer!r} is not one of this one"
            )


class Planner:
    """Plans for one network under any budgets: what its layers can become is worked out once."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics, self.candidates = statistics, Candidates(statistics)

    def renewed(self, model: nn.Module, plan: Plan) -> Plan:
        """The choices of a plan, perhaps edited, with the costs and predictions that they have here."""
        return renewed(model, plan, self.statistics, self.candidates.losses)

    def plan(
        self,
        budget: Budget,
        *,
        times: Times | None = None,
        narrow: bool = True,
        roughly: bool = False,
    ) -> Plan:
        """As `onebyone.planning.plan`; roughly: in a third of the time, with errors some 5 % higher."""
        if as_budget(budget).latency is not None and times is None:
            raise BudgetError(
                "a budget of latency needs measured times: give latency= to slim, which measures them"
            )
        statistics, made = self.statistics, self.candidates
        whole = made.tables(())
        ways: list[tuple[Narrowing, ...]] = [()]
        if narrow:
            fractions = {n: getattr(budget, n) for n in COSTS if getattr(budget, n) is not None}
            looser, paces = ROUGHLY if roughly else LOOSER, None
            if budget.latency is not None and times is not None:
                looser, paces = AS_TIMES, {t.seen.layer: _column(t, times) for t in whole}
                fractions["latency"] = _share_of_layers(statistics.survey, budget.latency, times)
            ways += narrowed_ways(statistics, whole, fractions, looser, paces)
        found: list[Plan] = []
        failure: BudgetError | None = None
        for narrowings in dict.fromkeys(ways):
            try:
                found.append(
                    _planned(statistics, made.tables(narrowings), narrowings, budget, times)
                )
            except BudgetError as error:
                failure = error  # that of the narrowest, which comes last, names the lowest
        if failure is not None and not found:
            held = _held(statistics, whole, budget)
            raise BudgetError(f"{failure}{held}; give a larger budget") from failure
        best = min(found, key=lambda p: p.error)
        return best if roughly else _repaired(statistics, made, best, budget, times)


def _repaired(
    statistics: Statistics, made: Candidates, best: Plan, budget: Budget, times: Times | None
) -> Plan:
    """One space after another a step wider, those that lose most first, where forms then make it up."""
    for name in [n.layer for n in sorted(best.narrowings, key=lambda n: -n.error)][:REPAIRS]:
        wider = widened(best.narrowings, name, statistics)
        with suppress(BudgetError):
            other = _planned(statistics, made.tables(wider), wider, budget, times)
            best = min(best, other, key=lambda p: p.error)
    return best


def _planned(
    statistics: Statistics,
    tables: list[Table],
    narrowings: tuple[Narrowing, ...],
    budget: Budget,
    times: Times | None = None,
) -> Plan:
    """The best forms for given widths."""
    survey = statistics.survey
    macs, params = survey.other_macs, survey.other_params
    left: tuple[float, ...] = (macs, params - sum(n.params_saved for n in narrowings))
    totals: tuple[float, ...] = (survey.macs, survey.params)
    choices = [t.choices for t in tables]
    places = [np.arange(len(t.candidates)) for t in tables]
    if times is not None:
        timed = [_timed(t, times) for t in tables]
        places, choices = [p for p, _ in timed], [c for _, c in timed]
        left = (*left, times.other_ns + _kept_ns((s for s in survey.layers if s.refusal), times))
        whole_ns = times.other_ns + _kept_ns(survey.layers, times)
        totals = (*totals, (1 + ROUNDING) * whole_ns)  # summed in another order than the choices
    picks = _allocate(budget, survey.layers, choices, left, totals)
    decisions: dict[str, Decision] = {}
    for table, place, index in zip(tables, places, picks, strict=True):
        pick = int(place[index])
        seen, chosen = table.seen, table.candidates[pick]
        cut = table.conv != seen.conv
        form = "narrow" if cut and chosen.form == "keep" else chosen.form
        decisions[seen.layer] = Decision(
            seen.layer, seen.conv, seen.positions_in, seen.positions_out, form, chosen.ranks,
            float(table.errors[pick]), "" if cut else _reason(chosen, len(table.candidates)),
            table.conv if cut else None, seen.positions_between,
        )  # fmt: skip
    for seen in survey.layers:
        if seen.layer not in decisions:
            decisions[seen.layer] = Decision(
                seen.layer, seen.conv, seen.positions_in, seen.positions_out, "refuse",
                reason=seen.refusal or "",
            )  # fmt: skip
    return Plan(
        budget, tuple(decisions[s.layer] for s in survey.layers), survey.input_shape, macs, params,
        seed=statistics.seed, notes=(*statistics.notes, *widths_kept(statistics)), narrowings=narrowings,
    )  # fmt: skip


def _held(statistics: Statistics, tables: list[Table], budget: Budget) -> str:
    """What of the budgeted costs stays whatever the budget, by reason, for a message; most first."""
    survey, said = statistics.survey, []
    held = {seen.layer: seen.refusal for seen in survey.layers if seen.refusal is not None}
    if all(space.refusal is not None for space in statistics.spaces):
        held |= {t.seen.layer: KEPT_ALONE for t in tables if len(t.candidates) == 1}
    for cost, other in (("macs", survey.other_macs), ("params", 0)):
        if getattr(budget, cost) is None:
            continue
        shares = Counter({OUTSIDE: other / max(survey.macs, 1)})
        names: dict[str, list[str]] = {}
        for seen in survey.layers:
            if seen.layer in held and seen.conv is not None:
                why, own = held[seen.layer], seen.macs if cost == "macs" else seen.conv.params
                shares[why] += own / max(getattr(survey, cost), 1)
                names.setdefault(why, []).append(repr(seen.layer))
        for why, share in shares.most_common(3):
            layers = names.get(why)
            where = f"{listed(layers, 3)} ({said_of(layers, why)})" if layers else why
            said += [f"{share:.2f} of the {cost} in {where}"] if share >= TOLD else []
    return f"; whatever the budget, there stay {' and '.join(said)}" if said else ""


def _timed(table: Table, times: Times) -> tuple[np.ndarray, Choices]:
    """The places of those candidates that are faster than the layer, and they with a third cost."""
    choices, column = table.choices, _column(table, times)
    kept = np.flatnonzero((column < column[0]) | (np.arange(len(column)) == 0))
    costs = np.column_stack([choices.costs, column])[kept]
    return kept, Choices(choices.errors[kept], costs)


def _column(table: Table, times: Times) -> NDArray[np.float64]:
    """The nanoseconds of all candidates."""
    layer, conv = table.seen.layer, table.conv
    return np.concatenate([times.of(layer, form, ranks, conv) for form, ranks in table.groups])


def _kept_ns(layers: Iterable[Seen], times: Times) -> float:
    """Nanoseconds of layers as they are."""
    return sum(float(times.of(s.layer, "keep", NO_RANKS)[0]) for s in layers)


def _share_of_layers(survey: Survey, latency: float, times: Times) -> float:
    """What layers that can change may take of their time, for the network to keep to a budget."""
    free = _kept_ns((s for s in survey.layers if not s.refusal), times)
    other = times.other_ns + _kept_ns((s for s in survey.layers if s.refusal), times)
    wanted = latency * (free + other) - other
    return max(wanted / free, 0.0) if free else 0.0


def _reason(chosen: Candidate, number: int) -> str:
    if chosen.form != "keep":
        return ""
    if number == 1:
        return KEPT_ALONE
    return "its cheaper forms cost more accuracy than those of other layers"


def _allocate(
    budget: Budget,
    layers: tuple[Seen, ...],
    tables: list[Choices],
    other: tuple[float, ...],
    totals: tuple[float, ...],
) -> list[int]:
    """The candidates chosen under the budgets that are set."""
    fixed = np.asarray(other, dtype=np.float64)
    for seen in layers:
        if seen.refusal is not None and seen.conv is not None:
            fixed[:2] += (seen.macs, seen.conv.params)
    names = [n for n in COSTS if getattr(budget, n) is not None]
    columns = [COSTS.index(n) for n in names]
    limits = [
        getattr(budget, n) * totals[c] - fixed[c] for n, c in zip(names, columns, strict=True)
    ]
    costs = [Choices(t.errors, t.costs[:, columns]) for t in tables]
    picks = None
    if all(limit >= 0 for limit in limits):
        picks = allocate(costs, limits)
    if picks is None:
        least = cheapest(costs) if costs else np.zeros(len(names))
        lowest = [
            f"{n}={ceil(1000 * (low + fixed[c]) / totals[c]) / 1000:.3f}"
            for n, c, low in zip(names, columns, least, strict=True)
        ]
        wanted = ", ".join(f"{n}={getattr(budget, n)}" for n in names)
        raise BudgetError(
            f"the budget {wanted} cannot be met: the lowest that this network reaches is "
            f"{', '.join(lowest)}" + (", each by itself" if len(names) > 1 else "")
        )
    return picks
