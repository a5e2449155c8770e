"""Block variants side by side: a table for a terminal, and the sentences that the page has too."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from onebyone.comparison import Comparison, Refused, Variant
from onebyone.measurement.latency import Latency
from onebyone.report.columns import NONE, Column, FittedTable
from onebyone.report.numbers import count, milliseconds, ratio, share, size
from onebyone.report.words import images, threads
from onebyone.variants import BEFORE
from onebyone.windows import shape_text

EXACT = 10_000_000  # parameters up to which every digit is printed

COLUMNS: tuple[Column[Variant], ...] = (
    Column("block", lambda v: label(v)),
    Column("output", lambda v: shape_text(v.output_shape), 9),
    Column("params", lambda v: exact(v.params)),
    Column("ratio", lambda v: ratio(v.params, v.params / v.params_ratio) if v.params else NONE, 7),
    Column("with bias", lambda v: exact(v.params_with_bias), 2),
    Column("MACs", lambda v: count(v.macs)),
    Column("ratio", lambda v: times(v.macs_ratio), 1),
    Column("written", lambda v: size(v.activation_bytes), 8),
    Column("MACs/B", lambda v: f"{v.intensity_macs_per_byte:.1f}", 6),
    Column("inference", lambda v: clock(v.inference)),
    Column("ratio", lambda v: times(v.inference_ratio), 4),
    Column("training", lambda v: clock(v.training), 3),
    Column("ratio", lambda v: times(v.training_ratio), 5),
)


def comparison_table(comparison: Comparison) -> RenderableType:
    """What was asked, the variants at whatever width there is, what they say, what was refused."""
    said = [Text(line) for line in sentences(comparison)]
    dim = [*conditions(comparison), *(f"note: {n}" for n in comparison.notes)]
    return Group(
        Text(), Text(title(comparison), style="bold"), Text(), _table(comparison), Text(), *said,
        *(Text(line) for line in refusals(comparison)), *(Text(line, style="dim") for line in dim),
    )  # fmt: skip


def _table(comparison: Comparison) -> FittedTable[Variant]:
    # Where biases are counted anyway, a second column would say the same.
    columns = [c for c in COLUMNS if not (comparison.bias and c.head == "with bias")]
    return FittedTable(
        comparison.variants, columns, style=lambda v: "bold" if v.name == BEFORE else None
    )


def label(variant: Variant | Refused) -> str:
    """The title, with the width or the groups where the block has them: `1×1 before, w 20`."""
    if isinstance(variant, Variant) and variant.groups is not None:
        return f"{variant.title}, g {variant.groups}"
    return variant.title if variant.width is None else f"{variant.title}, w {variant.width}"


def exact(params: int) -> str:
    """Parameters with every digit, as far as that can be read."""
    return f"{params:,}" if params < EXACT else count(params)


def times(factor: float | None) -> str:
    """A ratio to direct: ×0.22."""
    return "" if factor is None else ratio(factor, 1)


def clock(latency: Latency | None) -> str:
    """The median."""
    return "" if latency is None else milliseconds(latency.median_ms)


def title(comparison: Comparison) -> str:
    """`100×20×20 → 40×20×20, kernel 5×5, stride 1, padding 2, without biases`."""
    shapes = f"{shape_text(comparison.input_shape)} → {shape_text(comparison.output_shape)}"
    biases = "with" if comparison.bias else "without"
    return f"{shapes}, kernel {comparison.window.text()}, {biases} biases"


def sentences(comparison: Comparison) -> list[str]:
    """What the bottleneck saves, what the clock makes of that, and up to which width it saves."""
    return [
        *(_saving(v, comparison) for v in comparison.variants if v.name == BEFORE),
        *_fastest(comparison),
        _break_even(comparison),
    ]


def _saving(variant: Variant, comparison: Comparison) -> str:
    direct = comparison.direct
    said = (
        f"{label(variant)}: {share(variant.params, direct.params)} of the parameters and "
        f"{share(variant.macs, direct.macs)} of the MACs of direct"
    )
    clocks = [
        f"{share(mine.median_ms, other.median_ms)} of its time for {what}"
        for mine, other, what in (
            (variant.inference, direct.inference, "inference"),
            (variant.training, direct.training, "a training step"),
        )
        if mine and other
    ]
    return said + (f"; here {' and '.join(clocks)}." if clocks else ".")


def _fastest(comparison: Comparison) -> list[str]:
    """Which blocks give what was asked in the least time, and whether fewer MACs were slower."""
    timed = [
        v for v in comparison.variants
        if v.inference_ratio is not None and v.output_shape == comparison.output_shape
    ]  # fmt: skip
    if len(timed) < 2:
        return []
    first = min(timed, key=lambda v: v.inference_ratio or 0)
    lines = [f"Fastest here: {label(first)}, {times(first.inference_ratio)} of direct."]
    slow = [v for v in timed if v.macs_ratio < 0.9 and (v.inference_ratio or 0) > 1.1]
    if slow:
        named = ", ".join(f"{label(v)} ({times(v.inference_ratio)})" for v in slow)
        lines.append(f"Fewer MACs than direct, and yet slower: {named}.")
    return lines


def _break_even(comparison: Comparison) -> str:
    even = comparison.break_even
    if even.macs == even.params:
        return (
            f"Break-even: 1×1 before costs less than direct up to width {even.most_macs} (equal at "
            f"{float(even.macs):.2f}, in MACs and in parameters)."
        )
    return (
        f"Break-even: 1×1 before has fewer MACs than direct up to width {even.most_macs} (equal at "
        f"{float(even.macs):.2f}), fewer parameters up to {even.most_params} (equal at "
        f"{float(even.params):.2f})."
    )


def refusals(comparison: Comparison) -> list[str]:
    """What was not built, and why; and what was built otherwise."""
    lines = [f"Not built: {label(r)}: {r.reason}." for r in comparison.refused]
    return lines + [f"{label(v)}: {v.note}." for v in comparison.variants if v.note]


def conditions(comparison: Comparison) -> list[str]:
    """How the clock was read; nothing where it was not."""
    found = comparison.direct.inference
    if found is None:
        return []
    trained = comparison.direct.training
    lines = [
        f"Latency: {found.runtime}, {found.device}, {threads(found.threads)}, {found.dtype}, "
        f"{images(found.batch)}, medians of {found.runs} runs in turn after {found.warmup} to warm up; "
        f"quartiles of direct {found.low_ms:.3g}–{found.high_ms:.3g} ms"
        + (f", training {trained.low_ms:.3g}–{trained.high_ms:.3g} ms." if trained else ".")
    ]
    if trained:
        lines.append(
            "A training step is forward and backward, to the weights and to the input, without an "
            "optimizer."
        )
    return lines
