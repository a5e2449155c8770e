"""Two networks layer by layer as JSON-ready values, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from onebyone.diffing import STATUSES, Difference, Match
from onebyone.measurement.counting import Count
from onebyone.report.difference_words import (
    MARKS,
    NONE,
    TOTALS,
    Names,
    cost,
    coverage_lines,
    fold_texts,
    folded,
    headline,
    label,
    parts,
    weights,
    weights_sentence,
    what,
)
from onebyone.report.numbers import ratio
from onebyone.report.words import layer_name
from onebyone.sides import Layer, Side

SCHEMA = "onebyone.diff/1"
COSTS = tuple(quantity for quantity, _, _ in TOTALS)
SIDE = ("name", "kind", "layers", "input_shape", "output_shape", "calls", *COSTS)
FIELDS = (
    "status", "changes", "same_weights", *(f"{f}_{end}" for f in SIDE for end in ("before", "after")),
)  # fmt: skip
HEADS = ("", "layer", "what", "MACs", "parameters", "activations", "weights")


def difference_json(difference: Difference, names: Names = ("before", "after")) -> dict[str, Any]:
    """Everything that was counted and matched; null for a side that a layer does not have.

    MACs, parameters and bytes are whole numbers; shapes are those of the first call. `same_weights`
    is null where weights cannot be compared.
    """
    return {
        "schema": SCHEMA,
        "same": difference.same,
        "before": _count(difference.before, names[0]),
        "after": _count(difference.after, names[1]),
        "statuses": {status: len(difference.of(status)) for status in STATUSES},
        "layers": [
            {
                "status": m.status, "changes": list(m.changes), "same_weights": m.same_weights,
                "before": _side(m.before), "after": _side(m.after),
            }
            for m in difference.matches
        ],
    }  # fmt: skip


def _count(counted: Count, name: str) -> dict[str, Any]:
    return {
        "model": name,
        **{quantity: getattr(counted, quantity) for quantity in COSTS},
        "uncounted_elements": dict(counted.uncounted),
        "unknown_operators": list(counted.unknown),
        "unused_layers": list(counted.unused),
        "notes": list(counted.notes),
    }


def _side(side: Side | None) -> dict[str, Any] | None:
    if side is None:
        return None
    return {
        "name": side.name, "kind": side.kind,
        "input_shape": _listed(side.input_shape), "output_shape": _listed(side.output_shape),
        "calls": side.calls, **{quantity: getattr(side, quantity) for quantity in COSTS},
        "layers": [_layer(layer) for layer in side.layers],
    }  # fmt: skip


def _layer(layer: Layer) -> dict[str, Any]:
    counted = layer.counted
    return {
        "name": counted.name, "kind": counted.kind, "settings": layer.settings,
        "weight_shapes": [list(shape) for shape in layer.weight_shapes],
        "dtypes": list(layer.dtypes),
        "input_shape": _listed(counted.input_shape), "output_shape": _listed(counted.output_shape),
        "calls": counted.calls, **{quantity: getattr(counted, quantity) for quantity in COSTS},
    }  # fmt: skip


def _listed(shape: tuple[int, ...] | None) -> list[int] | None:
    return None if shape is None else list(shape)


def difference_csv(difference: Difference) -> str:
    """One line a match with both sides, fields empty where a network does not have the layer.

    Shapes are `1x64x56x56`; `layers` is how many stand under the name; `changes` are words with
    semicolons between; `same_weights` is true, false or empty.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_line(m) for m in difference.matches)
    return file.getvalue()


def _line(match: Match) -> dict[str, Any]:
    same = "" if match.same_weights is None else str(match.same_weights).lower()
    line = {"status": match.status, "changes": "; ".join(match.changes), "same_weights": same}
    for end, side in (("before", match.before), ("after", match.after)):
        if side is None:
            continue
        values = {field: getattr(side, field) for field in SIDE}
        values["layers"] = len(side.layers)
        for shape in ("input_shape", "output_shape"):
            values[shape] = "x".join(map(str, values[shape] or ()))
        line |= {f"{field}_{end}": value for field, value in values.items()}
    return line


def difference_markdown(
    difference: Difference, names: Names = ("before", "after"), everything: bool = False
) -> str:
    """Two tables that can be pasted into an issue; unchanged layers one by one if asked for."""
    said = [f"{headline(difference)}.", weights_sentence(difference)]
    blocks = [
        f"**{escaped(names[0])} → {escaped(names[1])}**",
        " ".join(escaped(line) for line in said if line),
        _table(("", "before", "after", ""), "-:::", _totals(difference)),
        _table(HEADS, "---:::-", _rows(difference, everything)),
        "\n".join(f"- {escaped(line)}" for line in coverage_lines(difference, names)),
    ]
    return "\n\n".join(blocks) + "\n"


def _totals(difference: Difference) -> list[tuple[str, ...]]:
    found = []
    for quantity, name, spell in TOTALS:
        was, now = getattr(difference.before, quantity), getattr(difference.after, quantity)
        found.append((name, spell(was), spell(now), ratio(now, was)))
    return found


def _rows(difference: Difference, everything: bool) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for run in folded(difference, everything):
        match = run[0]
        if match.status == "unchanged" and not everything:
            rows.append(("", *fold_texts(run), "", "", "", ""))
            continue
        costs = [cost(match, q, spell) for q, _, spell in TOTALS if q != "weight_bytes"]
        name = layer_name(match.name)
        rows.append((MARKS[match.status], name, what(match), *costs, weights(match)))
        for layer in parts(match):
            numbers = [
                spell(getattr(layer.counted, q)) for q, _, spell in TOTALS if q != "weight_bytes"
            ]
            rows.append(("", f"… {layer.counted.name}", label(layer), *numbers, ""))
    return rows


def _table(heads: tuple[str, ...], aligned: str, rows: list[tuple[str, ...]]) -> str:
    rule = "|" + "|".join("---:" if side == ":" else "---" for side in aligned) + "|"
    lines = [_cells(heads), rule, *(_cells(tuple(escaped(c) for c in row)) for row in rows)]
    return "\n".join(lines)


def _cells(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def escaped(text: str) -> str:
    r"""Text that Markdown leaves as it is, on one line.

    >>> print(escaped("conv_1|<b>*"))
    conv\_1\|\<b\>\*
    """
    if text in ("~", "=", "+", NONE):
        return text
    return re.sub(r"([\\`*_{}\[\]<>#|~@])", r"\\\1", " ".join(text.split()))
