"""What a difference of two networks says, in words that the terminal, the files and the page share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import groupby

from onebyone.diffing import STATUSES, Difference, Match
from onebyone.measurement.counting import Count
from onebyone.report.coverage import coverage
from onebyone.report.numbers import count, size
from onebyone.report.words import layer_name
from onebyone.sides import Layer, Side

NONE, ARROW = "–", " → "
MARKS = {"unchanged": "=", "changed": "~", "renamed": "→", "added": "+", "removed": "−"}
TOTALS: tuple[tuple[str, str, Callable[[int], str]], ...] = (
    ("macs", "MACs", count),
    ("params", "parameters", count),
    ("weight_bytes", "weights", size),
    ("activation_bytes", "activations", size),
)
Names = tuple[str, str]


def many(number: int) -> str:
    """So many layers."""
    return f"{number:,} layer" + "s" * (number != 1)


def headline(difference: Difference) -> str:
    """What became of the layers, in one sentence without its point."""
    found = {status: len(difference.of(status)) for status in STATUSES}
    parts = [f"{number:,} {status}" for status, number in found.items() if number]
    if len(parts) > 1 or not found["unchanged"]:
        most = ", ".join(parts[:-1])
        return (f"{most} and {parts[-1]}" if most else parts[-1] if parts else "No layers") + (
            " layer" if sum(found.values()) == 1 else " layers" if parts else ""
        )
    if found["unchanged"] == 1:
        return "The one layer is the same"
    return f"All {many(found['unchanged'])} are the same"


def weights_sentence(difference: Difference) -> str:
    """In how many layers the values of the weights are equal; empty where none can be compared."""
    told = [m.same_weights for m in difference.matches if m.same_weights is not None]
    if not told:
        return ""
    if len(told) == 1:
        not_ = "" if told[0] else "not "
        return f"Weights: {not_}equal to the bit in the one layer whose weight shapes agree."
    if all(told):
        return f"Weights: equal to the bit in all {many(len(told))} whose weight shapes agree."
    return f"Weights: equal to the bit in {sum(told):,} of {many(len(told))} whose weight shapes agree."


def told(counted: Count) -> str:
    """What was counted of one network, and what there is to say about the count."""
    return "; ".join([*coverage(counted), *counted.notes])


def coverage_lines(difference: Difference, names: Names) -> list[str]:
    """The same of both networks, once where they say the same."""
    both = [told(c) for c in (difference.before, difference.after)]
    if both[0] == both[1]:
        return [f"Both: {both[0]}."]
    return [f"{name}: {said}." for name, said in zip(names, both, strict=True)]


def shape_text(shape: tuple[int, ...] | None) -> str:
    """`1×64×56×56`; a dash where it is not known."""
    return NONE if shape is None else "×".join(map(str, shape)) or "scalar"


def label(side: Side | Layer) -> str:
    """Kind and geometry: `Conv2d 64→64 3×3`, `BatchNorm2d 64`, `3 layers`."""
    if isinstance(side, Side) and len(side.layers) > 1:
        return many(len(side.layers))
    kind = side.kind if isinstance(side, Side) else side.counted.kind
    return f"{kind} {_geometry(side)}".rstrip()


def _geometry(side: Side | Layer) -> str:
    layer = side.layers[0] if isinstance(side, Side) else side
    if layer.geometry or not layer.weight_shapes:
        return layer.geometry
    return "×".join(map(str, layer.weight_shapes[0]))


def what(match: Match, shapes: bool = True) -> str:
    """What became of a layer, or what it is where only one network has it.

    shapes: say how its input and output changed, where nothing else did.
    """
    before, after = match.before, match.after
    if before is None or after is None:
        side = before or after
        return label(side) if side else ""
    said = []
    if label(before) != label(after):
        one = before.kind == after.kind and len(before.layers) == len(after.layers) == 1
        said.append(f"{label(before)}, now {_geometry(after) if one else label(after)}")
    if "settings" in match.changes:
        said += _settings(before, after)
    if "dtype" in match.changes:
        said.append(f"{_dtypes(before)}, now {_dtypes(after)}")
    if "name" in match.changes:
        said.append(f"now {layer_name(after.name)}")
    if not said and "calls" in match.changes:
        said.append(f"{before.calls} call{'s' * (before.calls != 1)}, now {after.calls}")
    if shapes and match.status == "changed" and said in ([], [f"now {layer_name(after.name)}"]):
        said += _shapes(match, before, after)
    return "; ".join(said) or label(before)


def _settings(before: Side, after: Side) -> list[str]:
    """The settings that differ, of a single layer."""
    texts = (before.layers[0].settings, after.layers[0].settings)
    a, b = ([p.strip() for p in re.split(r",(?![^(\[]*[)\]])", text)] for text in texts)
    if a == b:  # it does not say all of them itself
        a, b = before.layers[0].attributes, after.layers[0].attributes
    was, now = ([p for p in x if p not in y] for x, y in ((a, b), (b, a)))
    return [f"{', '.join(was) or 'default'}, now {', '.join(now) or 'default'}"]


def _dtypes(side: Side) -> str:
    return ", ".join(dict.fromkeys(d for layer in side.layers for d in layer.dtypes))


def _shapes(match: Match, before: Side, after: Side) -> list[str]:
    return [
        f"{which} {shape_text(was)}, now {shape_text(now)}"
        for which, was, now in (
            ("input", before.input_shape, after.input_shape),
            ("output", before.output_shape, after.output_shape),
        )
        if which in match.changes
    ][-1:]


def cost(match: Match, quantity: str, spell: Callable[[int], str]) -> str:
    """`118 M → 40.0 M`, `+40.0 M`, `−118 M`, or `118 M` where it stays; a dash for nothing."""
    was, now = (getattr(side, quantity) if side else None for side in (match.before, match.after))
    if was is None or now is None:
        value = was if was is not None else now
        return f"{'−' if now is None else '+'}{spell(value)}" if value else NONE
    return (spell(was) if was else NONE) if was == now else f"{spell(was)}{ARROW}{spell(now)}"


def weights(match: Match) -> str:
    """`same` or `other`, where the weights can be compared."""
    return {True: "same", False: "other", None: ""}[match.same_weights]


def folded(difference: Difference, everything: bool) -> Iterator[tuple[Match, ...]]:
    """The matches one by one, neighbors without a difference together unless all are asked for."""
    for unchanged, run in groupby(difference.matches, lambda m: m.status == "unchanged"):
        if unchanged and not everything:
            yield tuple(run)
        else:
            yield from ((match,) for match in run)


def fold_texts(run: tuple[Match, ...]) -> tuple[str, str]:
    """`… 12 unchanged`, and how many of them have other weights."""
    other = sum(m.same_weights is False for m in run)
    return f"… {len(run):,} unchanged", f"{other:,} with other weights" if other else ""


def parts(match: Match) -> tuple[Layer, ...]:
    """The layers of a group, where a match has one."""
    sides = (match.before, match.after)
    return next((s.layers for s in sides if s and len(s.layers) > 1), ())
