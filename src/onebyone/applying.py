"""A plan on a network: whether it suits, what it costs there, and what it is predicted to lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from torch import nn

from onebyone.conv import ConvSpec
from onebyone.errors import PlanError, listed
from onebyone.forms import FORMS, KEPT
from onebyone.losses import Losses
from onebyone.narrowing.spaces import Narrowing, narrowed
from onebyone.plans import Decision, Plan
from onebyone.statistics import Statistics
from onebyone.surveying import Seen
from onebyone.tree import modules_by_name
from onebyone.windows import shape_text


def planned_layers(
    model: nn.Module, plan: Plan, statistics: Statistics
) -> list[tuple[Decision, ConvSpec]]:
    """What the plan decides on layers that can change, each with its geometry after the narrowings.

    Raises PlanError where plan and model differ: in layers, in their geometry, or in the channels that
    narrowings leave out.
    """
    modules = modules_by_name(model)
    seen = {s.layer: s for s in statistics.survey.layers}
    planned: list[tuple[Decision, ConvSpec]] = []
    for decision in plan.decisions:
        name = decision.layer
        if name not in seen or name not in modules:
            raise PlanError(
                f"the plan's layer {name!r} is not in this model: is the plan another's?"
            )
        if decision.refused:
            continue
        if seen[name].refusal is not None:
            raise PlanError(
                f"the plan changes layer {name!r}, but it must stay as it is: {seen[name].refusal}"
            )
        conv = ConvSpec.of(modules[name])
        if conv != decision.conv:
            raise PlanError(f"layer {name!r} is {_differing(conv, decision.conv)}")
        planned.append((decision, conv))
    for narrowing in plan.narrowings:
        _check_narrowing(narrowing, statistics)
    found: list[tuple[Decision, ConvSpec]] = []
    for decision, conv in planned:
        shape = narrowed(decision.layer, conv, plan.narrowings)
        if shape != decision.shaped:
            raise PlanError(
                f"layer {decision.layer!r} is narrowed to {shape.text()}, but planned otherwise"
            )
        _check_ranks(decision, shape)
        found.append((decision, shape))
    named = {d.layer for d in plan.decisions}
    left_out = [name for name in seen if name not in named]
    if left_out:
        raise PlanError(
            f"the plan does not say what becomes of layer {listed([*map(repr, left_out)], 1)}: it has an "
            "entry for every layer, with the form keep where one stays as it is"
        )
    return found


def _differing(own: ConvSpec, planned: ConvSpec | None) -> str:
    """What a layer is in the model and in the plan, by what tells them apart."""
    if planned is None or own.text() != planned.text():
        return (
            f"{own.text()} in the model and {planned.text() if planned else 'unknown'} in the plan"
        )
    pairs = ((f.name, getattr(own, f.name), getattr(planned, f.name)) for f in fields(ConvSpec))
    odd = [f"{name} {one} in the model and {other} in the plan" for name, one, other in pairs
           if one != other]  # fmt: skip
    return f"{own.text()} with {'; '.join(odd)}"


def _check_narrowing(narrowing: Narrowing, statistics: Statistics) -> None:
    """Raise PlanError where this network has no such channels to leave out."""
    spaces = {s.name: s for s in statistics.spaces}
    space = spaces.get(narrowing.layer)
    if space is None or space.refusal is not None or space.name not in statistics.orders:
        why = space.refusal if space is not None and space.refusal else "no layers read them alone"
        raise PlanError(
            f"the plan narrows the outputs of layer {narrowing.layer!r}, whose width stays in this "
            f"model: {why}"
        )
    if space.channels != narrowing.channels:
        raise PlanError(
            f"the plan narrows {narrowing.channels} channels behind layer {narrowing.layer!r}, where "
            f"this model has {space.channels}"
        )
    if set(space.cuts) != set(narrowing.cuts):
        odd = sorted({c.tensor for c in set(space.cuts) ^ set(narrowing.cuts)})
        raise PlanError(
            f"the cuts of the plan's narrowing behind layer {narrowing.layer!r} are not those of this "
            f"model (other ones of {listed(odd)}): leave them as they were planned, and edit the width"
        )


def _check_ranks(decision: Decision, shape: ConvSpec) -> None:
    """Raise PlanError for ranks that a form cannot have; those of a file are checked when it is read."""
    form = FORMS[decision.form]
    if decision.form in KEPT:
        return
    if len(decision.ranks) != len(form.ranks) or any(
        not 1 <= rank <= most for rank, most in zip(decision.ranks, form.full(shape), strict=True)
    ):
        raise PlanError(
            f"layer {decision.layer!r} has the ranks {decision.ranks} in the plan: the form "
            f"{decision.form} takes {' and '.join(form.ranks)}, from 1 to "
            f"{' and '.join(map(str, form.full(shape)))}"
        )


def renewed(model: nn.Module, plan: Plan, statistics: Statistics, losses: Losses) -> Plan:
    """The plan's choices with the costs and the predicted errors that they have on what was observed.

    What a plan has of these is of the network, the images and the choices that it was made with, and
    may have been edited since. A note says where the size of the inputs differs, and where the plan is
    above its own budget. Raises PlanError as `planned_layers`.
    """
    planned_layers(model, plan, statistics)
    survey = statistics.survey
    seen = {s.layer: s for s in survey.layers}
    narrowings = tuple(_narrowing(n, statistics) for n in plan.narrowings)
    made = replace(
        plan,
        decisions=tuple(
            _decision(d, seen[d.layer], losses, narrowings) for d in plan.decisions
        ),
        input_shape=survey.input_shape, other_macs=survey.other_macs,
        other_params=survey.other_params, narrowings=narrowings,
    )  # fmt: skip
    return replace(made, notes=(*plan.notes, *_changes(plan, made)))


def _narrowing(narrowing: Narrowing, statistics: Statistics) -> Narrowing:
    space = next(s for s in statistics.spaces if s.name == narrowing.layer)
    errors = statistics.orders[narrowing.layer].errors / statistics.images
    return replace(narrowing, params_each=space.params_each, error=float(errors[narrowing.width]))


def _decision(
    decision: Decision, seen: Seen, losses: Losses, narrowings: Sequence[Narrowing]
) -> Decision:
    error = 0.0
    if not decision.refused and decision.form not in KEPT:
        lost = losses.at(seen, narrowings)
        error = float(sum(lost[side][rank] for side, rank in decision.sides.items()))
    changed = decision.form not in ("keep", "refuse")
    return replace(
        decision, conv=seen.conv, positions_in=seen.positions_in, positions_out=seen.positions_out,
        positions_between=seen.positions_between, error=error,
        reason="" if changed else decision.reason,
    )  # fmt: skip


def _changes(plan: Plan, made: Plan) -> list[str]:
    """What there is to say about a plan that is not what it was."""
    notes = []
    if plan.input_shape != made.input_shape:
        notes.append(
            f"the plan was made for inputs of {shape_text(plan.input_shape)}; its costs are those of "
            f"{shape_text(made.input_shape)} here"
        )
    for name in ("macs", "params"):
        allowed = getattr(made.budget, name)
        kept = getattr(made, f"{name}_after") / max(getattr(made, f"{name}_before"), 1)
        if allowed is not None and kept > allowed + 1e-9:
            notes.append(
                f"the plan keeps {kept:.3f} of the {name if name == 'params' else 'MACs'}, more than "
                f"its budget of {allowed}: it was edited, or made for another network"
            )
    return notes
