"""The report as one self-contained HTML file: no network, no font, and it reads without JavaScript."""

from __future__ import annotations

from pathlib import Path

from onebyone.files import write_text
from onebyone.planning import Plan
from onebyone.report.cards import cards, deeper_headline, headline, quality_sentence
from onebyone.report.details import forms_list, layer_table, method
from onebyone.report.insertions import insertion_rows, kinds_list
from onebyone.report.markup import Content, join, tag
from onebyone.report.page import bound, page
from onebyone.report.picture import picture
from onebyone.verification import Verification


def report_html(verification: Verification, plan: Plan) -> str:
    """The page: what became of the network, a picture, a table, what the forms mean, and how.

    Every text is escaped. The page's own policy forbids any request and any script but its own.
    """
    source = str(plan.source["spec"]) if plan.source and plan.source.get("spec") else "a network"
    if plan.insertions:
        return page(
            "deepened.html",
            f"{source}, deepened by onebyone",
            ("report.css",),
            source=source,
            headline=bound(deeper_headline(verification)),
            quality=bound(quality_sentence(verification)),
            cards=cards(verification),
            table=insertion_rows(plan),
            forms=kinds_list(plan),
            method=method(verification, plan),
            notes=_notes((*plan.notes, *verification.notes)),
        )
    return page(
        "report.html",
        f"{source}, slimmed by onebyone",
        ("report.css",),
        ("table.js", "report.js"),
        source=source,
        headline=bound(headline(verification)),
        quality=bound(quality_sentence(verification)),
        cards=cards(verification),
        picture=picture(verification, plan),
        table=layer_table(verification, plan),
        forms=forms_list(plan),
        method=method(verification, plan),
        notes=_notes((*plan.notes, *verification.notes)),
    )


def _notes(notes: tuple[str, ...]) -> Content:
    if not notes:
        return ""
    return join(tag("h3", "Notes"), tag("ul", *(tag("li", n) for n in notes), class_="notes"))


def write_report(path: str | Path, verification: Verification, plan: Plan) -> None:
    """Write the report; the file appears whole or not at all."""
    write_text(path, report_html(verification, plan))
