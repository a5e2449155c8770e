"""Two networks layer by layer as one self-contained HTML file, filtered without a script."""

from __future__ import annotations

from collections.abc import Callable

from onebyone.diffing import STATUSES, Difference, Match
from onebyone.report.cards import card
from onebyone.report.difference_words import (
    ARROW,
    MARKS,
    NONE,
    TOTALS,
    Names,
    cost,
    fold_texts,
    folded,
    headline,
    label,
    parts,
    shape_text,
    told,
    weights,
    weights_sentence,
    what,
)
from onebyone.report.markup import Content, Markup, join, tag
from onebyone.report.numbers import count, ratio, size
from onebyone.report.page import Head, page, section, unnamed
from onebyone.report.words import layer_name
from onebyone.sides import Layer, Side

BARS: tuple[tuple[str, str, Callable[[int], str]], ...] = TOTALS[:2]
CARDS = {
    "macs": "MACs", "params": "Parameters", "weight_bytes": "Weights",
    "activation_bytes": "Activations",
}  # fmt: skip


def difference_html(difference: Difference, names: Names = ("before", "after")) -> str:
    """The page: what became of the layers, totals, every layer with bars, and what was counted.

    Every text is escaped. The page's own policy forbids any request and any script.
    """
    lede = weights_sentence(difference) or "Weights were not compared."
    return page(
        f"{names[0]} and {names[1]}: onebyone diff",
        Head(
            join("onebyone diff ", tag("code", names[0]), " ", tag("code", names[1])),
            headline(difference),
            lede,
        ),
        (
            unnamed("Before and after", _cards(difference)),
            section("layers-title", "Layer by layer", _layers(difference)),
            section("method-title", "What the numbers mean", _method(difference, names)),
        ),
        styles=("report.css", "difference.css"),
        skip=("layers-title", "the layers"),
    )


def _cards(difference: Difference) -> Markup:
    found = [
        card(CARDS[q], getattr(difference.before, q), getattr(difference.after, q), spell)
        for q, _, spell in TOTALS
    ]
    return tag("ul", *found, class_="cards of4")


def _layers(difference: Difference) -> Markup:
    """Radio buttons, and a row a layer: CSS hides the rows that are not chosen."""
    found = {status: len(difference.of(status)) for status in STATUSES}
    differing = len(difference.matches) - found["unchanged"]
    choices = [("all", f"all {len(difference.matches):,}", True)]
    choices += [(status, f"{n:,} {status}", False) for status, n in found.items() if n]
    if 0 < differing < len(difference.matches):
        choices[0] = ("all", f"all {len(difference.matches):,}", False)
        choices.insert(0, ("differing", f"{differing:,} that differ", True))
    scale = {q: max([1, *(_most(m, q) for m in difference.matches)]) for q, _, _ in BARS}
    compared = any(m.same_weights is not None for m in difference.matches)
    names = ("layer", *(n for _, n, _ in BARS), "activations", *(["weights"] if compared else []))
    heads = tag("li", *(tag("span", n) for n in names), class_="heads", aria_hidden="true")
    rows: list[Content] = [heads]
    for run in folded(difference, everything=False):
        if run[0].status == "unchanged":
            rows.append(tag("li", ", ".join(t for t in fold_texts(run) if t), class_="fold"))
        rows += [_row(match, scale, compared) for match in run]
    kind = "difference" if compared else "difference costs"
    return tag("div", *(_choice(*c) for c in choices), tag("ol", *rows), class_=kind)


def _choice(key: str, said: str, checked: bool) -> Markup:
    button = tag(
        "input", type="radio", name="show", id=f"show-{key}", checked="" if checked else None
    )
    return join(button, tag("label", said, for_=f"show-{key}"))


def _most(match: Match, quantity: str) -> int:
    return max(getattr(s, quantity) if s else 0 for s in (match.before, match.after))


