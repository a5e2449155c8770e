"""What a table of a measurement shows: its layers in order or sorted, the first few, or as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onebyone.errors import OneByOneError
from onebyone.measurement.measuring import LayerMeasurement, Measurement
from onebyone.measurement.roofline import Placement

SORTS = ("order", "macs", "params", "bytes", "time")


@dataclass(frozen=True)
class View:
    """How to look at the layers.

    `every`: those without MACs too; `tree`: with the modules that hold them; `depth`: sums over what
    lies deeper; `sort`: one of `SORTS`; `top`: so many rows, the rest summed.
    """

    sort: str = "order"
    top: int | None = None
    tree: bool = False
    depth: int | None = None
    every: bool = False

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise OneByOneError(f"{self.sort!r} is no order of layers: give {', '.join(SORTS)}")
        for name, value in (("top", self.top), ("depth", self.depth)):
            if value is not None and value < 1:
                raise OneByOneError(f"{name}={value} shows nothing: give 1 or more")


@dataclass(frozen=True)
class LayerRow:
    """A layer, or a sum over several. `level` indents it; `milliseconds` is None where not timed."""

    label: str
    kind: str
    output_shape: tuple[int, ...] | None
    macs: int
    params: int
    weight_bytes: int
    activation_bytes: int
    bytes_moved: int
    milliseconds: float | None
    placement: Placement | None = None
    level: int = 0
    group: bool = False


def rows_of(measurement: Measurement, view: View) -> list[LayerRow]:
    """The rows of the view; what it leaves out is summed in a last one."""
    layers = list(measurement.layers.values())
    if view.tree:
        return _tree(layers, view.depth)
    shown = (
        [_single(layer) for layer in layers] if view.depth is None else _deep(layers, view.depth)
    )
    hidden: list[LayerRow] = []
    if not view.every and view.depth is None:
        hidden = [row for row in shown if not row.macs]
        shown = [row for row in shown if row.macs] or shown
        hidden = hidden if len(shown) + len(hidden) == len(layers) else []
    if view.sort != "order":
        shown.sort(key=lambda row: -_key(row, view.sort))
    if view.top is not None:
        hidden, shown = [*shown[view.top :], *hidden], shown[: view.top]
    if hidden:
        more = "1 other" if len(hidden) == 1 else f"{len(hidden):,} others"
        shown.append(_sum(more, hidden))
    return shown


def total_of(measurement: Measurement) -> LayerRow:
    """The whole network; its time is that of the whole, not the sum of its layers."""
    found = _sum("whole network", [_single(layer) for layer in measurement.layers.values()])
    whole = measurement.layer_latency.whole.median_ms if measurement.layer_latency else None
    return LayerRow(
        found.label, "", None, measurement.macs, measurement.params, measurement.weight_bytes,
        measurement.activation_bytes, found.bytes_moved, whole, measurement.placement,
    )  # fmt: skip


def _key(row: LayerRow, sort: str) -> float:
    return {
        "macs": row.macs, "params": row.params, "bytes": row.bytes_moved,
        "time": row.milliseconds or 0.0,
    }[sort]  # fmt: skip


def _single(layer: LayerMeasurement, level: int = 0, label: str | None = None) -> LayerRow:
    calls = f" ×{layer.calls}" if layer.calls > 1 else ""
    return LayerRow(
        (layer.name or "(the network)" if label is None else label) + calls, layer.kind,
        layer.output_shape, layer.macs, layer.params, layer.weight_bytes, layer.activation_bytes,
        layer.bytes_read + layer.bytes_written, layer.latency and layer.latency.network_ms,
        layer.placement, level,
    )  # fmt: skip


def _sum(label: str, rows: Sequence[LayerRow], level: int = 0) -> LayerRow:
    times = [row.milliseconds for row in rows if row.milliseconds is not None]
    return LayerRow(
        label, "", None, sum(r.macs for r in rows), sum(r.params for r in rows),
        sum(r.weight_bytes for r in rows), sum(r.activation_bytes for r in rows),
        sum(r.bytes_moved for r in rows), sum(times) if times else None, None, level, True,
    )  # fmt: skip


def _deep(layers: Iterable[LayerMeasurement], depth: int) -> list[LayerRow]:
    """Layers summed by the first `depth` parts of their names."""
    groups: dict[str, list[LayerMeasurement]] = {}
    for layer in layers:
        groups.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
    return [
        _single(found[0])
        if len(found) == 1 and found[0].name == name
        else _sum(name or "(the network)", [_single(layer) for layer in found])
        for name, found in groups.items()
    ]


def _tree(layers: Sequence[LayerMeasurement], depth: int | None, level: int = 0) -> list[LayerRow]:
    """Modules with what they hold below them, indented, in the order of the first call."""
    groups: dict[str, list[LayerMeasurement]] = {}
    for layer in layers:
        parts = layer.name.split(".")
        groups.setdefault(parts[level] if len(parts) > level else "", []).append(layer)
    rows: list[LayerRow] = []
    for name, found in groups.items():
        own = [layer for layer in found if len(layer.name.split(".")) <= level + 1]
        if len(own) == len(found) or not name:
            rows += [_single(layer, level, name or "(its own)") for layer in own]
            continue
        rows.append(_sum(name, [_single(layer) for layer in found], level))
        if depth is None or level + 1 < depth:
            rows += [_single(layer, level + 1, "(its own)") for layer in own]
            deeper = [layer for layer in found if layer not in own]
            rows += _tree(deeper, depth, level + 1)
    return rows
