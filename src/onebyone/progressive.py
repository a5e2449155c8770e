"""Slimming in steps with short recovery between: what one step leaves is mended before the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from onebyone.clock import Clock
from onebyone.conv import ConvSpec
from onebyone.data import Images
from onebyone.distributed import World
from onebyone.errors import BudgetError, TrainingError, is_number, is_whole
from onebyone.merging import merged
from onebyone.planning import plan as make_plan
from onebyone.plans import Budget, Decision, Plan, Step
from onebyone.recovery.fine_tuning import FineTuned
from onebyone.rewriting import rewrite
from onebyone.searching import Found
from onebyone.statistics import Statistics, observe
from onebyone.tree import modules_by_name

MOST_STEPS = 20
Recover = Callable[[nn.Module, float], FineTuned]


def schedule(budget: Budget, steps: int, epochs: float) -> tuple[Step, ...]:
    """Steps that each keep the same fraction of what the one before kept: budget^(i / steps).

    >>> [round(step.budget.macs, 3) for step in schedule(Budget(macs=0.125), 3, 1.0)]
    [0.5, 0.25, 0.125]
    """
    if not (is_whole(steps) and 1 <= steps <= MOST_STEPS):
        raise BudgetError(f"{steps!r} steps do not fit: give a whole number from 1 to {MOST_STEPS}")
    if not (is_number(epochs) and epochs > 0):
        given = f"{epochs:g}" if is_number(epochs) else repr(epochs)
        raise TrainingError(
            f"finetune_epochs={given} does not fit: each step ends in a training, so give a number above 0 "
            "(--finetune-epochs 1)"
        )

    def part(goal: float | None, step: int) -> float | None:
        return None if goal is None else goal ** (step / steps)

    return tuple(
        Step(Budget(part(budget.macs, i), part(budget.params, i)), epochs)
        for i in range(1, steps + 1)
    )


def slim_in_steps(
    model: nn.Module,
    images: Images,
    steps: tuple[Step, ...],
    recover: Recover,
    *,
    memory: int,
    seed: int,
    clock: Clock,
) -> Found:
    """The network after the last step, with a plan for the original's layers.

    Each step plans for the whole original again, on what training has made of the network: its
    factors multiplied out (`merging.merged`), so a layer may get another form or rank, never a form
    of a form. `recover(lighter, epochs)` fine-tunes.
    """
    current = lighter = model
    before: Plan | None = None
    for step in steps:
        with clock.step("observe"):
            statistics = observe(current, images, seed=seed, memory=memory, progress=clock.tell)
        with clock.step("plan"):
            made = _planned(current, statistics, step.budget, model, before)
        with clock.step("rewrite"):
            lighter = rewrite(
                current, made, images, statistics=statistics, memory=memory, progress=clock.tell
            )
            World.current().copy_model(lighter)
        with clock.step("finetune"):
            lighter = recover(lighter, step.epochs).model
        current, before = merged(lighter, made), made
    assert before is not None
    return Found(replace(_of_original(before, model), schedule=steps), lighter)


def _planned(
    current: nn.Module, seen: Statistics, budget: Budget, model: nn.Module, before: Plan | None
) -> Plan:
    """A plan for the merged network, the leading process's, in the original's fractions."""
    return World.current().led(lambda: _made(current, seen, budget, model, before))


def _made(
    current: nn.Module, seen: Statistics, budget: Budget, model: nn.Module, before: Plan | None
) -> Plan:
    params = budget.params
    if params is not None:  # the merged layers have biases that the original's had not
        params = min(1.0, params * _count(model) / seen.survey.params)
    made = make_plan(current, seen, Budget(budget.macs, params), narrow=False)
    earlier = {} if before is None else {d.layer: d for d in before.decisions}
    return replace(
        made, budget=budget,
        decisions=tuple(_split_again(d, earlier.get(d.layer)) for d in made.decisions),
    )  # fmt: skip


def _split_again(decision: Decision, before: Decision | None) -> Decision:
    """What was split is split at least as it was: its kernel has that rank, so nothing is lost."""
    if decision.form == "keep" and before is not None and before.form not in ("keep", "refuse"):
        return replace(decision, form=before.form, ranks=before.ranks, error=0.0, reason="")
    return decision


def _of_original(plan: Plan, model: nn.Module) -> Plan:
    """The plan with the geometry of the original's layers: merged ones have biases."""
    modules = modules_by_name(model)
    decisions = tuple(
        replace(d, conv=ConvSpec.of(modules[d.layer])) if d.conv is not None else d
        for d in plan.decisions
    )
    known = sum(d.params_before for d in decisions)
    return replace(plan, decisions=decisions, other_params=_count(model) - known)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
