"""The plan and the comparison as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onebyone.plans import Decision, Plan
from onebyone.report.insertions import insertion_table
from onebyone.report.numbers import count, milliseconds, percent, points, ratio, size
from onebyone.report.words import (
    UNCHANGED,
    chain,
    clock_notes,
    conditions,
    fidelity,
    images,
    layer_name,
    reasons,
    widths,
)
from onebyone.verification import Verification

HEADS = ("layer", "form", "channels", "MACs", "kept", "params", "kept")
GAP = 2
SHORTEST_NAME = 16  # columns are dropped before names get less room than this


def plan_table(plan: Plan) -> RenderableType:
    """Every layer: form, channels all the way through, MACs and parameters left, and why it stays.

    Of a deepened network every insertion instead.
    """
    if plan.insertions:
        return insertion_table(plan)
    lines = [Text(line) for line in widths(plan)]
    lines += [Text(line, style="dim") for line in reasons(plan)]
    return Group(Text(), _PlanTable(plan), *([Text(), *lines] if lines else []))


@dataclass(frozen=True)
class _PlanTable:
    """The table at whatever width there is.

    Where all seven columns do not fit, the fractions of parameters and of MACs are left out, in this
    order; a name too long for what is left is broken at its dots.
    """

    plan: Plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        rows = [_row(d) for d in self.plan.decisions]
        total = _total(self.plan)
        sizes = [max(map(cell_len, column)) for column in zip(HEADS, *rows, total, strict=True)]
        columns = list(range(len(HEADS)))
        for dropped in (6, 4):
            if _width(sizes, columns) > options.max_width:
                columns.remove(dropped)
        room = max(SHORTEST_NAME, sizes[0] - _width(sizes, columns) + options.max_width)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            table.add_column(
                HEADS[column], justify="right" if column > 2 else "left", no_wrap=column > 2,
                overflow="fold",
            )  # fmt: skip
        for decision, row in zip(self.plan.decisions, rows, strict=True):
            style = "dim" if decision.form in UNCHANGED else None
            table.add_row(Text(broken(row[0], room)), *(row[c] for c in columns[1:]), style=style)
        table.add_section()
        table.add_row(*(total[c] for c in columns), style="bold")
        yield table


def _width(widths: list[int], columns: list[int]) -> int:
    return sum(widths[c] for c in columns) + GAP * (len(columns) - 1)


def _row(decision: Decision) -> tuple[str, ...]:
    changed = decision.form not in UNCHANGED
    return (
        layer_name(decision.layer),
        decision.form,
        chain(decision),
        count(decision.macs_after) if decision.conv else "–",
        ratio(decision.macs_after, decision.macs_before) if changed else "",
        count(decision.params_after) if decision.conv else "–",
        ratio(decision.params_after, decision.params_before) if changed else "",
    )


def _total(plan: Plan) -> tuple[str, ...]:
    return (
        "whole network", "", "", count(plan.macs_after), ratio(plan.macs_after, plan.macs_before),
        count(plan.params_after), ratio(plan.params_after, plan.params_before),
    )  # fmt: skip


def broken(name: str, width: int) -> str:
    """A long name in lines of at most `width`, broken after dots where there are any.

    >>> broken("features.block12.conv", 16)
    'features.\\nblock12.conv'
    """
    lines = [""]
    for part in name.replace(".", ".\0").split("\0"):
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def summary(verification: Verification, plan: Plan | None = None) -> RenderableType:
    """Before and after side by side, how close the lighter network stays, and the notes of both."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("before", "after", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _compared(verification):
        table.add_row(*row)
    before, after = verification.before, verification.after
    if before.accuracy is not None and after.accuracy is not None:
        table.add_row(
            "top-1 accuracy", percent(before.accuracy), percent(after.accuracy),
            points(after.accuracy, before.accuracy), style="bold",
        )  # fmt: skip
    lines = [Text(line) for line in fidelity(verification)]
    if before.latency:
        said = conditions(before.latency[0], after.latency[0])
        notes = clock_notes((*before.latency, *after.latency))
        lines += [Text(line, style="dim") for line in (said, *notes)]
    lines += [
        Text(f"note: {text}", style="dim")
        for text in (*(plan.notes if plan else ()), *verification.notes)
    ]
    return Group(Text(), table, Text(), *lines)


def _compared(verification: Verification) -> Iterator[tuple[str, str, str, str]]:
    """Label, before, after and what is left of it, for everything that should get smaller."""
    before, after = verification.before, verification.after
    for label, spell, was, now in (
        ("MACs", count, before.macs, after.macs),
        ("parameters", count, before.params, after.params),
        ("weights on disk", size, before.weight_bytes, after.weight_bytes),
    ):
        yield label, spell(was), spell(now), ratio(now, was)
    for was, now in zip(before.latency, after.latency, strict=True):
        yield (
            f"latency, {images(was.batch)}", milliseconds(was.median_ms),
            milliseconds(now.median_ms), ratio(now.median_ms, was.median_ms),
        )  # fmt: skip
