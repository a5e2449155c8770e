"""Budget, Decision and Plan: what becomes of every layer, decided at once and written down."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from onebyone.conv import ConvSpec
from onebyone.errors import BudgetError, PlanError
from onebyone.forms import FORMS

VERSION = 1


@dataclass(frozen=True)
class Budget:
    """The fractions of the original network's MACs and parameters to keep; all that are set hold."""

    macs: float | None = None
    params: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("macs", self.macs), ("params", self.params)):
            if value is not None and not (isinstance(value, int | float) and 0 < value <= 1):
                raise BudgetError(
                    f"{name}={value!r} is not a budget: give the fraction to keep, above 0 and at "
                    f"most 1 ({name}=0.5 keeps half)"
                )
        if self.macs is None and self.params is None:
            raise BudgetError("no budget was given: set macs=, params= or both, such as macs=0.5")


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer, and why.

    `positions_in` and `positions_out` count the pixels of one image that enter and leave the layer,
    summed over its calls. `error` is the predicted rise of the loss, in nats per image.
    """

    layer: str
    conv: ConvSpec
    positions_in: int
    positions_out: int
    form: str = "keep"
    ranks: tuple[int, ...] = ()
    error: float = 0.0
    reason: str = ""

    @property
    def refused(self) -> bool:
        """Whether the layer stays bit for bit as it is; `reason` says why."""
        return self.form == "refuse"

    @property
    def macs_before(self) -> int:
        """MACs of the original layer for one image."""
        return self.conv.macs(self.positions_out)

    @property
    def params_before(self) -> int:
        """Parameters of the original layer."""
        return self.conv.params

    @property
    def macs_after(self) -> int:
        """MACs of what stands in its place."""
        if self.refused:
            return self.macs_before
        return FORMS[self.form].macs(self.conv, self.ranks, self.positions_in, self.positions_out)

    @property
    def params_after(self) -> int:
        """Parameters of what stands in its place."""
        return self.params_before if self.refused else FORMS[self.form].params(self.conv, self.ranks)


@dataclass(frozen=True)
class Plan:
    """Every layer's decision, with the whole network's cost before and after for one image.

    `other_macs` and `other_params` belong to what is no convolution or linear layer of the plan
    (attention products, normalisation): they stay, and count in the totals. `source` is the model
    spec that `load` was given, so that a saved folder can be loaded again; `notes` are for people.
    """

    budget: Budget
    decisions: tuple[Decision, ...]
    input_shape: tuple[int, ...]
    other_macs: int = 0
    other_params: int = 0
    seed: int = 0
    source: dict[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def macs_before(self) -> int:
        """MACs of the original network for one image."""
        return self.other_macs + sum(d.macs_before for d in self.decisions)

    @property
    def macs_after(self) -> int:
        """MACs of the lighter network for one image."""
        return self.other_macs + sum(d.macs_after for d in self.decisions)

    @property
    def params_before(self) -> int:
        """Parameters of the original network."""
        return self.other_params + sum(d.params_before for d in self.decisions)

    @property
    def params_after(self) -> int:
        """Parameters of the lighter network."""
        return self.other_params + sum(d.params_after for d in self.decisions)

    @property
    def error(self) -> float:
        """The predicted rise of the loss: the sum over the layers, in nats per image."""
        return sum(d.error for d in self.decisions)

    def of(self, layer: str) -> Decision:
        """The decision on a layer, by its qualified name."""
        for decision in self.decisions:
            if decision.layer == layer:
                return decision
        raise PlanError(f"the plan has no layer {layer!r}")
