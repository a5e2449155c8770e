"""A measurement as one self-contained HTML file."""

from __future__ import annotations

from math import isfinite

from onebyone.measurement.latency import TRAINING
from onebyone.measurement.measuring import LayerMeasurement, Measurement
from onebyone.measurement.roofline import placement_words
from onebyone.report.markup import Content, Markup, join, tag
from onebyone.report.measurement import (
    batch,
    counted_sentence,
    latency_conditions,
    latency_sentences,
    memory_sentences,
    shape,
    title,
)
from onebyone.report.measurement_rows import LayerRow, View, rows_of, total_of
from onebyone.report.numbers import count, milliseconds, share, size
from onebyone.report.page import Head, bound, page, section, unnamed
from onebyone.report.words import images, layer_name

BARS = 32  # rows of the picture: where there are more layers, they are summed up
NONE = "–"
NBSP = "\N{NO-BREAK SPACE}"
QUANTITIES = (
    ("macs", "MACs"), ("params", "parameters"), ("activation_bytes", "written"),
    ("milliseconds", "time"),
)  # fmt: skip
HEADS = (
    ("#", ""), ("layer", "name"), ("kind", ""), ("output", ""), ("calls", "number"),
    ("MACs", "number"), ("params", "number"), ("weights", "number"), ("written", "number"),
)  # fmt: skip
TIMED = (
    ("in the network", "number"), ("alone", "number"), ("bound by", ""), ("reaches", "number"),
)  # fmt: skip


def measurement_html(name: str, measurement: Measurement) -> str:
    """The page: the numbers that matter, where the cost is, every layer, and how it was measured.

    Every text is escaped. The page's own policy forbids any request and any script but its own.
    """
    return page(
        f"{title(name, measurement)}: onebyone measure",
        Head(
            join("onebyone measure ", tag("code", name)),
            _headline(measurement),
            bound(_lede(name, measurement)),
        ),
        (
            unnamed("The whole network", _cards(measurement)),
            section("bars-title", "Where the cost is", _bars(measurement)),
            section("layers", "Layer by layer", _table(measurement)),
            section(
                "method-title", "What was counted and measured, and how",
                _method(measurement), _notes(measurement),
            ),
        ),
        styles=("report.css", "bars.css", "measurement.css"),
        scripts=("table.js",),
        skip=("layers", "the table of layers"),
    )  # fmt: skip


def _headline(measurement: Measurement) -> str:
    macs, params = (count(n).replace(" ", NBSP) for n in (measurement.macs, measurement.params))
    return f"{macs} MACs, {params} parameters"


def _lede(name: str, measurement: Measurement) -> str:
    partial = "" if measurement.failure is None else f" Partial: {measurement.failure}."
    return f"{title(name, measurement)}. {counted_sentence(measurement)}{partial}"


def _cards(measurement: Measurement) -> Markup:
    counted = "one pass" if measurement.images is None else images(measurement.images)
    found = [
        _card(f"MACs, {counted}", count(measurement.macs), "of convolutions and matrix products"),
        _card(
            "Parameters",
            count(measurement.params),
            f"{size(measurement.weight_bytes)} with buffers",
        ),
    ]
    if measurement.memory is not None:
        peaks = [
            ("inference", measurement.memory.inference),
            ("training", measurement.memory.training),
        ]
        for what, peak in peaks:
            if peak is not None:
                activations = size(peak.of("activation") + peak.of("gradient"))
                found.append(
                    _card(
                        f"Peak memory, {what}{batch(measurement)}",
                        size(peak.bytes),
                        f"{activations} beside weights and input",
                    )
                )
    for latency in measurement.latency:
        step = "a training step" if latency.mode == TRAINING else "inference"
        found.append(
            _card(
                f"{step.capitalize()}{batch(measurement)}",
                milliseconds(latency.median_ms),
                f"{latency.runtime}, quartiles {latency.low_ms:.3g}–{latency.high_ms:.3g} ms",
            )
        )
    return tag("ul", *found, class_=f"cards of{min(len(found), 6)}")


def _card(label: str, big: str, below: str) -> Markup:
    return tag("li", tag("h2", label), tag("p", big, class_="big"), tag("p", below, class_="was"))


def _bars(measurement: Measurement) -> Markup:
    """The parts of the network with a bar for each cost, relative to the whole."""
    rows = _parts(measurement)
    total = total_of(measurement)
    shown = [(q, n) for q, n in QUANTITIES if getattr(total, q)]
    most = {q: max(getattr(r, q) or 0 for r in rows) or 1 for q, _ in shown}
    heads = tag(
        "li",
        tag("span", ""),
        *(tag("span", n) for _, n in shown),
        class_="heads",
        aria_hidden="true",
    )
    items = [
        tag(
            "li",
            tag("span", row.label, class_="block"),
            *(_bar(row, q, n, most[q], getattr(total, q)) for q, n in shown),
        )
        for row in rows
    ]
    style = f"--quantities:{len(shown)}"
    return tag("ul", heads, *items, class_="ratios parts", style=style)


