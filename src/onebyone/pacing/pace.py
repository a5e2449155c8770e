"""A plan under a budget of latency: layers timed, chosen, and the whole network measured until it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onebyone.conv import ConvSpec
from onebyone.errors import BudgetError
from onebyone.exporting.network import on_cpu_in_float32
from onebyone.exporting.targets import TARGETS
from onebyone.loading.slimmed import replanned
from onebyone.pacing.caches import mebibytes_between
from onebyone.pacing.graphs import EAGER
from onebyone.pacing.sites import Site, sites_of
from onebyone.pacing.timetable import Timetable
from onebyone.pacing.ways import Way
from onebyone.pacing.whole import Ratio, Stopwatch
from onebyone.planning import NO_RANKS, Times
from onebyone.plans import Budget, Decision, Plan
from onebyone.tree import random_state

RUNTIMES = (EAGER, *TARGETS)
SPELLINGS = {t.runtime: name for name, t in TARGETS.items()} | {"pytorch": EAGER}
ROUNDS = 8  # plans that are made, and their networks measured
CHECKS = 4  # times that chosen candidates are timed themselves before that
CLOSE = 0.03  # of the budget: nearer below it no other plan is looked for
FURTHER, OFF = 1.08, 1.3  # steps above the budget, and how far, that sums of layers may be wrong by
SLACK = 0.01  # above the budget: what the clock cannot tell


@dataclass(frozen=True)
class LayerTimes:
    """The times of a network's layers in a runtime, as a plan asks for them."""

    table: Timetable
    sites: dict[str, tuple[Site, ...]]
    whole_ms: float

    @property
    def other_ns(self) -> float:
        """What the network takes beyond its layers' times.

        Below zero where they take more, timed one by one with their surroundings, than the whole:
        what is saved is the difference between a layer and a form of it, in which those cancel.
        """
        layers = sum(float(self.of(name, "keep", NO_RANKS)[0]) for name in self.sites)
        return 1e6 * self.whole_ms - layers

    def of(
        self, layer: str, form: str, ranks: NDArray[np.int64], conv: ConvSpec | None = None
    ) -> NDArray[np.float64]:
        """Nanoseconds (n,) of a form in place of a layer, over all its calls."""
        found = np.zeros(len(ranks))
        for site in self.sites.get(layer, ()):
            found += self.table.milliseconds(site, form, ranks, conv)
        return 1e6 * found


@dataclass(frozen=True)
class Paced:
    """A plan whose network was measured: `ratio` is its time in parts of the original's.

    `table` has the times of layers that it was made from, and notes on them.
    """

    plan: Plan
    ratio: Ratio
    table: Timetable

    def words(self, runtime: str, threads: int) -> str:
        """The sentence for people."""
        ratio, wanted = self.ratio, self.plan.budget.latency
        return (
            f"latency={wanted}: in {_place(runtime, threads)} the network takes "
            f"{ratio.median:.3f} ± {ratio.doubt * ratio.median:.3f} of the original's time "
            f"({ratio.before_ms:.3g} → {ratio.after_ms:.3g} ms, {ratio.rounds} interleaved rounds)"
        )


def runtime_named(name: str, *, installed: bool = True) -> str:
    """The runtime by any of its names; BudgetError for none, MissingExtraError if it is to be `installed`
    and is not."""
    found = SPELLINGS.get(str(name).lower(), str(name).lower())
    if found not in RUNTIMES:
        raise BudgetError(f"{name!r} is no runtime: give one of {', '.join(RUNTIMES)}")
    if installed and found != EAGER:
        TARGETS[found].require()
    return found


def paced(
    model: nn.Module,
    example: Tensor,
    budget: Budget,
    planned: Callable[[Budget, Times], Plan],
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    progress: Callable[[float], None] = lambda done: None,
) -> Paced:
    """The plan with the least error whose whole network takes at most `budget.latency` of the time, and a
    hundredth of that more, which the clock cannot tell.

    Layers and forms of them are timed in the runtime, at their input's size, with what is fused with
    them; `planned(budget, times)` allocates over that table. What it chooses is timed itself, then
    the whole network beside the original, both exported; its weights do not matter for that. Where
    the sum of the layers and the whole differ, the next plan aims by as much lower or higher.

    Raises BudgetError where no plan holds the budget, with the lowest that was reached, or where the
    machine is too noisy to tell; ModelError where the runtime does not take the network.
    """
    assert budget.latency is not None
    name = runtime_named(runtime)
    plain = on_cpu_in_float32(model)
    table = Timetable(name, threads, mebibytes_between(plain))
    sites = sites_of(plain, example)
    table.prepare([s for every in sites.values() for s in every], lambda p: progress(0.6 * p))
    watch = Stopwatch(plain, example, name, threads)
    times = LayerTimes(table, sites, watch.original_ms())
    found, tried = _search(plain, budget, planned, times, watch, progress)
    if found is None:
        raise BudgetError(
            f"latency={budget.latency} cannot be met in {_place(runtime, threads)}: the lowest that "
            f"was measured is {min(tried):.3f} of the original's time (the whole network, "
            "whatever the times of its layers promise); give a larger budget"
        )
    return found


