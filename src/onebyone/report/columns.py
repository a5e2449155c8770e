"""A table for a terminal at whatever width there is: columns that matter least are left out first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

Row = TypeVar("Row")
GAP = 2
NONE = "–"


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column; where there is no room, those with the highest `dropped` go first, 0 never.

    `legend` says below the table what the column holds, where it is there.
    """

    head: str
    cell: Callable[[Row], str]
    dropped: int = 0
    left: bool = False
    legend: str = ""


@dataclass(frozen=True)
class FittedTable(Generic[Row]):
    """Rows in the columns that fit, without those that say nothing; the first is folded if it must.

    `style` says how a row looks; `total` is a last row of its own; `below` are sentences after the
    table, behind the legends of the columns that are there.
    """

    rows: Sequence[Row]
    columns: Sequence[Column[Row]]
    style: Callable[[Row], str | None] = lambda row: None
    total: Row | None = None
    below: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        every = [*self.rows, *([] if self.total is None else [self.total])]
        columns = [c for c in self.columns if any(c.cell(row) not in ("", NONE) for row in every)]
        while _width(columns, every) > options.max_width and any(c.dropped for c in columns):
            columns.remove(max(columns, key=lambda c: c.dropped))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        for index, column in enumerate(columns):
            left = index == 0 or column.left
            table.add_column(
                Text(column.head),
                justify="left" if left else "right",
                no_wrap=index > 0,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(Text(c.cell(row)) for c in columns), style=self.style(row))
        if self.total is not None:
            table.add_section()
            table.add_row(*(Text(c.cell(self.total)) for c in columns), style="bold")
        yield table
        lines = [*(c.legend for c in columns if c.legend), *self.below]
        yield from (Text(line, style="dim") for line in ("", *lines) if lines)


def _width(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> int:
    widest = (max(map(cell_len, (c.head, *(c.cell(row) for row in rows)))) for c in columns)
    return sum(widest) + GAP * (len(columns) - 1)
