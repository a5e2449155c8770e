"""The verification and the plan's totals as JSON-ready values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from onebyone.planning import Plan
from onebyone.verification import Verification

SCHEMA = "onebyone.report/1"


def to_json(verification: Verification, plan: Plan) -> dict[str, Any]:
    """Everything that was counted, measured and decided; None becomes null.

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
        "kl_nats": verification.kl,
        "output_error": verification.output_error,
        "before": asdict(before),
        "after": asdict(after),
        "layers": [
            {
                "layer": d.layer,
                "form": d.form,
                "ranks": list(d.ranks),
                "macs_before": d.macs_before,
                "macs_after": d.macs_after,
                "params_before": d.params_before,
                "params_after": d.params_after,
                "predicted_error_nats": d.error,
                "output_error": errors.get(d.layer),
                "reason": d.reason,
            }
            for d in plan.decisions
        ],
        "notes": [*plan.notes, *verification.notes],
    }