def _search(
    model: nn.Module, budget: Budget, planned: Callable[[Budget, Times], Plan],
    times: LayerTimes, watch: Stopwatch, progress: Callable[[float], None],
) -> tuple[Paced | None, list[float]]:  # fmt: skip
    """The slowest network within the budget, and the ratios of all that were measured."""
    wanted = budget.latency or 1.0
    goal, best = wanted, None
    tried: list[float] = []
    plans: set[tuple[Decision, ...]] = set()
    around: dict[bool, tuple[float, float]] = {}
    failure: BudgetError | None = None
    for number in range(ROUNDS):
        progress(0.6 + 0.4 * number / ROUNDS)
        try:
            chosen = timed_plan(replace(budget, latency=min(goal, 1.0)), planned, times)
        except BudgetError as error:
            if (
                not tried
            ):  # the sum of the layers, which another load may have made wrong, rules it out
                _check_gain(times, watch.runtime)
                failure, goal = failure or error, goal * FURTHER
                if goal >= min(1.0, OFF * wanted):
                    raise BudgetError(_said(failure, watch)) from failure
                continue
            goal = (goal + wanted) / 2
            continue
        if chosen.decisions in plans:  # too small a change of the goal for another plan
            goal *= 1 + CLOSE if best is not None else 1 - CLOSE
            continue
        plans.add(chosen.decisions)
        ratio = watch.ratio(drawn(model, chosen))
        tried.append(ratio.median)
        if ratio.median <= wanted * (1 + SLACK) and (
            best is None or ratio.median > best.ratio.median
        ):
            best = Paced(replace(chosen, budget=budget), ratio, times.table)
        if wanted * (1 - CLOSE) <= ratio.median <= wanted * (1 + SLACK):
            break
        around[ratio.median > wanted] = goal, ratio.median
        goal = _next(goal, ratio.median, wanted * (1 - CLOSE / 2), around)
    return best, tried


def _next(
    goal: float, measured: float, aim: float, around: dict[bool, tuple[float, float]]
) -> float:
    """The goal for a plan that takes `aim`: between the last below the budget and the last above it
    where there are both (False and True: a goal, and what was measured), else in proportion."""
    if len(around) == 2:
        (low, fast), (high, slow) = around[False], around[True]
        if low < high:
            return low + (high - low) * min(max((aim - fast) / (slow - fast), 0.1), 0.9)
    return goal * aim / measured


def _said(error: BudgetError, watch: Stopwatch) -> str:
    return f"{error} (by the times of its layers in {_place(watch.runtime, watch.threads)})"


def _place(runtime: str, threads: int) -> str:
    """Where it was timed, the runtime by its own name: onnxruntime on 1 thread."""
    title = TARGETS[runtime].runtime if runtime in TARGETS else runtime
    return f"{title} on {threads} thread{'s' * (threads != 1)}"


def timed_plan(budget: Budget, planned: Callable[[Budget, Times], Plan], times: LayerTimes) -> Plan:
    """A plan all of whose choices were timed themselves, or the last of a few."""
    chosen = planned(budget, times)
    for _ in range(CHECKS):
        unknown: dict[str, tuple[Site, list[Way]]] = {}
        for decision in chosen.decisions:
            if decision.form in ("keep", "refuse"):
                continue
            for site in times.sites.get(decision.layer, ()):
                way = Way.at(site, decision.form, decision.ranks, decision.shape)
                if not times.table.known(site, way):
                    ways = unknown.setdefault(site.key, (site, []))[1]
                    if way not in ways:
                        ways.append(way)
        if not unknown:
            break
        for site, ways in unknown.values():
            times.table.measure(site, ways)
        chosen = planned(budget, times)
    return chosen


def _check_gain(times: LayerTimes, runtime: str) -> None:
    """Raise BudgetError where nothing that was timed is faster than the layer that it replaces."""
    for every in times.sites.values():
        for site in every:
            ratios = times.table.times[site.key].ratios
            if any(ratio < 1 for found in ratios.values() for ratio in found.values()):
                return
    raise BudgetError(
        f"there is nothing to gain here: in {runtime} no form of any layer, and no layer with fewer "
        "channels, is faster than the layer itself, at the sizes of this network"
    )


def drawn(model: nn.Module, plan: Plan) -> nn.Module:
    """The network of a plan with random weights: its time is that of the slimmed one."""
    made = replanned(model, plan)
    own = {id(t) for t in model.state_dict(keep_vars=True).values()}
    changed = {d.layer for d in plan.decisions if d.form not in ("keep", "refuse")}
    with random_state(0), torch.no_grad():
        for name, parameter in made.named_parameters():
            if id(parameter) not in own and any(_inside(name, layer) for layer in changed):
                parameter.normal_(std=(2 / max(parameter[0].numel(), 1)) ** 0.5)
    return made


def _inside(name: str, layer: str) -> bool:
    return not layer or name.startswith(f"{layer}.")
