"""The verification and the plan's totals as JSON-ready values, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from onebyone.deepening.files import insertion_to_json
from onebyone.errors import DataError
from onebyone.measurement.latency import Latency
from onebyone.plans import Decision, Plan
from onebyone.verification import LayerError, Side, Verification

SCHEMA = "onebyone.report/1"


def to_json(verification: Verification, plan: Plan) -> dict[str, Any]:
    """Everything that was counted, measured and decided; null for what was not, or is not finite.

    `macs_kept` and `params_kept` are fractions of the original's, `accuracy_drop` is a fraction
    (0.01 is one point), errors are relative, latencies are milliseconds.
    """
    before, after = verification.before, verification.after
    drop = None
    if before.accuracy is not None and after.accuracy is not None:
        drop = before.accuracy - after.accuracy
    errors = {e.layer: e.error for e in verification.layers}
    return {
        "schema": SCHEMA,
        "macs_kept": after.macs / before.macs if before.macs else None,
        "params_kept": after.params / before.params if before.params else None,
        "accuracy_drop": drop,
        "held_out_images": verification.images,
        "agreement": verification.agreement,
        "kl_nats": _finite(verification.kl),
        "output_error": _finite(verification.output_error),
        "before": _side(before),
        "after": _side(after),
        "layers": [_layer(d, errors.get(d.layer)) for d in plan.decisions],
        "insertions": [insertion_to_json(i) for i in plan.insertions],
        "narrowings": [
            {
                "layer": n.layer,
                "channels_before": n.channels,
                "channels_after": n.width,
                "predicted_error_nats": _finite(n.error),
            }
            for n in plan.narrowings
        ],
        "notes": [*plan.notes, *verification.notes],
    }


def _layer(decision: Decision, measured: float | None) -> dict[str, Any]:
    return {
        "layer": decision.layer,
        "form": decision.form,
        "ranks": list(decision.ranks),
        "channels": None
        if decision.shaped is None
        else [decision.shaped.c_in, decision.shaped.c_out],
        "macs_before": decision.macs_before,
        "macs_after": decision.macs_after,
        "params_before": decision.params_before,
        "params_after": decision.params_after,
        "predicted_error_nats": _finite(decision.error),
        "output_error": _finite(measured),
        "reason": decision.reason,
    }


def _side(side: Side) -> dict[str, Any]:
    latency = [asdict(timed) | {"notes": list(timed.notes)} for timed in side.latency]
    return asdict(side) | {"latency": latency}


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def read_report(path: Path, plan: Plan) -> Verification:
    """The verification that `to_json` wrote for this plan; DataError where the file is not such a one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            raise ValueError(f"its schema is {values['schema']!r}, not {SCHEMA!r}")
        layers = tuple(
            LayerError(str(layer["layer"]), float(layer["output_error"]))
            for layer in values["layers"]
            if layer["output_error"] is not None
        )
        return Verification(
            _side_from(values["before"]), _side_from(values["after"]), int(values["held_out_images"]),
            _number(values["agreement"]), _number(values["kl_nats"]), _number(values["output_error"]),
            layers, tuple(map(str, values["notes"][len(plan.notes):])),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} cannot be read as a report that onebyone wrote: {said}") from error


def _side_from(values: dict[str, Any]) -> Side:
    latency = tuple(
        Latency(**timed | {"notes": tuple(timed["notes"])}) for timed in values["latency"]
    )
    macs, params, size = (int(values[key]) for key in ("macs", "params", "weight_bytes"))
    return Side(macs, params, size, _number(values["accuracy"]), latency)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
