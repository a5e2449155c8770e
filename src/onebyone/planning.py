"""Budget, Decision and Plan: what becomes of every layer, decided at once and written down."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from onebyone.allocation import Choices, allocate, cheapest
from onebyone.conv import ConvSpec
from onebyone.deepening.insertions import Insertion
from onebyone.errors import BudgetError, PlanError
from onebyone.factorize.metric import energies, factor, tails
from onebyone.factorize.squeeze import input_energy
from onebyone.forms import FORMS
from onebyone.statistics import LayerStatistics, Statistics
from onebyone.surveying import Seen
from onebyone.tree import modules_by_name


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
            if value is not None and not (isinstance(value, int | float) and 0 < value <= 1):
                raise BudgetError(
                    f"{name}={value!r} is not a budget: give the fraction to keep, above 0 and at "
                    f"most 1 ({name}=0.5 keeps half)"
                )
        if (self.macs, self.params, self.latency) == (None, None, None):
            raise BudgetError(
                "no budget was given: set macs=, params=, latency= or several, such as macs=0.5"
            )


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer, and why.

    `positions_in` and `positions_out` count the pixels of one image that enter and leave the layer,
    summed over its calls. `conv` is None for a kind of layer that onebyone has no formulas for; its
    cost is in the plan's `other_macs` and `other_params`. `error` is the predicted rise of the loss,
    in nats per image.
    """

    layer: str
    conv: ConvSpec | None
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
        return self.conv.macs(self.positions_out) if self.conv else 0

    @property
    def params_before(self) -> int:
        """Parameters of the original layer."""
        return self.conv.params if self.conv else 0

    @property
    def macs_after(self) -> int:
        """MACs of what stands in its place."""
        if self.refused or self.conv is None:
            return self.macs_before
        return FORMS[self.form].macs(self.conv, self.ranks, self.positions_in, self.positions_out)

    @property
    def params_after(self) -> int:
        """Parameters of what stands in its place."""
        if self.refused or self.conv is None:
            return self.params_before
        return FORMS[self.form].params(self.conv, self.ranks)


@dataclass(frozen=True)
class Step:
    """One step of slimming: what to keep of the original, then so many epochs of fine-tuning."""

    budget: Budget
    epochs: float


