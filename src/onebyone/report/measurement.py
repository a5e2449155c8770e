"""A measurement as a table for a terminal, and the sentences that the page has too."""

from __future__ import annotations

from math import prod

from rich.console import Group, RenderableType
from rich.text import Text

from onebyone.measurement.latency import Latency
from onebyone.measurement.measuring import Measurement
from onebyone.measurement.memory import Alive, Peak
from onebyone.measurement.roofline import ARITHMETIC, placement_words
from onebyone.report.columns import NONE, Column, FittedTable
from onebyone.report.coverage import coverage
from onebyone.report.measurement_rows import LayerRow, View, rows_of, total_of
from onebyone.report.numbers import count, milliseconds, share, size
from onebyone.report.words import images, threads

LARGEST = 12  # tensors of a peak that are shown


def measurement_table(name: str, measurement: Measurement, view: View) -> RenderableType:
    """What was measured, layer by layer and as a whole."""
    total = total_of(measurement)
    table = FittedTable(
        rows_of(measurement, view), _columns(total), lambda r: "dim" if r.group else None, total
    )
    dim = [*latency_conditions(measurement), *(f"note: {n}" for n in measurement.notes)]
    if measurement.failure is not None:
        dim.append("partial: what follows the failure is not in these numbers")
    return Group(
        Text(), Text(title(name, measurement), style="bold"), Text(), table, Text(),
        *(Text(line) for line in sentences(measurement)),
        *(Text(line, style="dim") for line in dim),
    )  # fmt: skip


def title(name: str, measurement: Measurement) -> str:
    """The network, and the inputs that it was counted on."""
    number = measurement.images
    first = 0 if number is None else 1
    shapes = ", ".join(
        "×".join(map(str, s[first:])) or "one number" for s in measurement.input_shapes
    )
    many = "" if number in (None, 1) else f"{images(number)} of "
    return f"{name}, {many}{shapes}" if shapes else name


def _columns(total: LayerRow) -> list[Column[LayerRow]]:
    def part(value: float | None, whole: float | None) -> str:
        return share(value, whole) if value is not None and whole else NONE

    return [
        Column("layer", lambda r: "  " * r.level + r.label),
        Column("kind", lambda r: r.kind, 6, left=True),
        Column("output", lambda r: shape(r.output_shape) if r.kind else "", 5),
        Column("MACs", lambda r: count(r.macs) if r.macs else NONE),
        Column("share", lambda r: part(r.macs, total.macs) if r.macs else NONE, 3),
        Column("params", lambda r: count(r.params) if r.params else NONE, 1),
        Column("written", lambda r: size(r.activation_bytes) if r.activation_bytes else NONE, 4),
        Column("time", lambda r: NONE if r.milliseconds is None else milliseconds(r.milliseconds)),
        Column("share", lambda r: part(r.milliseconds, total.milliseconds), 2),
        Column(
            "bound by", lambda r: NONE if r.placement is None else r.placement.bound, 8, left=True
        ),
        Column("reaches", lambda r: NONE if r.placement is None else _reached(r), 7),
    ]


def _reached(row: LayerRow) -> str:
    assert row.placement is not None
    return f"{100 * row.placement.fraction:.0f} %"


def shape(output: tuple[int, ...] | None) -> str:
    """One image's shape, without the batch."""
    return NONE if not output else "×".join(map(str, output[1:]))


def sentences(measurement: Measurement) -> list[str]:
    """Memory, latency, the machine's limits, and what was not counted."""
    found = [*memory_sentences(measurement), *latency_sentences(measurement)]
    if measurement.placement is not None and measurement.machine is not None:
        machine = measurement.machine
        found.append(
            f"This machine: {machine.macs_per_second / 1e9:.3g} GMACs/s and "
            f"{machine.bytes_per_second / 1e9:.3g} GB/s at best; the whole network is "
            f"{placement_words(measurement.placement)}."
        )
        if machine.busy:
            found.append(
                "These limits were measured while other work ran: they are not kept, and measured "
                "anew the next time."
            )
        found += _bounds(measurement)
    return [*found, counted_sentence(measurement)]


def memory_sentences(measurement: Measurement) -> list[str]:
    """Both peaks, and what takes most."""
    memory = measurement.memory
    if memory is None:
        return []
    said = [f"Peak memory of inference{batch(measurement)}: {_peak(memory.inference)}."]
    if memory.training is not None:
        said.append(f"Of a training step without its optimizer: {_peak(memory.training)}.")
    if any(o.name == "aten._safe_softmax" for o in measurement.count.operations):
        said.append("Attention is taken in its plain form, with its matrix of products in memory.")
    return said


def batch(measurement: Measurement) -> str:
    """How many images memory and times are for, behind a comma; nothing where inputs are no images."""
    return "" if measurement.images is None else f", {images(measurement.batch)}"