def _parts(measurement: Measurement) -> list[LayerRow]:
    """The layers with MACs, or sums over modules where these are too many."""
    rows = rows_of(measurement, View())
    depth = max((name.count(".") for name in measurement.layers), default=0) + 1
    while len(rows) > BARS and depth > 1:
        depth -= 1
        rows = rows_of(measurement, View(depth=depth))
    return rows if len(rows) <= BARS else rows_of(measurement, View(sort="macs", top=BARS - 1))


def _bar(row: LayerRow, quantity: str, name: str, most: float, whole: float) -> Markup:
    value = getattr(row, quantity) or 0
    bar = tag("i", class_=quantity, style=f"width:{100 * value / most:.2f}%") if value else ""
    return tag(
        "span",
        tag("span", name, class_="what"),
        tag("span", bar, class_="track", aria_hidden="true"),
        tag("b", share(value, whole) if value else NONE),
        class_="bar",
    )


def _table(measurement: Measurement) -> Markup:
    timed = measurement.layer_latency is not None
    heads = [*HEADS, *(TIMED if timed else ())]
    layers = list(measurement.layers.values())
    longest = max((len(layer_name(layer.name)) for layer in layers), default=0)
    table = tag(
        "table",
        tag("caption", "Every layer in the order of its first operator", class_="sr"),
        tag("thead", tag("tr", *(tag("th", n, scope="col", class_=k or None) for n, k in heads))),
        tag("tbody", *(_row(i, layer, timed) for i, layer in enumerate(layers))),
        id="layer-table",
        class_="plain-head",
        style=f"--name:{min(longest, 24) * 0.62 + 1.8:g}em",
    )
    return tag(
        "div", table, class_="scroll", tabindex="0", role="region", aria_label="Table of layers"
    )


def _row(index: int, layer: LayerMeasurement, timed: bool) -> Markup:
    cells = [
        tag("td", index + 1, class_="index", data_v=index),
        tag("th", layer_name(layer.name), scope="row", class_="name"),
        tag("td", layer.kind),
        tag("td", shape(layer.output_shape)),
        _number(f"{layer.calls:,}", layer.calls),
        _number(count(layer.macs) if layer.macs else NONE, layer.macs),
        _number(count(layer.params) if layer.params else NONE, layer.params),
        _number(size(layer.weight_bytes) if layer.weight_bytes else NONE, layer.weight_bytes),
        _number(size(layer.activation_bytes), layer.activation_bytes),
    ]
    if timed:
        clock, place = layer.latency, layer.placement
        alone = None if clock is None else clock.alone_ms
        cells += [
            _number(*_spelled(None if clock is None else clock.network_ms)),
            _number(*_spelled(alone)),
            tag("td", NONE if place is None else place.bound),
            _number(
                NONE if place is None else f"{100 * place.fraction:.0f} %",
                None if place is None else place.fraction,
            ),
        ]
    return tag("tr", *cells)


def _spelled(value: float | None) -> tuple[str, float | None]:
    return (NONE if value is None else milliseconds(value)), value


def _number(spelled: str, value: float | None) -> Markup:
    known = value is not None and isfinite(value)
    return tag("td", spelled, class_="number", data_v=f"{value:.9g}" if known else "")


def _method(measurement: Measurement) -> Markup:
    entries: list[tuple[str, Content]] = [
        ("MACs", "Multiply–accumulates of convolutions and matrix products in one pass, the products at "
            "padded positions among them; bias, normalization and activations are not counted. One "
            "MAC is two FLOPs. " + counted_sentence(measurement)),
        ("Written", "What operators write to new memory; in-place operators and views write none."),
    ]  # fmt: skip
    if measurement.memory is not None:
        entries.append(
            ("Peak memory", " ".join(memory_sentences(measurement)) + " Counted are tensors that live "
             "at the same time; what an operator takes for itself while it runs is not seen.")
        )  # fmt: skip
    if measurement.latency:
        said = [*latency_sentences(measurement), *latency_conditions(measurement)]
        entries.append(("Latency", " ".join(said)))
    if measurement.machine is not None and measurement.placement is not None:
        machine = measurement.machine
        entries.append(
            ("This machine", f"{machine.macs_per_second / 1e9:.3g} GMACs/s and "
             f"{machine.bytes_per_second / 1e9:.3g} GB/s at best ({machine.how}). A layer is bound by "
             "the limit that it would meet first; what it reaches of it stands in the table. The "
             f"whole network is {placement_words(measurement.placement)}.")
        )  # fmt: skip
    return tag("dl", *(join(tag("dt", term), tag("dd", what)) for term, what in entries))


def _notes(measurement: Measurement) -> Content:
    if not measurement.notes:
        return ""
    return join(
        tag("h3", "Notes"), tag("ul", *(tag("li", n) for n in measurement.notes), class_="notes")
    )
