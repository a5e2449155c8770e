"""Two networks layer by layer: a table that fits the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onebyone.diffing import Difference
from onebyone.report.difference_words import (
    ARROW,
    MARKS,
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
from onebyone.report.numbers import count, ratio, size
from onebyone.report.text import broken
from onebyone.report.words import layer_name

GAP = 2
ROOM, LEAST_ROOM = (30, 36), (16, 18)  # cells for names and for what became of them
STYLES = {
    "unchanged": "dim", "changed": "yellow", "renamed": "cyan", "added": "green", "removed": "red",
}  # fmt: skip
HEADS = ("", "layer", "what", "MACs", "params", "activations", "weights")
NAME, WHAT = 1, 2  # columns


def difference_table(
    difference: Difference, names: Names = ("before", "after"), everything: bool = False
) -> RenderableType:
    """Totals, every layer that differs (or all), and what was counted; fits the terminal."""
    said = [f"{headline(difference)}.", weights_sentence(difference)]
    return Group(
        Text(), Text(f"{names[0]} → {names[1]}", style="bold"),
        *(Text(line) for line in said if line), Text(), _totals(difference), Text(),
        _Table(difference, everything), Text(),
        *(Text(line, style="dim") for line in coverage_lines(difference, names)),
    )  # fmt: skip


def _new_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))


def _totals(difference: Difference) -> Table:
    table = _new_table()
    table.add_column("", no_wrap=True)
    for name in ("before", "after", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for quantity, name, spell in TOTALS:
        was, now = getattr(difference.before, quantity), getattr(difference.after, quantity)
        table.add_row(name, spell(was), spell(now), ratio(now, was))
    return table


@dataclass(frozen=True)
class _Row:
    """The cells: mark, layer, what, then numbers."""

    cells: tuple[str, ...]
    style: str | None

    def stacked(self) -> _Row:
        """With numbers before and after below one another."""
        first, numbers = self.cells[: WHAT + 1], self.cells[WHAT + 1 :]
        return _Row((*first, *(n.replace(ARROW, " →\n") for n in numbers)), self.style)


def _rows(difference: Difference, everything: bool) -> Iterator[_Row]:
    for run in folded(difference, everything):
        match = run[0]
        if match.status == "unchanged" and not everything:
            yield _Row(("", *fold_texts(run), "", "", "", ""), "dim")
            continue
        numbers = [cost(match, q, spell) for q, _, spell in TOTALS if q != "weight_bytes"]
        cells = (MARKS[match.status], layer_name(match.name), what(match), *numbers)
        yield _Row((*cells, weights(match)), STYLES[match.status])
        for layer in parts(match):
            counted = layer.counted
            name = "  " + layer_name(counted.name.removeprefix(f"{match.name}."))
            numbers = [count(counted.macs), count(counted.params), size(counted.activation_bytes)]
            yield _Row(("", name, label(layer), *numbers, ""), "dim")


@dataclass(frozen=True)
class _Table:
    """The table at whatever width there is.

    Where it is too wide, whether weights are equal is left out, then activations; then numbers before
    and after stand below one another, and at last what became of a layer below its name.
    """

    difference: Difference
    everything: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        rows, width = list(_rows(self.difference, self.everything)), options.max_width
        columns = [c for c in range(len(HEADS)) if c < 6 or any(r.cells[c] for r in rows)]
        for dropped in (6, 5):
            if dropped in columns and not _fits(rows, columns, ROOM, width):
                columns.remove(dropped)
        if not _fits(rows, columns, LEAST_ROOM, width):
            rows = [row.stacked() for row in rows]
            if not _fits(rows, columns, LEAST_ROOM, width):
                columns.remove(WHAT)
        yield _drawn(rows, columns, width)


def _widths(rows: list[_Row]) -> list[int]:
    return [
        max(cell_len(line) for text in (head, *(r.cells[c] for r in rows)) for line in text.split("\n"))
        for c, head in enumerate(HEADS)
    ]  # fmt: skip


def _fits(rows: list[_Row], columns: list[int], room: tuple[int, int], width: int) -> bool:
    widths = _widths(rows)
    widths[NAME], widths[WHAT] = min(widths[NAME], room[0]), min(widths[WHAT], room[1])
    return sum(widths[c] + GAP for c in columns) - GAP <= width


def _drawn(rows: list[_Row], columns: list[int], width: int) -> Table:
    widths, together = _widths(rows), WHAT not in columns
    room = width - sum(widths[c] + GAP for c in columns if c not in (NAME, WHAT))
    if together:
        widths[NAME] = max(LEAST_ROOM[0], min(room, max(widths[NAME], widths[WHAT] + GAP)))
    elif widths[NAME] + GAP + widths[WHAT] > room:
        widths[NAME] = min(widths[NAME], max(LEAST_ROOM[0], (room - GAP) * 45 // 100))
        widths[WHAT] = room - GAP - widths[NAME]
    table = _new_table()
    for c in columns:
        table.add_column(
            HEADS[c], justify="right" if WHAT < c < 6 else "left", no_wrap=c > WHAT, overflow="fold",
            width=widths[c] if c in (NAME, WHAT) else None,
        )  # fmt: skip
    for row in rows:
        first: RenderableType = Text(broken(row.cells[NAME], widths[NAME]))
        if together and row.cells[WHAT]:
            first = Group(first, Padding(Text(row.cells[WHAT], style="dim"), (0, 0, 0, 2)))
        cells = [first if c == NAME else Text(row.cells[c]) for c in columns]
        table.add_row(*cells, style=row.style)
    return table
