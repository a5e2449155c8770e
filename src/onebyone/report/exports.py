"""Exports: their sizes, checks and times as tables for a terminal, and as JSON-ready values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from onebyone.exporting.checking import Check
from onebyone.exporting.clocking import Timing
from onebyone.exporting.export import Export
from onebyone.exporting.targets import TARGETS
from onebyone.measurement.latency import Latency
from onebyone.report.columns import NONE, Column, FittedTable
from onebyone.report.numbers import count, milliseconds, percent, ratio, size, small
from onebyone.report.words import images

SCHEMA = "onebyone.exports/1"


@dataclass(frozen=True)
class Cost:
    """What a network costs, beside its files: MACs for one image and parameters."""

    macs: int
    params: int


FILES: tuple[Column[Export], ...] = (
    Column("file", lambda e: e.path.name),
    Column("type", lambda e: e.dtype, 3),
    Column("on disk", lambda e: size(e.size_bytes)),
    Column(
        "kept", lambda e: ratio(e.size_bytes, e.original_bytes) if e.original_bytes else NONE, 4
    ),
    Column("error", lambda e: small(e.check.error)),
    Column("limit", lambda e: f"{e.check.limit.error:g}", 2),
    Column(
        "agreement", lambda e: NONE if e.check.agreement is None else percent(e.check.agreement)
    ),
    Column(
        "whole numbers",
        lambda e: NONE if e.check.same is None else percent(e.check.same),
        5,
        legend="Whole numbers: the share of those in the outputs that PyTorch gives too.",
    ),
    Column("batch", lambda e: "any" if e.any_batch else "1", 1),
)


@dataclass(frozen=True)
class _Timed:
    export: Export
    timing: Timing


TIMES: tuple[Column[_Timed], ...] = (
    Column("file", lambda r: r.export.path.name),
    Column("threads", lambda r: str(r.timing.after.threads)),
    Column("batch", lambda r: str(r.timing.after.batch)),
    Column("median", lambda r: milliseconds(r.timing.after.median_ms)),
    Column("quartiles", lambda r: quartiles(r.timing.after), 1),
    Column("original", lambda r: _original(r.timing)),
    Column(
        "kept",
        lambda r: (
            NONE
            if r.timing.before is None
            else ratio(r.timing.after.median_ms, r.timing.before.median_ms)
        ),
    ),
)


def exports_table(exports: list[Export], cost: Cost | None) -> RenderableType:
    """The files with size and check, then their times, and the conditions of both."""
    rows = [_Timed(e, t) for e in exports for t in e.timings]
    parts: list[RenderableType] = [Text(), FittedTable(exports, FILES), Text()]
    if rows:
        parts += [FittedTable(rows, TIMES), Text()]
    return Group(*parts, *(Text(line, style="dim") for line in _lines(exports, cost)))


def _lines(exports: list[Export], cost: Cost | None) -> list[str]:
    found = []
    if cost is not None:
        found.append(f"The network: {count(cost.macs)} MACs, {count(cost.params)} parameters.")
    found += check_lines([e.check for e in exports])
    ran = ", ".join(dict.fromkeys(e.runtime for e in exports))
    timed = [t.after for e in exports for t in e.timings]
    if timed:
        found.append(
            f"Latency in {ran}: medians of interleaved runs after {timed[0].warmup} to warm up"
            + ("; original: the network before, exported the same way." if _both(exports) else ".")
        )
    notes = [n for e in exports for n in e.notes] + [n for t in timed for n in t.notes]
    return found + [f"note: {n}" for n in dict.fromkeys(notes)]


def check_lines(checks: list[Check]) -> list[str]:
    """What files were checked on, and what the error is."""
    if not checks:
        return []
    kind = "drawn at random, since none were given" if checks[0].drawn else "of those given"
    meanings = {
        "images with the same top class": any(
            c.agreement is not None and not c.rows for c in checks
        ),
        "things that both sides find": any(c.rows for c in checks),
    }
    agreement = " and ".join(meaning for meaning, holds in meanings.items() if holds)
    return [
        f"Checked on {images(checks[0].images)} {kind}. Error: the largest difference from PyTorch's "
        "output, as a fraction of the largest output."
        + (f" Agreement: {agreement}." if agreement else "")
    ]


def _both(exports: list[Export]) -> bool:
    return any(t.before is not None for e in exports for t in e.timings)


def _original(timing: Timing) -> str:
    return NONE if timing.before is None else milliseconds(timing.before.median_ms)


def quartiles(latency: Latency) -> str:
    """The spread: 4.21–4.40."""
    return f"{latency.low_ms:.3g}–{latency.high_ms:.3g}"


def export_json(export: Export) -> dict[str, Any]:
    """One export; null for what was not measured."""
    return {
        "file": export.path.name,
        "target": export.target,
        "title": TARGETS[export.target].title,
        "dtype": export.dtype,
        "runtime": export.runtime,
        "any_batch": export.any_batch,
        "size_bytes": export.size_bytes,
        "original_size_bytes": export.original_bytes,
        "check": check_json(export.check),
        "latency": [
            {"after": latency_json(t.after), "before": t.before and latency_json(t.before)}
            for t in export.timings
        ],
        "notes": list(export.notes),
    }


def check_json(check: Check) -> dict[str, Any]:
    """A check with its limits, and whether they hold."""
    return {
        "images": check.images,
        "drawn": check.drawn,
        "max_abs": check.max_abs if isfinite(check.max_abs) else None,
        "error": check.error if isfinite(check.error) else None,
        "agreement": check.agreement,
        "same": check.same,
        "limits": asdict(check.limit),
        "passed": check.failure is None,
    }


def latency_json(latency: Latency) -> dict[str, Any]:
    """One latency with its conditions."""
    return asdict(latency) | {"notes": list(latency.notes)}


def exports_json(exports: list[dict[str, Any]], cost: Cost | None = None) -> dict[str, Any]:
    """Several exports, of one network."""
    found: dict[str, Any] = {"schema": SCHEMA}
    if cost is not None:
        found |= {"macs": cost.macs, "params": cost.params}
    return found | {"exports": exports}
