"""What the cost bench opens on: the blocks' names, and the times measured here."""

from __future__ import annotations

from typing import Any

from onebyone.comparing import compare
from onebyone.comparison import Comparison
from onebyone.variants import KINDS

# The worked example: 100×20×20 → 40×20×20 by 5×5, or by way of 20 channels.
START = {"c": 100, "h": 20, "w": 20, "out": 40, "kernel": 5, "stride": 1, "groups": 4, "width": 20}
BLOCKS = (
    "direct", "bottleneck_before", "bottleneck_after", "bottleneck_both", "depthwise_separable",
    "inverted_residual", "grouped",
)  # fmt: skip
SECONDS = 1.2


def measured_start() -> Comparison:
    """The worked example, every block counted and timed here for about a second."""
    return compare(
        (START["c"], START["h"], START["w"]), (START["out"], START["h"], START["w"]), START["kernel"],
        width=START["width"], groups=START["groups"], training=False, seconds=SECONDS,
    )  # fmt: skip


def bench_json(comparison: Comparison | None) -> dict[str, Any]:
    """For the page: names, the values to begin with, and medians in ms where there are any."""
    kinds = {name: {"title": KINDS[name].title, "says": KINDS[name].says} for name in BLOCKS}
    runs = [] if comparison is None else [{"asked": START, "times": _times(comparison)}]
    return {"kinds": kinds, "start": START, "measured": runs}


def _times(comparison: Comparison) -> dict[str, float]:
    return {
        v.name: v.inference.median_ms
        for v in comparison.variants
        if v.name in BLOCKS and v.inference is not None
    }


def measured_sentence(comparison: Comparison | None) -> str:
    """What stands below the table: where and how the times were measured."""
    timed = comparison.direct.inference if comparison is not None else None
    if timed is None:
        return "Latency was not measured. Parameters, MACs and activations are counted."
    return (
        f"Latency was measured for the numbers that this opens on alone: medians of {timed.runs} runs "
        f"or more, one image, {timed.runtime} on {timed.device}, {timed.threads} thread"
        f"{'s' * (timed.threads != 1)}, {timed.dtype}. Parameters, MACs and activations are counted."
    )
