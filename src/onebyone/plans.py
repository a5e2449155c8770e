"""A plan as values: budgets, what becomes of each layer, the schedule, what was measured of a search."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from os import PathLike
from typing import Any

from onebyone.conv import ConvSpec, Places
from onebyone.deepening.insertions import Insertion
from onebyone.displaying import Displayed
from onebyone.errors import BudgetError, PlanError
from onebyone.forms import FORMS
from onebyone.narrowing.spaces import Narrowing


@dataclass(frozen=True)
class Budget:
    """The fractions of the original network's MACs, parameters and time to keep; all that are set hold.

    `latency` needs the times of layers in a runtime: see `Times`.
    """

    macs: float | None = None
    params: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        for name in ("macs", "params", "latency"):
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, Real) and not isinstance(value, bool)
            fraction = float(value) if number else 0.0
            object.__setattr__(self, name, fraction)
            if not 0 < fraction <= 1:
                raise BudgetError(
                    f"{name}={value!r} is not a budget: give the fraction to keep, a number above 0 and at "
                    f"most 1 ({name}=0.5 keeps half)"
                )
        if (self.macs, self.params, self.latency) == (None, None, None):
            raise BudgetError(
                "no budget was given: set macs=, params=, latency= or several, such as macs=0.5"
            )


def as_budget(budget: object) -> Budget:
    """The budget itself; BudgetError for what is none, such as a bare fraction."""
    if not isinstance(budget, Budget):
        raise BudgetError(f"the budget is {budget!r}: give a Budget, such as Budget(macs=0.5)")
    return budget


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer, and why.

    `positions_in` and `positions_out` count the pixels of one image that enter and leave the layer,
    summed over its calls. `conv` is None for a kind of layer that onebyone has no formulas for; its
    cost is in the plan's `other_macs` and `other_params`. `error` is the predicted rise of the loss,
    in nats per image. `shape` is the geometry with fewer channels where the layer was narrowed; the
    form stands in its place. `positions_between` is as in `Places`.
    """

    layer: str
    conv: ConvSpec | None
    positions_in: int
    positions_out: int
    form: str = "keep"
    ranks: tuple[int, ...] = ()
    error: float = 0.0
    reason: str = ""
    shape: ConvSpec | None = None
    positions_between: int | None = None

    @property
    def refused(self) -> bool:
        """Whether the layer stays bit for bit as it is; `reason` says why."""
        return self.form == "refuse"

    @property
    def shaped(self) -> ConvSpec | None:
        """The geometry that the form is made of: narrowed, or the original's."""
        return self.shape or self.conv

    @property
    def sides(self) -> dict[str, int]:
        """Its ranks by the side that they cut."""
        return dict(zip(FORMS[self.form].ranks, self.ranks, strict=True)) if self.ranks else {}

    @property
    def places(self) -> Places:
        """Where its parts are counted."""
        return Places(self.positions_in, self.positions_out, self.positions_between)

    @property
    def macs_before(self) -> int:
        """MACs of the original layer for one image."""
        return self.conv.macs_on(self.places) if self.conv else 0

    @property
    def params_before(self) -> int:
        """Parameters of the original layer."""
        return self.conv.params if self.conv else 0

    @property
    def macs_after(self) -> int:
        """MACs of what stands in its place."""
        if self.refused or self.shaped is None:
            return self.macs_before
        return FORMS[self.form].macs(self.shaped, self.ranks, self.places)

    @property
    def params_after(self) -> int:
        """Parameters of what stands in its place."""
        if self.refused or self.shaped is None:
            return self.params_before
        return FORMS[self.form].params(self.shaped, self.ranks)


@dataclass(frozen=True)
class Step:
    """One step of slimming: what to keep of the original, then so many epochs of fine-tuning."""

    budget: Budget
    epochs: float


@dataclass(frozen=True)
class Plan(Displayed):
    """Every layer's decision, with the whole network's cost before and after for one image.

    `other_macs` and `other_params` belong to what is no convolution or linear layer of the plan
    (attention products, normalisation): they stay, and count in the totals. `source` is the model
    spec that `load` was given, so that a saved folder can be loaded again; `notes` are for people.
    `schedule`: the steps that led here, each fine-tuned; the last one is this plan's.
    `insertions` are what a deepened network has more than the one it was made from, the refused ones
    with their reasons; its budget is a part of the costs of `reference`, (MACs, parameters).
    `narrowings` are the hidden channels that are left out, and where.
    """

    budget: Budget
    decisions: tuple[Decision, ...]
    input_shape: tuple[int, ...]
    other_macs: int = 0
    other_params: int = 0
    seed: int = 0
    source: dict[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())
    schedule: tuple[Step, ...] = ()
    insertions: tuple[Insertion, ...] = ()
    reference: tuple[int, int] | None = None
    narrowings: tuple[Narrowing, ...] = ()

    @property
    def macs_before(self) -> int:
        """MACs of the original network for one image."""
        return self.other_macs + sum(d.macs_before for d in self.decisions)

    @property
    def macs_after(self) -> int:
        """MACs of the lighter or deeper network for one image."""
        added = sum(i.macs for i in self.insertions)
        return self.other_macs + added + sum(d.macs_after for d in self.decisions)

    @property
    def params_before(self) -> int:
        """Parameters of the original network."""
        return self.other_params + sum(d.params_before for d in self.decisions)

    @property
    def params_after(self) -> int:
        """Parameters of the lighter or deeper network."""
        added = sum(i.params for i in self.insertions)
        others = self.other_params + added - sum(n.params_saved for n in self.narrowings)
        return others + sum(d.params_after for d in self.decisions)

    @property
    def error(self) -> float:
        """The predicted rise of the loss: over layers and narrowings, in nats per image."""
        return sum(d.error for d in self.decisions) + sum(n.error for n in self.narrowings)

    def of(self, layer: str) -> Decision:
        """The decision on a layer, by its qualified name."""
        for decision in self.decisions:
            if decision.layer == layer:
                return decision
        raise PlanError(f"the plan has no layer {layer!r}")


def as_source(value: object) -> dict[str, Any] | None:
    """Where a network came from, as `Loaded.source` and plans have it; PlanError for anything else."""
    if value is None or (isinstance(value, dict) and {"spec", "plan"} & set(value)):
        return value
    raise PlanError(
        f"the source {value!r} names no network: give what onebyone.load has as .source, or leave it out"
    )


def as_plan(plan: object) -> Plan:
    """The plan itself; PlanError for what is none, such as the path of its file."""
    if isinstance(plan, Plan):
        return plan
    path = str(plan) if isinstance(plan, str | PathLike) else "plan.json"
    raise PlanError(f"the plan is {plan!r}: give a Plan, such as onebyone.read_plan({path!r})")


@dataclass(frozen=True)
class Measured:
    """A plan that was carried out, and the top-1 accuracy of its network on the held-out images."""

    plan: Plan
    accuracy: float
