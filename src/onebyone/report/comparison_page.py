"""Block variants side by side as one self-contained HTML file, without a script."""

from __future__ import annotations

from onebyone.comparison import Comparison, Refused, Variant
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
from onebyone.report.markup import Content, Markup, join, tag, text
from onebyone.report.numbers import count, share, size
from onebyone.report.page import Head, bound, page, section
from onebyone.variants import BEFORE
from onebyone.windows import shape_text

LONGEST = 1.5  # times direct: longer bars are cut off
QUANTITIES = (
    ("params", "parameters"), ("macs", "MACs"), ("inference", "inference"), ("training", "training"),
)  # fmt: skip
HEADS = ("block", "output", "parameters", "with bias", "MACs", "written", "MACs per byte")


def comparison_html(comparison: Comparison) -> str:
    """The page: what the bottleneck saves, bars relative to direct, all numbers, and the code.

    Every text is escaped. The page's own policy forbids any request and any script.
    """
    return page(
        f"{title(comparison)}: onebyone compare",
        Head(
            tag("code", _unbroken(command(comparison))),
            bound(headline(comparison)),
            bound(_lede(comparison)),
        ),
        (
            section("bars-title", "Relative to the direct convolution", _bars(comparison)),
            section("table-title", "In numbers", _table(comparison)),
            section(
                "blocks-title", "The blocks, and the code that builds them", _blocks(comparison)
            ),
            section("method-title", "How it was measured", _method(comparison), _notes(comparison)),
        ),
        styles=("report.css", "bars.css"),
        skip=("blocks-title", "the blocks and their code"),
    )


def _unbroken(line: str) -> Markup:
    """A command that is broken only in front of its options."""
    first, *options = line.split(" --")
    return join(text(first), *(join(" ", tag("span", f"--{o}", class_="option")) for o in options))


def command(comparison: Comparison) -> str:
    """The command that makes this comparison."""
    shapes = ("x".join(map(str, s)) for s in (comparison.input_shape, comparison.output_shape))
    widths = "".join(f" --width {w}" for w in comparison.widths)
    bias = " --bias" if comparison.bias else ""
    return f"onebyone compare {' '.join(shapes)} --kernel {comparison.kernel}{widths}{bias}"


def headline(comparison: Comparison) -> str:
    """What the first bottleneck costs, in MACs and on the clock."""
    direct, narrow = comparison.direct, comparison[BEFORE]
    said = f"A 1×1 bottleneck of width {narrow.width} takes {share(narrow.macs, direct.macs)} of the MACs"
    if narrow.inference is None or direct.inference is None:
        return f"{said} and {share(narrow.params, direct.params)} of the parameters"
    time = share(narrow.inference.median_ms, direct.inference.median_ms)
    return f"{said} and {time} of the inference time"


def _lede(comparison: Comparison) -> str:
    narrow, direct = comparison[BEFORE], comparison.direct
    return (
        f"{title(comparison)}. Direct has {exact(direct.params)} parameters "
        f"({exact(direct.params_with_bias)} with biases) and {count(direct.macs)} MACs, the bottleneck "
        f"{exact(narrow.params)} ({exact(narrow.params_with_bias)} with biases) and {count(narrow.macs)}."
    )


def _ratio(variant: Variant, quantity: str) -> float | None:
    return getattr(variant, f"{quantity}_ratio")


def _bars(comparison: Comparison) -> Markup:
    """One row a variant with a bar for each quantity; a line marks direct."""
    measured = [(q, name) for q, name in QUANTITIES if _ratio(comparison.direct, q) is not None]
    found = [_ratio(v, q) or 0.0 for v in comparison.variants for q, _ in measured]
    whole = min(max(found), LONGEST)
    heads = tag(
        "li", tag("span", ""), *(tag("span", name) for _, name in measured), class_="heads",
        aria_hidden="true",
    )  # fmt: skip
    rows = [
        tag(
            "li",
            tag("span", label(v), _kept_channels(v, comparison), class_="block"),
            *(_bar(q, name, _ratio(v, q), whole) for q, name in measured),
        )
        for v in comparison.variants
    ]
    said = "The line marks the direct convolution." + (
        " Bars that fade at their end go on; the number says how far." if max(found) > whole else ""
    )
    style = f"--quantities:{len(measured)};--one:{100 / whole:.2f}%"
    return join(
        tag("ul", heads, *rows, class_="ratios", style=style),
        tag("p", said, class_="caption"),
    )


def _kept_channels(variant: Variant, comparison: Comparison) -> Content:
    if variant.output_shape == comparison.output_shape:
        return ""
    return tag("small", f"gives {shape_text(variant.output_shape)}")


