"""The verification and the plan's totals as JSON-ready values."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import Any

from onebyone.deepening.files import insertion_to_json
from onebyone.planning import Decision, Plan
from onebyone.verification import Side, Verification

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
