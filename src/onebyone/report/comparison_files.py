"""Block variants side by side as JSON-ready values, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

from onebyone.comparison import Comparison, Refused, Variant
from onebyone.measurement.latency import Latency
from onebyone.report.comparison import (
    clock,
    conditions,
    exact,
    label,
    refusals,
    sentences,
    times,
    title,
)
from onebyone.report.numbers import count, size
from onebyone.windows import shape_text

SCHEMA = "onebyone.compare/1"
CLOCK = ("median_ms", "low_ms", "high_ms")
SETTING = ("runs", "warmup", "threads", "batch", "dtype", "device", "runtime")
FIELDS = (
    "name", "width", "groups", "channels", "height", "columns", "params", "params_with_bias", "macs",
    "activation_bytes", "bytes_moved", "macs_per_byte", "params_ratio", "macs_ratio",
    *(f"inference_{name}" for name in CLOCK), "inference_ratio",
    *(f"training_{name}" for name in CLOCK), "training_ratio", *SETTING, "refused",
)  # fmt: skip
HEADS = (
    "block", "output", "parameters", "with bias", "of direct", "MACs", "of direct", "written",
    "MACs per byte",
)  # fmt: skip


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Everything that was counted and timed; null for what was not.

    Ratios are fractions of direct, latencies milliseconds, bytes those of float32. MACs, bytes and
    parameters are for one image, latencies for the batch.
    """
    window, even = comparison.window, comparison.break_even
    return {
        "schema": SCHEMA,
        "input": list(comparison.input_shape),
        "output": list(comparison.output_shape),
        "kernel": comparison.kernel,
        "stride": list(window.stride),
        "padding": dict(zip(("left", "right", "top", "bottom"), window.padding, strict=True)),
        "widths": list(comparison.widths),
        "bias": comparison.bias,
        "batch": comparison.batch,
        "break_even": {
            "macs_width": float(even.macs), "params_width": float(even.params),
            "most_width_saving_macs": even.most_macs, "most_width_saving_params": even.most_params,
        },
        "variants": [_variant(v) for v in comparison.variants],
        "refused": [asdict(r) for r in comparison.refused],
        "notes": list(comparison.notes),
    }  # fmt: skip


def _variant(variant: Variant) -> dict[str, Any]:
    values = asdict(variant)
    values["output"] = list(values.pop("output_shape"))
    values["macs_per_byte"] = variant.intensity_macs_per_byte
    return values


def comparison_csv(comparison: Comparison) -> str:
    """One line a variant, refused ones last with the reason; empty where there is nothing to say."""
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_line(v) for v in comparison.variants)
    writer.writerows(_refused(r) for r in comparison.refused)
    return file.getvalue()


def _line(variant: Variant) -> dict[str, Any]:
    values = asdict(variant)
    line = {k: v for k, v in values.items() if k in FIELDS and v is not None}
    line |= dict(zip(("channels", "height", "columns"), variant.output_shape, strict=True))
    line["macs_per_byte"] = variant.intensity_macs_per_byte
    for what, found in (("inference", variant.inference), ("training", variant.training)):
        if found is not None:
            line |= {f"{what}_{name}": getattr(found, name) for name in CLOCK}
    if variant.inference is not None:
        line |= {name: getattr(variant.inference, name) for name in SETTING}
    return line


def _refused(refused: Refused) -> dict[str, Any]:
    width = {} if refused.width is None else {"width": refused.width}
    return {"name": refused.name, **width, "refused": refused.reason}


def comparison_markdown(comparison: Comparison) -> str:
    """A table that can be pasted into an issue, and what it says."""
    timed = [
        name for name in ("inference", "training") if getattr(comparison.direct, name) is not None
    ]
    heads = [*HEADS, *(h for name in timed for h in (name, "of direct"))]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for variant in comparison.variants:
        cells = [
            label(variant), shape_text(variant.output_shape), exact(variant.params),
            exact(variant.params_with_bias), times(variant.params_ratio), count(variant.macs),
            times(variant.macs_ratio), size(variant.activation_bytes),
            f"{variant.intensity_macs_per_byte:.1f}",
        ]  # fmt: skip
        for name in timed:
            found: Latency | None = getattr(variant, name)
            cells += [clock(found), times(getattr(variant, f"{name}_ratio"))]
        lines.append("| " + " | ".join(cells) + " |")
    said = [*sentences(comparison), *refusals(comparison), *conditions(comparison)]
    said += [f"Note: {note}" for note in comparison.notes]
    return "\n".join([f"**{title(comparison)}**", "", *lines, "", *(f"- {s}" for s in said)]) + "\n"
