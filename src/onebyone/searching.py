"""The smallest network whose accuracy stays within a given drop, found by few trials."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import log

import numpy as np
import torch
from torch import nn

from onebyone.clock import Clock
from onebyone.data import Images
from onebyone.distributed import World
from onebyone.errors import BudgetError, DataError
from onebyone.planning import Planner
from onebyone.plans import Budget, Measured, Plan
from onebyone.rewriting import rewrite
from onebyone.running import output_of
from onebyone.statistics import Statistics
from onebyone.tree import evaluating

TRIALS = 8
RESOLUTION = 0.02  # of the original's MACs: nearer than that a smaller network is not looked for
GUESSES = 4  # trials that follow the prediction; the others halve the interval
LEAST_ERROR = 1e-3  # nats per image


@dataclass(frozen=True)
class Found:
    """A lighter network, its plan, its accuracy where that was measured, and what was tried before."""

    plan: Plan
    model: nn.Module
    accuracy: float = 0.0
    measured: tuple[Measured, ...] = ()

    @property
    def macs(self) -> float:
        """The fraction of the MACs that it keeps."""
        return self.plan.macs_after / self.plan.macs_before


@dataclass(frozen=True)
class Trial:
    """Plans and rewrites one network on the same images again and again."""

    model: nn.Module
    images: Images
    statistics: Statistics
    memory: int
    clock: Clock

    @cached_property
    def planner(self) -> Planner:
        """What plans, for any budget."""
        return Planner(self.statistics)

    def planned(self, budget: Budget) -> Plan:
        """The plan under a budget; BudgetError if it cannot be met."""
        with self.clock.step("plan"):
            return World.current().led(lambda: self.planner.plan(budget))

    def rewritten(self, chosen: Plan) -> nn.Module:
        """The lighter network of a plan."""
        with self.clock.step("rewrite"):
            lighter = rewrite(
                self.model, chosen, self.images, statistics=self.statistics, memory=self.memory,
                progress=self.clock.tell,
            )  # fmt: skip
            World.current().copy_model(lighter)
            return lighter


def smallest(
    trial: Trial, budget: Budget | None, max_drop: float, held_out: Images
) -> tuple[Found, str]:
    """The smallest network that loses at most `max_drop` of the top-1 accuracy, and what was tried.

    A plan's predicted rise of the loss in nats is often close to the drop, so the first trial is
    where the two are equal; the next ones where they would be if drop and prediction stayed in the
    proportion just seen, a little beyond, so that the interval closes from both sides. What `budget`
    sets holds for every trial. Raises BudgetError where even the largest network that it allows
    falls below.
    """
    whole = accuracy(trial.model, held_out)
    _check_goal(whole, max_drop, len(held_out))
    with trial.clock.step("search"):
        search = _Search(trial, held_out, whole, max_drop, budget.params if budget else None)
        if budget is not None:
            search.attempt(budget.macs or 1.0)
            _check_allowed(search, budget, max_drop, whole)
        search.run()
    best = search.best
    if best is None:
        raise BudgetError(
            f"no network within max_drop={max_drop} was found: the original has {whole:.2%} on "
            f"{len(held_out):,} held-out images; tried {', '.join(search.tried)}. Allow a larger drop, "
            "or give more images"
        )
    return replace(best, measured=tuple(search.measured)), (
        f"max_drop={max_drop}: top-1 {whole:.2%} → {best.accuracy:.2%} on {len(held_out):,} held-out "
        f"images, which also chose the budget; tried {', '.join(search.tried)}"
    )


class _Search:
    """The interval in which the smallest network lies, as a fraction of the MACs kept."""

    def __init__(
        self, trial: Trial, held_out: Images, whole: float, max_drop: float, params: float | None
    ) -> None:
        self.trial, self.held_out, self.params = trial, held_out, params
        self.whole, self.max_drop = whole, max_drop
        self.low, self.high = 0.0, 1.0
        self.error = max(max_drop, LEAST_ERROR)  # the prediction at which to try next
        self.errors: dict[float, float] = {}  # of all plans made, by the MACs that they keep
        self.best: Found | None = None
        self.tried: list[str] = []
        self.measured: list[Measured] = []

    def planned(self, macs: float) -> Plan:
        """A plan, whose prediction is noted."""
        chosen = self.trial.planned(Budget(macs, self.params))
        self.errors[chosen.macs_after / chosen.macs_before] = chosen.error
        return chosen

    def attempt(self, macs: float) -> None:
        """One trial; the interval shrinks to what it leaves open."""
        chosen = self.planned(macs)
        lighter = self.trial.rewritten(chosen)
        found = Found(chosen, lighter, accuracy(lighter, self.held_out))
        self.measured.append(Measured(chosen, found.accuracy))
        self.tried.append(f"{found.macs:.2f} of the MACs ({found.accuracy:.2%})")
        drop = self.whole - found.accuracy
        if drop <= self.max_drop + 1e-9:
            self.best, self.high = found, found.macs
        else:
            self.low = macs
        floor = 0.5 / len(self.held_out)
        self.error = chosen.error * max(self.max_drop, floor) / max(drop, floor)

    def run(self) -> None:
        """Trials until the interval is narrow; past the first few each halves it."""
        macs = self._guess()
        begun = max(self.high - self.low, 2 * RESOLUTION)
        while self.high - self.low > RESOLUTION and len(self.tried) < TRIALS:
            try:
                self.attempt(macs)
            except BudgetError:  # no plan reaches it
                self.low = macs
            width = max(self.high - self.low, RESOLUTION)
            self.trial.clock.tell(log(width / begun) / log(RESOLUTION / begun))
            macs = self._guess() if len(self.tried) < GUESSES else self.low + width / 2

    def _guess(self) -> float:
        """The MACs at which a plan has the prediction looked for, or a little inside the interval."""
        low = max([k for k, error in self.errors.items() if error > self.error], default=0.0)
        high = min([k for k, error in self.errors.items() if error <= self.error], default=1.0)
        low, high = max(low, self.low), min(high, self.high)
        while high - low > RESOLUTION:
            middle = (low + high) / 2
            try:
                error = self.planned(middle).error
            except BudgetError:  # what no plan reaches is left out for good
                self.low = low = middle
                continue
            low, high = (middle, high) if error > self.error else (low, middle)
        kept = sorted(self.errors, reverse=True)
        guess = float(np.interp(self.error, [self.errors[k] for k in kept], kept)) if kept else high
        beyond = 0.4 * RESOLUTION
        guess += -beyond if self.best is not None and self.best.macs == self.high else beyond
        return min(max(guess, self.low + beyond), self.high - beyond)


def _check_goal(whole: float, max_drop: float, images: int) -> None:
    if whole <= max_drop:
        raise DataError(
            f"the original network is right on {whole:.2%} of {images:,} held-out images, so any "
            f"network is within max_drop={max_drop}: are the labels in the network's own order?"
        )


def _check_allowed(search: _Search, budget: Budget, max_drop: float, whole: float) -> None:
    if search.best is None:
        given = [f"{n}={v}" for n, v in (("macs", budget.macs), ("params", budget.params)) if v]
        raise BudgetError(
            f"{', '.join(given)} and max_drop={max_drop} cannot hold together: of the original's "
            f"{whole:.2%} a network within the budget keeps {search.tried[0]}"
        )


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images) -> float:
    """Top-1 accuracy on labeled images; DataError where the labels or the output do not suit that."""
    assert images.labels is not None
    hits = 0
    with evaluating(model):
        for inputs, labels in images.batches(64):
            logits = output_of(model, inputs)
            if logits.ndim != 2 or labels is None:
                raise DataError(
                    f"max_drop needs a classifier: the output has shape {tuple(logits.shape)}, not "
                    "(N, classes)"
                )
            if int(labels.max()) >= logits.shape[1]:
                raise DataError(
                    f"a label is {int(labels.max())}, but the network has {logits.shape[1]} classes: "
                    f"labels from 0 to {logits.shape[1] - 1} are expected, in the network's own order"
                )
            hits += int((logits.argmax(1).cpu() == labels).sum())
    return hits / len(images)
