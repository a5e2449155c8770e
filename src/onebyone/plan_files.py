"""The plan as JSON that a person can read, edit and apply."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onebyone.conv import ConvSpec
from onebyone.errors import BudgetError, PlanError
from onebyone.files import write_text
from onebyone.forms import FORMS
from onebyone.planning import Budget, Decision, Plan

SCHEMA = "onebyone.plan/1"
EDITABLE = (
    "form and ranks of a layer can be edited; costs are worked out anew when the plan is read"
)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready values; costs are written for the reader and not read back."""
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
        "layers": [_decision_to_json(decision) for decision in plan.decisions],
    }  # fmt: skip


def _decision_to_json(decision: Decision) -> dict[str, Any]:
    values: dict[str, Any] = {"layer": decision.layer, "form": decision.form}
    if decision.form in FORMS and FORMS[decision.form].ranks:
        values["ranks"] = dict(zip(FORMS[decision.form].ranks, decision.ranks, strict=True))
    return values | {
        "macs_before": decision.macs_before, "macs_after": decision.macs_after,
        "params_before": decision.params_before, "params_after": decision.params_after,
        "predicted_error_nats": decision.error,
        "reason": decision.reason,
        "positions_in": decision.positions_in, "positions_out": decision.positions_out,
        "conv": asdict(decision.conv) if decision.conv else None,
    }  # fmt: skip


def plan_from_json(values: dict[str, Any], where: str = "the plan") -> Plan:
    """The plan that `plan_to_json` wrote, perhaps edited; PlanError names what does not fit."""
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        given = values.get("schema") if isinstance(values, dict) else type(values).__name__
        raise PlanError(
            f"{where} is no plan of this version: schema {given!r}, expected {SCHEMA!r}"
        )
    try:
        return Plan(
            Budget(**values["budget"]),
            tuple(_decision_from_json(layer, where) for layer in values["layers"]),
            tuple(values["input_shape"]), values["other_macs"], values["other_params"],
            values["seed"], values["source"], tuple(values["notes"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, BudgetError) as error:
        raise PlanError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def _decision_from_json(values: dict[str, Any], where: str) -> Decision:
    name, form = values["layer"], values["form"]
    conv = _conv_from_json(values["conv"])
    if form != "refuse" and form not in FORMS:
        raise PlanError(
            f"{where}, layer {name!r}: there is no form {form!r}; the forms are {', '.join(FORMS)}"
        )
    ranks: tuple[int, ...] = ()
    if form != "refuse":
        ranks = _checked_ranks(form, values.get("ranks", {}), conv, f"{where}, layer {name!r}")
    return Decision(
        name, conv, values["positions_in"], values["positions_out"], form, ranks,
        values["predicted_error_nats"], values["reason"],
    )  # fmt: skip


def _conv_from_json(values: dict[str, Any] | None) -> ConvSpec | None:
    if values is None:
        return None
    values = dict(values)
    for key in ("kernel", "stride", "dilation"):
        values[key] = tuple(values[key])
    values["padding"] = tuple((before, after) for before, after in values["padding"])
    return ConvSpec(**values)


def _checked_ranks(
    form: str, given: dict[str, int], conv: ConvSpec | None, where: str
) -> tuple[int, ...]:
    wanted = FORMS[form].ranks
    if conv is None:
        raise PlanError(f"{where}: a layer of this kind has no forms")
    refusal = FORMS[form].refuse(conv)
    if refusal is not None:
        raise PlanError(f"{where}: the form {form} does not suit {conv.text()}: {refusal}")
    if not isinstance(given, dict) or sorted(given) != sorted(wanted):
        raise PlanError(f"{where}: the form {form} has ranks {list(wanted)}, not {given!r}")
    for side in wanted:
        most = conv.c_in if side == "in" else conv.c_out
        if not isinstance(given[side], int) or not 1 <= given[side] <= most:
            raise PlanError(
                f"{where}: rank {side}={given[side]!r} is not a whole number from 1 to {most}"
            )
    return tuple(given[side] for side in wanted)


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan as JSON; the file appears whole or not at all."""
    write_text(path, json.dumps(plan_to_json(plan), indent=2, ensure_ascii=False) + "\n")


def read_plan(path: Path) -> Plan:
    """Read a plan; PlanError for a missing or damaged file and for edits that cannot be applied."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"the plan {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PlanError(f"the plan {path} is not JSON: {error}") from error
    return plan_from_json(values, str(path))
