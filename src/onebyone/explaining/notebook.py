"""Results in a notebook: each kind's page in a sandboxed frame, and its tables as plain text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType

from onebyone.comparison import Comparison
from onebyone.diffing import Difference
from onebyone.explaining.explaining import Explanation
from onebyone.explaining.report import report_html
from onebyone.measurement.measuring import Measurement
from onebyone.plans import Plan
from onebyone.report import plan_table, summary
from onebyone.report.cards import cards, headline, quality_sentence
from onebyone.report.comparison import comparison_table
from onebyone.report.comparison_page import comparison_html
from onebyone.report.details import forms_list, layer_table, notes_list
from onebyone.report.difference import difference_table
from onebyone.report.difference_page import difference_html
from onebyone.report.measurement import measurement_table
from onebyone.report.measurement_page import measurement_html
from onebyone.report.measurement_rows import View
from onebyone.report.numbers import share, small
from onebyone.report.page import Head, bound, page, section, unnamed
from onebyone.report.picture import picture
from onebyone.slimming import Slimmed
from onebyone.verification import Verification

WIDTH = 100  # characters of plain text
NAME = "the network"
# Nothing of the page reaches the notebook: it has an origin of its own, and may only save its tables.
SANDBOX = "allow-scripts allow-downloads"


@dataclass(frozen=True)
class Kind:
    """How one kind of result is shown: as a page of this height in pixels, and as text."""

    html: Callable[[Any], str]
    text: Callable[[Any], RenderableType]
    height: int = 620


def framed(result: object) -> str:
    """The result's page in a frame without any right on what is around it."""
    kind = KINDS[type(result)]
    page = escape(kind.html(result))
    label = f"onebyone: {type(result).__name__}"
    return (
        f'<iframe sandbox="{SANDBOX}" srcdoc="{page}" title="{label}" loading="lazy" '
        f'style="width:100%;height:{kind.height}px;border:1px solid #8884;border-radius:8px"></iframe>'
    )


def plain(result: object) -> str:
    """The result's tables as text, 100 characters wide."""
    file = StringIO()
    # In a notebook rich would show it by itself, in colors, and leave the file empty.
    Console(
        file=file,
        width=WIDTH,
        highlight=False,
        force_jupyter=False,
        no_color=True,
        force_terminal=False,
    ).print(KINDS[type(result)].text(result))
    return "\n".join(line.rstrip() for line in file.getvalue().strip("\n").splitlines())


def plan_html(plan: Plan) -> str:
    """A plan before it is carried out: its picture, its table, and what its forms mean."""
    kept = (
        f"{share(plan.macs_after, plan.macs_before) or '100 %'} of the MACs and "
        f"{share(plan.params_after, plan.params_before) or '100 %'} of the parameters would be left"
    )
    lede = f"The loss is predicted to rise by {small(plan.error)} nats per image; nothing is changed yet."
    return page(
        kept,
        Head("onebyone plan", bound(kept), bound(lede)),
        (
            unnamed("Before and after", picture(plan, {})),
            section("layers", "Layer by layer", layer_table(plan, {})),
            section("forms-title", "What the forms mean", forms_list(plan)),
        ),
        scripts=("table.js",),
    )


def verification_html(verification: Verification) -> str:
    """What is left of the cost, what that cost in quality, and the numbers before and after."""
    found = headline(verification)
    return page(
        found,
        Head("onebyone verify", bound(found), bound(quality_sentence(verification))),
        (unnamed("Before and after", cards(verification), notes_list(verification.notes)),),
    )


def _slimmed_text(slimmed: Slimmed) -> RenderableType:
    return summary(slimmed.verification, slimmed.plan)


KINDS: dict[type, Kind] = {
    Measurement: Kind(
        lambda m: measurement_html(NAME, m), lambda m: measurement_table(NAME, m, View())
    ),
    Comparison: Kind(comparison_html, comparison_table),
    Difference: Kind(difference_html, difference_table),
    Plan: Kind(plan_html, plan_table),
    Verification: Kind(verification_html, summary, 560),
    Slimmed: Kind(lambda s: report_html(s.verification, s.plan, s.insight), _slimmed_text, 780),
    Explanation: Kind(
        lambda e: e.html, lambda e: "the interactive page: open it with .save('page.html')", 860
    ),
}