def _peak(peak: Peak) -> str:
    roles = ("weight", "buffer", "input", "activation", "gradient")
    parts = [(role, peak.of(role)) for role in roles]
    many = ", ".join(f"{size(b)} {_plural(role)}" for role, b in parts if b)
    where = f" in {peak.layer}" if peak.layer else ""
    return f"{size(peak.bytes)} ({many}), reached{where} after {peak.operator}"


def _plural(role: str) -> str:
    return f"{role}s"


def latency_sentences(measurement: Measurement) -> list[str]:
    """Each latency, and where the time of a pass goes."""
    said = [
        f"{_mode(t)}{batch(measurement)}: {milliseconds(t.median_ms)} (quartiles {t.low_ms:.3g}–"
        f"{t.high_ms:.3g} ms, {t.runs} runs)."
        for t in measurement.latency
    ]
    for what, inside in (
        ("a pass", measurement.layer_latency), ("a training step", measurement.training_latency)
    ):  # fmt: skip
        if inside is not None:
            part = share(inside.layers_ms, inside.whole.median_ms)
            said.append(
                f"The layers take {milliseconds(inside.layers_ms)} of {what} ({part}); "
                f"{_rest(inside.rest_ms)} is in none of them."
            )
    return said


def _rest(value: float) -> str:
    return milliseconds(value) if value >= 0 else f"−{milliseconds(-value)}"


def _mode(latency: Latency) -> str:
    name = latency.mode.capitalize()
    return name if "eager" in latency.runtime else f"{name}, {latency.runtime}"


def _bounds(measurement: Measurement) -> list[str]:
    """How the time divides between layers bound by arithmetic and by memory."""
    placed = [layer.placement for layer in measurement.layers.values() if layer.placement]
    whole = sum(p.milliseconds for p in placed)
    if not whole:
        return []
    arithmetic = sum(p.milliseconds for p in placed if p.bound == ARITHMETIC)
    return [
        f"Layers bound by arithmetic take {share(arithmetic, whole)} of the layers' time, those bound "
        f"by memory {share(whole - arithmetic, whole) or '0 %'}."
    ]


def latency_conditions(measurement: Measurement) -> list[str]:
    """How the clock was read."""
    if not measurement.latency:
        return []
    first = measurement.latency[0]
    layout = ", channels-last" if first.channels_last else ""
    return [
        f"Latency: {first.device}, {threads(first.threads)}, {first.dtype}{layout}, medians after "
        f"{first.warmup} runs to warm up."
    ]


def counted_sentence(measurement: Measurement) -> str:
    """What MACs were counted for and what was not."""
    return "; ".join(coverage(measurement.count)) + "."


def operators_table(measurement: Measurement) -> RenderableType:
    """Every kind of operator that ran: how often, its MACs, the elements and bytes that it wrote."""
    found: dict[str, list[int]] = {}
    for operation in measurement.count.operations:
        if operation.view:
            continue
        row = found.setdefault(operation.name, [0] * 5)
        row[0] += 1
        row[1] += operation.macs or 0
        row[2] += operation.bytes_read
        row[3] += operation.bytes_written
        row[4] += sum(prod(t.shape) for t in operation.writes)
    rows = sorted(found.items(), key=lambda item: (-item[1][1], -item[1][3]))
    columns: list[Column[tuple[str, list[int]]]] = [
        Column("operator", lambda r: r[0]),
        Column("runs", lambda r: f"{r[1][0]:,}"),
        Column("MACs", lambda r: count(r[1][1]) if r[1][1] else NONE),
        Column("elements", lambda r: count(r[1][4]), 1),
        Column("read", lambda r: size(r[1][2]), 3),
        Column("written", lambda r: size(r[1][3]), 2),
    ]
    return Group(Text(), FittedTable(rows, columns))


def peaks_table(measurement: Measurement) -> RenderableType:
    """The largest tensors that are alive at each peak, the rest summed."""
    parts: list[RenderableType] = []
    memory = measurement.memory
    for what, peak in (
        ("inference", memory and memory.inference), ("a training step", memory and memory.training)
    ):  # fmt: skip
        if peak is None:
            continue
        columns: list[Column[Alive]] = [
            Column("role", lambda a: a.role),
            Column("layer", lambda a: a.layer, left=True),
            Column("written by", lambda a: a.operator, 2, left=True),
            Column("shape", lambda a: "×".join(map(str, a.shape)), 1),
            Column("type", lambda a: a.dtype, 3),
            Column("bytes", lambda a: size(a.bytes)),
        ]
        rows, rest = peak.alive[:LARGEST], peak.alive[LARGEST:]
        if rest:
            smaller = Alive(f"{len(rest):,} smaller", "", "", (), "", sum(a.bytes for a in rest))
            rows = (*rows, smaller)
        title = Text(f"Alive at the peak of {what}, {size(peak.bytes)}", style="bold")
        parts += [Text(), title, FittedTable(rows, columns)]
    return Group(*parts)
