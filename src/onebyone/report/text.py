"""The plan and the comparison as tables for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onebyone.planning import Decision, Plan
from onebyone.report.numbers import (
    becomes,
    count,
    milliseconds,
    percent,
    ratio,
    size,
    small,
)  # fmt: skip
from onebyone.verification import Latency, Verification

STYLES = {"keep": "dim", "refuse": "dim"}


def plan_table(plan: Plan) -> RenderableType:
    """Every layer: what it was, what it becomes, MACs and parameters kept, the predicted loss."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("layer", overflow="fold", no_wrap=False)
    table.add_column("was", no_wrap=True)
    table.add_column("form", no_wrap=True)
    table.add_column("becomes", no_wrap=True)
    for name in ("MACs", "kept", "params", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    for decision in plan.decisions:
        table.add_row(*_row(decision), style=STYLES.get(decision.form))
    table.add_section()
    table.add_row(
        "the whole network", "", "", "", count(plan.macs_after),
        ratio(plan.macs_after, plan.macs_before), count(plan.params_after),
        ratio(plan.params_after, plan.params_before), style="bold",
    )  # fmt: skip
    return Group(table, *_reasons(plan))


def _row(decision: Decision) -> tuple[str, ...]:
    changed = decision.form not in ("keep", "refuse")
    return (
        escape(decision.layer) or "(the network)",
        decision.conv.text() if decision.conv else "",
        decision.form,
        becomes(decision),
        count(decision.macs_after),
        ratio(decision.macs_after, decision.macs_before) if changed else "",
        count(decision.params_after),
        ratio(decision.params_after, decision.params_before) if changed else "",
    )


def _reasons(plan: Plan) -> list[Text]:
    """Why layers stay, each reason once with its layers."""
    found: dict[tuple[str, str], list[str]] = {}
    for decision in plan.decisions:
        if decision.reason:
            found.setdefault((decision.form, decision.reason), []).append(decision.layer)
    lines = []
    for (form, reason), layers in found.items():
        what = "kept" if form == "keep" else "left as it is"
        named = ", ".join(layers[:4]) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
        lines.append(Text(f"{what}: {named}: {reason}", style="dim"))
    return lines


def summary(verification: Verification, plan: Plan) -> RenderableType:
    """Before and after side by side, and how close the lighter network stays."""
    before, after = verification.before, verification.after
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("before", "after", ""):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("MACs", count(before.macs), count(after.macs), ratio(after.macs, before.macs))
    table.add_row(
        "parameters", count(before.params), count(after.params), ratio(after.params, before.params)
    )
    table.add_row(
        "weights", size(before.weight_bytes), size(after.weight_bytes),
        ratio(after.weight_bytes, before.weight_bytes),
    )  # fmt: skip
    for was, now in zip(before.latency, after.latency, strict=True):
        images = "1 image" if was.batch == 1 else f"{was.batch} images"
        table.add_row(
            f"latency, {images}", milliseconds(was.median_ms), milliseconds(now.median_ms),
            ratio(now.median_ms, was.median_ms),
        )  # fmt: skip
    if before.accuracy is not None and after.accuracy is not None:
        points = 100 * (after.accuracy - before.accuracy)
        table.add_row(
            "top-1 accuracy", percent(before.accuracy), percent(after.accuracy),
            f"{points:+.2f} points", style="bold",
        )  # fmt: skip
    lines = [Text(line) for line in fidelity(verification)]
    if before.latency:
        lines.append(Text(conditions(before.latency[0], after.latency[0]), style="dim"))
    lines += [Text(f"note: {text}", style="dim") for text in (*plan.notes, *verification.notes)]
    return Group(table, *lines)


def fidelity(verification: Verification) -> list[str]:
    """How close the lighter network stays to the original, in sentences."""
    if not verification.images:
        return ["No images were held out: how close the outputs stay was not measured."]
    lines = []
    images = f"{verification.images:,} held-out image" + "s" * (verification.images != 1)
    if verification.agreement is not None and verification.kl is not None:
        lines.append(
            f"On {images} both networks choose the same class for "
            f"{percent(verification.agreement)}; KL divergence {small(verification.kl)} nats."
        )
    if verification.output_error is not None:
        lines.append(
            f"Relative squared error of the output: {small(verification.output_error)}"
            + ("." if lines else f", on {images}.")
        )
    return lines


def conditions(before: Latency, after: Latency) -> str:
    """How the clock was read."""
    threads = "1 thread" if before.threads == 1 else f"{before.threads} threads"
    return (
        f"Latency: {before.runtime}, {before.device}, {threads}, {before.dtype}, medians of "
        f"interleaved runs after {before.warmup} to warm up; for 1 image the quartiles are "
        f"{before.low_ms:.3g}–{before.high_ms:.3g} ms before and "
        f"{after.low_ms:.3g}–{after.high_ms:.3g} ms after."
    )
