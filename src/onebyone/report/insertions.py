"""What was inserted, where, at what cost and why: rows that the terminal and the page share."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onebyone.deepening.insertions import INSERTIONS, Insertion
from onebyone.errors import listed, said_of
from onebyone.plans import Plan
from onebyone.report.markup import Content, Markup, join, tag
from onebyone.report.numbers import count, ratio, small
from onebyone.report.words import layer_name

HEADS = ("behind", "inserted", "channels", "MACs", "params", "score")
NONE = "–"
LONG = 24  # characters of a name that the page keeps on one line


def chain(insertion: Insertion) -> str:
    """The block with its channels: `64→32→32→64 1×1 3×3 1×1`, `64→64 1×1`, or `64 slopes`."""
    if insertion.kind == "prelu":
        return f"{insertion.channels} slopes"
    convs = insertion.convs
    channels = "→".join(map(str, (convs[0].c_in, *(conv.c_out for conv in convs))))
    kernels = " ".join("×".join(map(str, conv.kernel)) or "linear" for conv in convs)
    return f"{channels} {kernels}"


def _made(plan: Plan) -> list[Insertion]:
    return [i for i in plan.insertions if not i.refused]


def _cells(insertion: Insertion) -> tuple[str, ...]:
    score = NONE if insertion.score is None else small(max(insertion.score, 0.0))
    return (
        layer_name(insertion.place), INSERTIONS[insertion.kind].title, chain(insertion),
        count(insertion.macs), count(insertion.params), score,
    )  # fmt: skip


def _added(plan: Plan) -> tuple[str, ...]:
    made = _made(plan)
    return (
        "all of them", "", "", count(sum(i.macs for i in made)),
        count(sum(i.params for i in made)), "",
    )  # fmt: skip


def cost_sentence(plan: Plan) -> str:
    """The cost before and after, as parts of the reference's where that is known."""
    parts = []
    for word, before, after, index in (
        ("MACs", plan.macs_before, plan.macs_after, 0),
        ("parameters", plan.params_before, plan.params_after, 1),
    ):
        whole = plan.reference[index] if plan.reference else 0
        of = f" ({ratio(after, whole)} of the original's {count(whole)})" if whole else ""
        parts.append(f"{word} {count(before)} → {count(after)}{of}")
    return "; ".join(parts)


def why_not(plan: Plan) -> list[tuple[str, str]]:
    """(places, reason) of what was not inserted, each reason once."""
    found: dict[str, list[str]] = {}
    for insertion in plan.insertions:
        if insertion.refused:
            found.setdefault(insertion.reason, []).append(layer_name(insertion.place))
    lines = []
    for reason, places in found.items():
        once = [*dict.fromkeys(places)]
        lines.append((listed(once), said_of(once, reason)))
    return lines


def insertion_table(plan: Plan) -> RenderableType:
    """Every insertion, what they cost together, and why others were left out."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for index, head in enumerate(HEADS):
        table.add_column(
            head, justify="right" if index > 2 else "left", no_wrap=index > 2, overflow="fold"
        )
    for insertion in _made(plan):
        table.add_row(*map(Text, _cells(insertion)))
    table.add_section()
    table.add_row(*_added(plan), style="bold")
    lines = [Text(cost_sentence(plan))]
    lines += [Text(f"not at {places}: {reason}", style="dim") for places, reason in why_not(plan)]
    return Group(Text(), table, Text(), *lines)


def insertion_rows(plan: Plan) -> Markup:
    """The same table for the page."""
    kinds = ("name", "", "geometry", "number", "number", "number")
    heads = [
        tag("th", head, scope="col", class_=kind or None)
        for head, kind in zip(HEADS, kinds, strict=True)
    ]
    longest = max((len(layer_name(i.place)) for i in _made(plan)), default=0)
    table = tag(
        "table",
        tag("caption", "Every insertion in the order that data reaches it", class_="sr"),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *(_row(_cells(i), kinds, i.reason) for i in _made(plan))),
        tag("tfoot", _row(_added(plan), kinds)),
        style=f"--name:{min(longest, LONG) * 0.62 + 1.8:g}em",
    )
    around = tag(
        "div", table, class_="scroll", tabindex="0", role="region", aria_label="Table of insertions"
    )
    return join(tag("p", cost_sentence(plan)), around, _left_out(plan))


def _row(cells: tuple[str, ...], kinds: tuple[str, ...], reason: str = "") -> Markup:
    made: list[Content] = []
    for index, (cell, kind) in enumerate(zip(cells, kinds, strict=True)):
        if index == 0:
            made.append(tag("th", cell, scope="row", class_=kind))
        elif index == 1 and reason:
            made.append(tag("td", cell, tag("small", reason), class_="why"))
        else:
            made.append(tag("td", cell, class_=kind or None))
    return tag("tr", *made)


def _left_out(plan: Plan) -> Markup:
    lines = why_not(plan)
    if not lines:
        return Markup("")
    items = [tag("li", tag("strong", places), f": {reason}") for places, reason in lines]
    return tag("div", tag("h3", "Not inserted"), tag("ul", *items, class_="notes"), class_="left")


def kinds_list(plan: Plan) -> Markup:
    """Each kind of insertion that occurs: what it is, and where it comes from."""
    used = [name for name in INSERTIONS if any(i.kind == name for i in _made(plan))]
    items = []
    for name in used:
        kind = INSERTIONS[name]
        many = sum(i.kind == name for i in _made(plan))
        title = tag("h3", kind.title, tag("small", f"{many} inserted"))
        said = tag("p", f"{kind.says[0].upper()}{kind.says[1:]}.")
        items.append(tag("li", title, said, tag("p", tag("cite", kind.paper), class_="paper")))
    return tag("ul", *items, class_="forms")