def _bar(quantity: str, name: str, value: float | None, whole: float) -> Markup:
    length = 100 * min((value or 0.0) / whole, 1.0)
    kind = f"{quantity} cut" if value is not None and value > whole else quantity
    bar = tag("i", class_=kind, style=f"width:{length:.2f}%") if value else ""
    return tag(
        "span",
        tag("span", name, class_="what"),
        tag("span", bar, class_="track", aria_hidden="true"),
        tag("b", times(value)),
        class_="bar",
    )


def _table(comparison: Comparison) -> Markup:
    """Every number, and a row for each variant that could not be built."""
    timed = [q for q in ("inference", "training") if _ratio(comparison.direct, q) is not None]
    heads = [*HEADS, *(dict(QUANTITIES)[q] for q in timed)]
    rows = [_row(v, timed) for v in comparison.variants]
    rows += [_refused(r, len(heads)) for r in comparison.refused]
    longest = max(len(label(v)) for v in (*comparison.variants, *comparison.refused))
    table = tag(
        "table",
        tag("caption", "All variants, direct first", class_="sr"),
        tag("thead", tag("tr", *(_head(i, h) for i, h in enumerate(heads)))),
        tag("tbody", *rows),
        class_="plain-head",
        style=f"--name:{longest * 0.58 + 1.4:g}em",
    )
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Table")


def _head(index: int, name: str) -> Markup:
    kind = "name" if index == 0 else "number" if index > 1 else None
    return tag("th", name, scope="col", class_=kind)


def _row(variant: Variant, timed: list[str]) -> Markup:
    numbers = [
        exact(variant.params), exact(variant.params_with_bias), count(variant.macs),
        size(variant.activation_bytes), f"{variant.intensity_macs_per_byte:.1f}",
        *(clock(getattr(variant, q)) for q in timed),
    ]  # fmt: skip
    return tag(
        "tr",
        tag("th", label(variant), scope="row", class_="name"),
        tag("td", shape_text(variant.output_shape)),
        *(tag("td", n, class_="number") for n in numbers),
    )


def _refused(refused: Refused, columns: int) -> Markup:
    return tag(
        "tr",
        tag("th", label(refused), scope="row", class_="name"),
        tag("td", f"not built: {refused.reason}", colspan=columns - 1, class_="reason"),
        class_="refused",
    )


def _blocks(comparison: Comparison) -> Markup:
    """What each variant is, where it comes from, and its code to open."""
    return tag("ul", *(_block(v) for v in comparison.variants), class_="forms codes")


def _block(variant: Variant) -> Markup:
    numbers = f"{exact(variant.params)} parameters, {count(variant.macs)} MACs"
    note = f" Here {variant.note}." if variant.note else ""
    code = tag("pre", tag("code", variant.code), tabindex="0")
    return tag(
        "li",
        tag("h3", tag("span", label(variant)), tag("small", numbers)),
        tag("p", f"{variant.says[0].upper()}{variant.says[1:]}.{note}", class_="what"),
        tag("details", tag("summary", "PyTorch code"), code),
        tag("p", tag("cite", variant.paper), class_="paper"),
    )


def _method(comparison: Comparison) -> Markup:
    """What the numbers mean, and how they came about."""
    said = [s for s in sentences(comparison) if s.startswith("Break-even")]
    entries: list[tuple[str, Content]] = [
        ("Break-even", said[0].removeprefix("Break-even: ")),
        ("MACs", "Multiply–accumulates of convolutions for one image, counted in a pass, with the "
            "products at padded positions. Bias is not counted. One MAC is two FLOPs."),
        ("Written", "What the block’s operators write to new memory, for one image in float32."),
        ("MACs per byte", "MACs over the bytes that the operators read and write, weights included: "
            "the arithmetic intensity. Where it is low, memory sets the pace."),
        ("Left out", "Activations and BatchNorm: what is compared are the linear parts."),
        ("Latency", _clock_words(comparison)),
    ]  # fmt: skip
    return tag("dl", *(join(tag("dt", term), tag("dd", what)) for term, what in entries))


def _clock_words(comparison: Comparison) -> str:
    return " ".join(conditions(comparison)).removeprefix("Latency: ") or "Not measured."


def _notes(comparison: Comparison) -> Content:
    lines = [s for s in sentences(comparison) if not s.startswith("Break-even")]
    lines = [*lines, *refusals(comparison), *comparison.notes]
    return join(tag("h3", "Notes"), tag("ul", *(tag("li", n) for n in lines), class_="notes"))