@dataclass(frozen=True)
class Plan:
    """Every layer's decision, with the whole network's cost before and after for one image.

    `other_macs` and `other_params` belong to what is no convolution or linear layer of the plan
    (attention products, normalisation): they stay, and count in the totals. `source` is the model
    spec that `load` was given, so that a saved folder can be loaded again; `notes` are for people.
    `schedule`: the steps that led here, each fine-tuned; the last one is this plan's.
    `insertions` are what a deepened network has more than the one it was made from, the refused ones
    with their reasons; its budget is a part of the costs of `reference`, (MACs, parameters).
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
        return self.other_params + added + sum(d.params_after for d in self.decisions)

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


@dataclass(frozen=True)
class _Candidate:
    form: str
    ranks: tuple[int, ...]


class Times(Protocol):
    """The times of layers in a runtime, in nanoseconds: the third cost that a plan can keep to."""

    @property
    def other_ns(self) -> float:
        """What the network takes beyond the layers that `of` knows."""
        ...

    def of(self, layer: str, form: str, ranks: tuple[int, ...]) -> float:
        """The time of a form in place of a layer; infinite where that is not known."""
        ...


def plan(
    model: nn.Module, statistics: Statistics, budget: Budget, *, times: Times | None = None
) -> Plan:
    """Choose a form and ranks for every layer at once, within the budget; change nothing.

    A candidate's error is half its discarded energy in the metric of the loss (`factorize`), the
    second-order estimate of the rise of the loss in nats per image; the sum over the layers is
    minimised. `times` are needed for a budget of latency, and leave out what is not faster than the
    layer. Raises BudgetError for a budget that no candidates meet, naming the lowest that can be.
    """
    if budget.latency is not None and times is None:
        raise BudgetError(
            "a budget of latency needs measured times: give latency= to slim, which measures them"
        )
    survey = statistics.survey
    modules = modules_by_name(model)
    tables: list[tuple[list[_Candidate], Choices]] = []
    decided = [s for s in survey.layers if s.refusal is None]
    for seen in decided:
        weight = getattr(modules[seen.layer], "weight").detach()  # noqa: B009
        table = _candidates(seen, weight, statistics.layers[seen.layer], statistics.images)
        tables.append(table if times is None else _timed(seen.layer, *table, times))
    macs_known = sum(s.conv.macs(s.positions_out) for s in survey.layers if s.conv)
    params_known = sum(s.conv.params for s in survey.layers if s.conv)
    other = (survey.macs - macs_known, survey.params - params_known)
    totals = (survey.macs, survey.params)
    if times is not None:
        other_ns = times.other_ns + _untimed(survey.layers, times)
        keep_ns = sum(t.costs[0, 2] for _, t in tables)
        other, totals = (*other, other_ns), (*totals, other_ns + keep_ns)
    picks = _allocate(budget, survey.layers, [t for _, t in tables], other, totals)
    decisions: dict[str, Decision] = {}
    for seen, (candidates, choices), pick in zip(decided, tables, picks, strict=True):
        chosen = candidates[pick]
        decisions[seen.layer] = Decision(
            seen.layer, seen.conv, seen.positions_in, seen.positions_out, chosen.form, chosen.ranks,
            float(choices.errors[pick]), _reason(chosen, len(candidates)),
        )  # fmt: skip
    for seen in survey.layers:
        if seen.refusal is not None:
            decisions[seen.layer] = Decision(
                seen.layer, seen.conv, seen.positions_in, seen.positions_out, "refuse",
                reason=seen.refusal,
            )  # fmt: skip
    return Plan(
        budget, tuple(decisions[s.layer] for s in survey.layers), survey.input_shape, *other[:2],
        seed=statistics.seed,
    )  # fmt: skip


def _timed(
    layer: str, candidates: list[_Candidate], choices: Choices, times: Times
) -> tuple[list[_Candidate], Choices]:
    """With the times as a third cost; of the candidates only those that are faster than the layer."""
    column = np.asarray([times.of(layer, c.form, c.ranks) for c in candidates])
    kept = np.flatnonzero((column < column[0]) | (np.arange(len(column)) == 0))
    costs = np.column_stack([choices.costs, column])[kept]
    return [candidates[i] for i in kept], Choices(choices.errors[kept], costs)


def _untimed(layers: tuple[Seen, ...], times: Times) -> float:
    """Nanoseconds of the layers that stay bit for bit."""
    return sum(times.of(s.layer, "keep", ()) for s in layers if s.refusal is not None)


def _reason(chosen: _Candidate, candidates: int) -> str:
    if chosen.form != "keep":
        return ""
    if candidates == 1:
        return "no form of it is cheaper than the layer itself"
    return "its cheaper forms cost more accuracy than those of other layers"


def _candidates(
    seen: Seen, weight: Tensor, seen_statistics: LayerStatistics, images: int
) -> tuple[list[_Candidate], Choices]:
    """Keep, and every form and rank that is cheaper than keep in MACs or parameters."""
    conv = seen.conv
    assert conv is not None
    kernel = weight.reshape(conv.c_out, conv.c_in, conv.taps).transpose(1, 2)
    losses_in, losses_out = _tails(kernel, seen_statistics, images)
    found = [_Candidate("keep", ())]
    rows = [(0.0, conv.macs(seen.positions_out), conv.params)]
    for name, form in FORMS.items():
        if not form.ranks or form.refuse(conv) is not None:
            continue
        sides = [
            (losses_in, conv.c_in) if side == "in" else (losses_out, conv.c_out)
            for side in form.ranks
        ]
        for ranks in np.ndindex(*(len(_ranks(size)) for _, size in sides)):
            chosen = tuple(_ranks(size)[i] for i, (_, size) in zip(ranks, sides, strict=True))
            error = sum(float(loss[r]) for r, (loss, _) in zip(chosen, sides, strict=True))
            macs = form.macs(conv, chosen, seen.positions_in, seen.positions_out)
            params = form.params(conv, chosen)
            if macs <= rows[0][1] and params <= rows[0][2] and (macs, params) != rows[0][1:]:
                found.append(_Candidate(name, chosen))
                rows.append((error, macs, params))
    table = np.asarray(rows, dtype=np.float64)
    return found, Choices(table[:, 0], table[:, 1:])


def _ranks(size: int) -> list[int]:
    """Ranks to try for so many channels: multiples of 8 in big layers, finer in small ones."""
    step = 8 if size >= 64 else max(1, size // 8)
    return list(range(step, size, step)) or [1]


def _tails(kernel: Tensor, seen: LayerStatistics, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted loss for each rank of the input and of the output side, in nats per image."""
    metric = factor(seen.gradients / images)
    outside = energies(metric.T @ seen.outputs.covariance @ metric)
    if kernel.shape[1] == 1:  # no form of a pointwise layer cuts its input side
        return np.zeros(0), (tails(outside) / 2).numpy()
    taps = seen.taps / seen.taps.diagonal().mean().clamp_min(1e-30)
    channels = factor(seen.channels.covariance)
    inside = energies(input_energy(kernel.cpu(), channels, taps, metric))
    return (tails(inside) / 2).numpy(), (tails(outside) / 2).numpy()


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
            fixed[:2] += (seen.conv.macs(seen.positions_out), seen.conv.params)
    every = ("macs", "params", "latency")
    names = [n for n in every if getattr(budget, n) is not None]
    columns = [every.index(n) for n in names]
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
