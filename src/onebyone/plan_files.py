"""The plan as JSON that a person can read, edit and apply."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from onebyone.conv import ConvSpec
from onebyone.deepening.files import insertion_from_json, insertion_to_json
from onebyone.errors import BudgetError, PlanError
from onebyone.files import json_text, write_text
from onebyone.forms import FORMS, KEPT, full_rank
from onebyone.narrowing.files import narrowings_from_json, narrowings_to_json, nats
from onebyone.narrowing.spaces import Narrowing, narrowed
from onebyone.plans import Budget, Decision, Plan, Step, as_plan, as_source

SCHEMA = "onebyone.plan/1"
EDITABLE = (
    "form and ranks of a layer and the width of a narrowing can be edited; costs and predicted errors "
    "are worked out anew when the plan is applied"
)


COSTS = ("macs_before", "macs_after", "params_before", "params_after", "predicted_error_nats")
PLACES = ("positions_in", "positions_out", "positions_between")
LAYER = frozenset(("layer", "form", "ranks", "channels", "reason", "conv", *COSTS, *PLACES))
KEYS = frozenset((
    "schema", "about", "budget", "cost", "input_shape", "other_macs", "other_params", "seed", "source",
    "notes", "schedule", "layers", "narrowings", "insertions", "reference", "model",
))  # fmt: skip


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready values; costs are written for the reader and not read back."""
    deeper: dict[str, Any] = {}
    if plan.insertions or plan.reference is not None:
        deeper["insertions"] = [insertion_to_json(i) for i in plan.insertions]
        deeper["reference"] = None if plan.reference is None else list(plan.reference)
    return {
        "schema": SCHEMA,
        "about": EDITABLE,
        "budget": {k: v for k, v in asdict(plan.budget).items() if v is not None},
        "cost": {
            "macs_before": plan.macs_before, "macs_after": plan.macs_after,
            "params_before": plan.params_before, "params_after": plan.params_after,
            "predicted_error_nats": plan.error,
        },
        "input_shape": list(plan.input_shape),
        "other_macs": plan.other_macs,
        "other_params": plan.other_params,
        "seed": plan.seed,
        "source": plan.source,
        "notes": list(plan.notes),
        **({"schedule": [_step_to_json(step) for step in plan.schedule]} if plan.schedule else {}),
        "layers": [_decision_to_json(decision) for decision in plan.decisions],
        "narrowings": narrowings_to_json(plan.narrowings),
    } | deeper  # fmt: skip


def _step_to_json(step: Step) -> dict[str, Any]:
    return {k: v for k, v in asdict(step.budget).items() if v is not None} | {"epochs": step.epochs}


def _step_from_json(values: Any) -> Step:
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} is no step of a schedule")
    budget = {k: v for k, v in values.items() if k != "epochs"}
    return Step(_budget_from_json(budget), float(values["epochs"]))


def _budget_from_json(values: Any) -> Budget:
    known = [field.name for field in fields(Budget)]
    if not isinstance(values, dict) or not set(values) <= set(known):
        raise ValueError(f"{values!r} is no budget: it has {', '.join(known)} and nothing else")
    return Budget(**values)


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"the notes are {values!r} and no list")
    return tuple(map(str, values))


def _decision_to_json(decision: Decision) -> dict[str, Any]:
    values: dict[str, Any] = {"layer": decision.layer, "form": decision.form}
    between = decision.positions_between
    if decision.form in FORMS and FORMS[decision.form].ranks:
        values["ranks"] = dict(zip(FORMS[decision.form].ranks, decision.ranks, strict=True))
    if decision.shape is not None:
        values["channels"] = {"in": decision.shape.c_in, "out": decision.shape.c_out}
    return values | {
        "macs_before": decision.macs_before, "macs_after": decision.macs_after,
        "params_before": decision.params_before, "params_after": decision.params_after,
        "predicted_error_nats": decision.error,
        "reason": decision.reason,
        "positions_in": decision.positions_in, "positions_out": decision.positions_out,
        **({} if between is None else {"positions_between": between}),
        "conv": _conv_to_json(decision.conv) if decision.conv else None,
    }  # fmt: skip


def plan_from_json(values: Any, where: str = "the plan") -> Plan:
    """The plan that `plan_to_json` wrote, perhaps edited; PlanError names what does not fit."""
    schema = values.get("schema") if isinstance(values, dict) else type(values).__name__
    if schema != SCHEMA:
        raise PlanError(
            f"{where} is no plan of this version: schema {schema!r}, expected {SCHEMA!r}"
        )
    unknown = sorted(set(values) - KEYS)
    if unknown:
        raise PlanError(
            f"{where} has {unknown[0]!r}, which no plan has: form and ranks of layers and the widths of "
            "narrowings can be edited"
        )
    try:
        narrowings = narrowings_from_json(values.get("narrowings", []), where)
        decisions = tuple(
            _decision_from_json(layer, f"{where}, layer {number}", narrowings)
            for number, layer in enumerate(values["layers"], start=1)
        )
        twice = [n for n, count in Counter(d.layer for d in decisions).items() if count > 1]
        if twice:
            raise PlanError(f"{where} has the layer {twice[0]!r} twice: leave one of them out")
        return Plan(
            _budget_from_json(values["budget"]), decisions, tuple(map(_whole, values["input_shape"])),
            _integer(values["other_macs"]), _integer(values["other_params"]), _seed(values["seed"]),
            _source(values["source"]), _texts(values["notes"]),
            tuple(map(_step_from_json, values.get("schedule", ()))),
            tuple(
                insertion_from_json(insertion, f"{where}, insertion {number}")
                for number, insertion in enumerate(values.get("insertions", ()), start=1)
            ),
            _reference(values.get("reference")), narrowings,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, BudgetError) as error:
        raise PlanError(f"{where} is damaged: {_described(error)}") from error


