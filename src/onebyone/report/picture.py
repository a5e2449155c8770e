"""The picture: the whole network as two strips, and every layer as a pair of bars, to scale."""

from __future__ import annotations

from math import ceil

from onebyone.forms import FORMS
from onebyone.plans import Decision, Plan
from onebyone.report.markup import Markup, join, tag
from onebyone.report.numbers import becomes, count, ratio, share, small
from onebyone.report.words import UNCHANGED, chain, form_title, geometry, layer_name

MANY, VERY_MANY = 24, 120  # layers from which rows get smaller and stand in columns
GAPS = 80  # layers up to which the strips show where one ends
QUANTITIES = (("m", "MACs"), ("p", "parameters"))


def picture(plan: Plan, errors: dict[str, float]) -> Markup:
    """Strips, legend and bars; two radio buttons choose between MACs and parameters, in CSS alone.

    errors: the measured ones, by layer, where there are any.
    """
    choices = [
        join(
            tag("input", type="radio", name="quantity", id=f"by-{key}",
                checked="" if key == "m" else None),
            tag("label", label, for_=f"by-{key}"),
        )
        for key, label in QUANTITIES
    ]  # fmt: skip
    return tag(
        "div", *choices, _legend(plan), _strips(plan), _rows(plan, errors),
        tag("div", class_="balloon", id="balloon", aria_live="polite", hidden=""),
        class_="picture",
    )  # fmt: skip


def used_forms(plan: Plan) -> list[str]:
    """The forms that occur, in the order of the table, refused last."""
    present = {d.form for d in plan.decisions}
    return [f for f in (*FORMS, "refuse") if f in present]


def _legend(plan: Plan) -> Markup:
    entries = [("before", "before")]
    entries += [(f"after {form}", form_title(form)) for form in used_forms(plan)]
    if any(d.ranks and d.conv and not d.conv.pointwise for d in plan.decisions):
        entries.append(("after one", "paler: 1×1 parts that were added"))
    if plan.other_macs or plan.other_params:
        entries.append(("after other", "everything else"))
    swatches = [tag("li", tag("i", class_=kind), title) for kind, title in entries]
    return tag("ul", *swatches, class_="legend")


def costs(decision: Decision) -> tuple[tuple[int, int], tuple[int, int]]:
    """(MACs, parameters) before and after."""
    return (
        (decision.macs_before, decision.params_before),
        (decision.macs_after, decision.params_after),
    )


def _strips(plan: Plan) -> Markup:
    """All layers in a row, before and after; what is missing at the end is what was saved."""
    whole, left = (plan.macs_before, plan.params_before), (plan.macs_after, plan.params_after)
    other = (plan.other_macs, plan.other_params)
    layers = [(str(index), d) for index, d in enumerate(plan.decisions)]
    before = [_piece(costs(d)[0], whole, "before", index) for index, d in layers]
    after = [_piece(costs(d)[1], whole, f"after {d.form}", index) for index, d in layers]
    return tag(
        "div",
        _caption("before", whole, ("", "")),
        _strip(*before, _piece(other, whole, "before other")),
        _caption("after", left, tuple(map(share, left, whole))),
        _strip(*after, _piece(other, whole, "after other")),
        class_="strips gaps" if len(layers) <= GAPS else "strips",
    )


def _caption(side: str, totals: tuple[int, ...], shares: tuple[str, ...]) -> Markup:
    said = [
        tag("span", f"{side}: {count(total)} {name}" + (f", {part}" if part else ""), class_=key)
        for (key, name), total, part in zip(QUANTITIES, totals, shares, strict=True)
    ]
    return tag("p", *said)


def _strip(*pieces: Markup) -> Markup:
    return tag("div", *pieces, class_="strip", aria_hidden="true")


def _piece(
    cost: tuple[int, int], wholes: tuple[int, int], kind: str, index: str | None = None
) -> Markup:
    """A bar: its share of the whole in MACs and in parameters, as CSS variables; none for nothing."""
    if not any(cost):
        return Markup()
    m, p = (100 * part / whole if whole else 0 for part, whole in zip(cost, wholes, strict=True))
    return tag("i", class_=kind, style=f"--m:{m:.3f}%;--p:{p:.3f}%", data_layer=index)


def _rows(plan: Plan, errors: dict[str, float]) -> Markup:
    number = len(plan.decisions)
    columns = 1 if number <= MANY else 2 if number <= VERY_MANY else 3
    scale = (
        max((max(d.macs_before, d.macs_after) for d in plan.decisions), default=0),
        max((max(d.params_before, d.params_after) for d in plan.decisions), default=0),
    )
    rows = [_row(i, d, scale, errors) for i, d in enumerate(plan.decisions)]
    longest = max((len(layer_name(d.layer)) for d in plan.decisions), default=0)
    style = f"--rows2:{ceil(number / 2)};--rows3:{ceil(number / 3)};--name:{min(longest, 30)}ch"
    return tag("ol", *rows, class_=f"rows columns{columns}", style=style)


def _row(
    index: int, decision: Decision, scale: tuple[int, int], errors: dict[str, float]
) -> Markup:
    name = tag("a", tag("bdi", layer_name(decision.layer)), href=f"#layer-{index}")
    before, after = costs(decision)
    values = [
        tag("span", _change(was, now) if decision.conv else "not counted", class_=key)
        for (key, _), was, now in zip(QUANTITIES, before, after, strict=True)
    ]
    bars = tag(
        "span",
        tag("span", _piece(before, scale, "before")),
        tag("span", *_parts(decision, scale)),
        class_="pair", aria_hidden="true",
    )  # fmt: skip
    tip = tag("span", *_details(decision, errors), class_="tip", hidden="")
    return tag("li", name, bars, tag("span", *values, class_="values"), tip, data_layer=str(index))


def _change(before: int, after: int) -> str:
    return count(before) if before == after else f"{count(before)} → {count(after)}"


def _parts(decision: Decision, scale: tuple[int, int]) -> list[Markup]:
    """What stands in the layer's place, piece by piece."""
    if decision.conv is None:
        return []
    if decision.form in UNCHANGED:
        return [_piece(costs(decision)[1], scale, f"after {decision.form}")]
    assert decision.shaped is not None
    parts = FORMS[decision.form].parts(decision.shaped, decision.ranks)
    pieces = []
    for part in parts:
        added = part.conv.pointwise and not decision.conv.pointwise
        kind = f"after {decision.form}" + (" one" if added else "")
        pieces.append(_piece((part.macs(decision.places), part.conv.params), scale, kind))
    return pieces


def _details(decision: Decision, errors: dict[str, float]) -> list[Markup]:
    """One layer in full, line by line, for the balloon at the pointer."""
    title = tag("span", form_title(decision.form), class_=f"form {decision.form}")
    lines = [tag("b", layer_name(decision.layer))]
    if decision.conv is not None:
        lines.append(tag("span", "was ", geometry(decision)))
    lines.append(tag("span", title, " ", chain(decision) if becomes(decision) else None))
    if decision.conv is not None:
        for (_, label), was, now in zip(QUANTITIES, *costs(decision), strict=True):
            factor = f", {ratio(now, was)}" if was != now else ""
            lines.append(tag("span", f"{label} {_change(was, now)}{factor}"))
    if decision.form not in UNCHANGED:
        lines.append(tag("span", f"predicted rise of the loss {small(decision.error)} nats"))
    if decision.layer in errors:
        lines.append(tag("span", f"measured error of its output {small(errors[decision.layer])}"))
    if decision.reason:
        lines.append(tag("span", decision.reason))
    return lines
