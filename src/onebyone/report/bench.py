"""A network in several runtimes: a table for a terminal, and JSON-ready values."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from onebyone.benching import Bench, Run
from onebyone.report.columns import NONE, Column, FittedTable
from onebyone.report.exports import Cost, check_json, latency_json, quartiles
from onebyone.report.numbers import count, milliseconds, ratio, size, small
from onebyone.report.words import images, threads

SCHEMA = "onebyone.bench/1"
ERROR = "Error: the largest difference from PyTorch's output, as a fraction of the largest output."


def bench_table(name: str, found: Bench, cost: Cost | None) -> RenderableType:
    """Every runtime, the fastest first, with its time, the size of its file, and what was refused."""
    base = _base(found)
    columns: tuple[Column[Run], ...] = (
        Column("runtime", lambda r: r.latency.runtime),
        Column("median", lambda r: milliseconds(r.latency.median_ms)),
        Column("quartiles", lambda r: quartiles(r.latency), 2),
        Column("of eager", lambda r: ratio(r.latency.median_ms, base) if base else NONE),
        Column("on disk", lambda r: NONE if r.size_bytes is None else size(r.size_bytes), 1),
        Column(
            "error", lambda r: NONE if r.check is None else small(r.check.error), 3, legend=ERROR
        ),
    )
    return Group(
        Text(), Text(_title(name, cost), style="bold"), Text(),
        FittedTable(found.runs, columns, below=_lines(found)),
    )  # fmt: skip


def _base(found: Bench) -> float:
    """The milliseconds of PyTorch eager, 0 where it was not timed."""
    return next((r.latency.median_ms for r in found.runs if r.name == "eager"), 0.0)


def _title(name: str, cost: Cost | None) -> str:
    if cost is None:
        return name
    return f"{name}: {count(cost.macs)} MACs, {count(cost.params)} parameters"


def _lines(found: Bench) -> list[str]:
    first = found.runs[0].latency
    lines = [
        f"{threads(first.threads).capitalize()}, {images(first.batch)}, {first.dtype}; medians of "
        f"{first.runs} interleaved runs after {first.warmup} to warm up."
    ]
    lines += [f"not timed: {name}: {why}" for name, why in found.refused.items()]
    return lines + [f"note: {n}" for n in first.notes]


def bench_json(name: str, found: Bench, cost: Cost | None) -> dict[str, Any]:
    """Everything that was measured, the fastest runtime first."""
    return {
        "schema": SCHEMA,
        "model": name,
        "macs": cost and cost.macs,
        "params": cost and cost.params,
        "runs": [
            {
                "runtime": run.name,
                "latency": latency_json(run.latency),
                "size_bytes": run.size_bytes,
                "check": run.check and check_json(run.check),
            }
            for run in found.runs
        ],
        "refused": found.refused,
    }