def _source(value: Any) -> dict[str, Any] | None:
    try:
        return as_source(value)
    except PlanError as error:
        raise ValueError(str(error)) from error


def _reference(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    macs, params = map(_whole, value)
    return macs, params


def _described(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _integer(value: Any) -> int:
    """What is no layer's can be below 0: weights that layers share count in each of them."""
    if type(value) is not int:
        raise ValueError(f"{value!r} stands where a whole number is expected")
    return value


def _seed(value: Any) -> int:
    if not -(1 << 63) <= _integer(value) < 1 << 63:
        raise ValueError(f"the seed {value} has more than 64 bits")
    return value


def _whole(value: Any) -> int:
    if _integer(value) < 0:
        raise ValueError(f"{value!r} stands where a whole number is expected")
    return value


def _decision_from_json(
    values: Any, where: str, narrowings: tuple[Narrowing, ...] = ()
) -> Decision:
    if not isinstance(values, dict):
        raise PlanError(f"{where} is damaged: {values!r} is no layer")
    if isinstance(values.get("layer"), str):
        where += f" ({values['layer'] or 'the network itself'})"
    try:
        unknown = sorted(set(values) - LAYER)
        if unknown:
            raise PlanError(
                f"{where} has {unknown[0]!r}, which no layer of a plan has: form and ranks can be edited"
            )
        layer, conv = str(values["layer"]), _conv_from_json(values["conv"])
        shape = None if conv is None else narrowed(layer, conv, narrowings)
        form, between = values["form"], values.get("positions_between")
        if form in KEPT:
            form = "keep" if shape == conv else "narrow"
        if not isinstance(form, str) or (form != "refuse" and form not in FORMS):
            raise PlanError(
                f"{where}: there is no form {form!r}; the forms are {', '.join(FORMS)} and refuse "
                "(left as it is)"
            )
        if form == "refuse" and shape != conv:
            raise PlanError(
                f"{where}: a narrowing leaves out channels of it, so it cannot stay as it is: give the "
                "form narrow, or take that narrowing out"
            )
        ranks: tuple[int, ...] = ()
        if form not in (*KEPT, "refuse"):
            ranks = _checked_ranks(form, values.get("ranks", {}), shape, where)
        return Decision(
            layer, conv, _whole(values["positions_in"]), _whole(values["positions_out"]), form,
            ranks, nats(values["predicted_error_nats"]), str(values["reason"]),
            None if shape == conv else shape, None if between is None else _whole(between),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"{where} is damaged: {_described(error)}") from error


def _conv_to_json(conv: ConvSpec) -> dict[str, Any]:
    values = asdict(conv)
    if not conv.transposed:
        del values["transposed"], values["output_padding"]
    return values


def _conv_from_json(values: dict[str, Any] | None) -> ConvSpec | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} is no geometry of a layer")
    values = {"output_padding": ()} | values
    for key in ("kernel", "stride", "dilation"):
        values[key] = _lengths(values[key], key, 1)
    values["output_padding"] = _lengths(values["output_padding"], "output_padding")
    if not isinstance(values["padding"], list | tuple) or any(
        not isinstance(pair, list | tuple) or len(pair) != 2 for pair in values["padding"]
    ):
        raise ValueError(f"padding={values['padding']!r} is no list of two numbers for each axis")
    values["padding"] = tuple(_lengths(pair, "padding") for pair in values["padding"])
    for key in ("c_in", "c_out", "groups"):
        if _whole(values[key]) < 1:
            raise ValueError(f"{key}={values[key]} is less than 1")
    return ConvSpec(**values)


def _lengths(value: Any, name: str, least: int = 0) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name}={value!r} is no list of numbers")
    lengths = tuple(map(_whole, value))
    if any(n < least for n in lengths):
        raise ValueError(f"{name}={value!r} has what is less than {least}")
    return lengths


def _checked_ranks(form: str, given: Any, conv: ConvSpec | None, where: str) -> tuple[int, ...]:
    wanted = FORMS[form].ranks
    if conv is None:
        raise PlanError(f"{where}: a layer of this kind has no forms")
    refusal = FORMS[form].refuse(conv)
    if refusal is not None:
        raise PlanError(f"{where}: the form {form} does not suit {conv.text()}: {refusal}")
    if not isinstance(given, dict) or sorted(given) != sorted(wanted):
        expected = ", ".join(f'"{side}": a number' for side in wanted)
        raise PlanError(f"{where}: the form {form} takes ranks {{{expected}}}, not {given!r}")
    for side in wanted:
        most = full_rank(conv, side)
        if type(given[side]) is not int or not 1 <= given[side] <= most:
            raise PlanError(
                f"{where}: rank {side}={given[side]!r} is not a whole number from 1 to {most}"
            )
    return tuple(given[side] for side in wanted)


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan as JSON; the file appears whole or not at all. PlanError for what is no plan."""
    write_text(path, json_text(plan_to_json(as_plan(plan))))


def read_plan(path: Path) -> Plan:
    """Read a plan; PlanError for a missing or damaged file and for edits that cannot be applied."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"the plan {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise PlanError(
            f"the plan {path} is not JSON, so no plan that onebyone wrote: {error}"
        ) from error
    return plan_from_json(values, str(path))