def _row(match: Match, scale: dict[str, int], compared: bool) -> Markup:
    mark = tag("b", MARKS[match.status], class_="mark", aria_hidden="true")
    inside = parts(match)
    name = tag(
        "span",
        tag("span", mark, *_breakable(layer_name(match.name)), class_="name"),
        tag("span", match.status, class_="sr"),
        tag("span", what(match, shapes=False), class_="what"),
        tag("small", *_shapes(match)),
        _parts(match.name, inside) if inside else None,
        class_="layer",
    )
    return tag(
        "li", name, *(_bars(match, scale, *bar) for bar in BARS),
        _value("activations", cost(match, "activation_bytes", size)),
        _value("weights", weights(match) or NONE) if compared else None,
        class_=match.status,
    )  # fmt: skip


def _value(name: str, said: str, more: Markup | None = None) -> Markup:
    """With its column's name for narrow screens, where what says nothing is left out."""
    kind = "value nothing" if said == NONE else "value"
    return tag("span", tag("i", name), tag("span", _bound(said)), more, class_=kind)


def _bound(said: str) -> str:
    """With numbers and their units on one line."""
    return ARROW.join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in said.split(ARROW))


def _breakable(name: str) -> list[Content]:
    """A name with places to break it behind its dots."""
    found: list[Content] = []
    for part in name.split("."):
        found += [".", tag("wbr")] if found else []
        found.append(part)
    return found


def _shapes(match: Match) -> list[Content]:
    """Input and output, and what they were."""
    before, after = (_ends(side) for side in (match.before, match.after))
    if match.before and match.after and before != after:
        return [f"{after}, was ", tag("span", before)]
    return [after or before]


def _ends(side: Side | None) -> str:
    if side is None or (side.input_shape is None and side.output_shape is None):
        return ""
    return f"{shape_text(side.input_shape)} → {shape_text(side.output_shape)}"


def _parts(group: str, layers: tuple[Layer, ...]) -> Markup:
    """The layers of a group, to open."""
    rows = [
        tag(
            "li", tag("b", layer_name(layer.counted.name.removeprefix(f"{group}."))), " ",
            label(layer), tag("small", f"{count(layer.counted.macs)} MACs, "
            f"{count(layer.counted.params)} parameters"),
        )
        for layer in layers
    ]  # fmt: skip
    return tag("details", tag("summary", f"the {len(layers):,} layers"), tag("ul", *rows))


def _bars(
    match: Match, scale: dict[str, int], quantity: str, name: str, spell: Callable[[int], str]
) -> Markup:
    """Before and after as bars, to the scale of the largest layer."""
    values = [getattr(side, quantity) if side else 0 for side in (match.before, match.after)]
    bars = [
        tag("i", class_=kind, style=f"width:{100 * value / scale[quantity]:.2f}%") if value else ""
        for kind, value in zip(("before", "after"), values, strict=True)
    ]
    both = match.before and match.after and values[0] != values[1]
    factor = tag("b", ratio(values[1], values[0])) if both and values[0] else None
    if not any(values):
        return tag("span", NONE, class_="bar nothing")
    return tag(
        "span",
        _value(name, cost(match, quantity, spell), factor),
        tag("span", *bars, class_="track", aria_hidden="true"),
        class_="bar",
    )


def _method(difference: Difference, names: Names) -> Markup:
    said = [
        f"{name}: {told(counted)}."
        for name, counted in zip(names, (difference.before, difference.after), strict=True)
    ]
    entries: list[tuple[str, Content]] = [
        ("Matched", "By qualified name, kind, weight shapes and order, so that the most of these "
            "agree. Where one network has a layer and the other several under its name, these count "
            "as one changed layer. Renamed: nothing but the name differs."),
        ("MACs", "Multiply–accumulates of convolutions and matrix products in one forward pass, with "
            "the products at padded positions. Bias, normalization and activations are not counted. "
            "One MAC is two FLOPs."),
        ("Weights", "All parameters and buffers, tied ones once. “Same” is equal to the bit, “other” "
            "is not; a dash stands where there are none or their shapes differ."),
        ("Activations", "Bytes that the operators write to memory of their own; an operator that works "
            "in place has none."),
        ("Counted", join(*(tag("span", line, class_="line") for line in said))),
    ]  # fmt: skip
    return tag("dl", *(join(tag("dt", term), tag("dd", line)) for term, line in entries))
