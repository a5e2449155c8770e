"""The report of a deepened network as one self-contained HTML file."""

from __future__ import annotations

from onebyone.plans import Plan
from onebyone.report.cards import cards, deeper_headline, quality_sentence
from onebyone.report.details import method, notes_list
from onebyone.report.insertions import insertion_rows, kinds_list
from onebyone.report.markup import join, tag
from onebyone.report.page import Head, bound, page, section, unnamed
from onebyone.verification import Verification


def deepened_html(verification: Verification, plan: Plan) -> str:
    """The page: what the network costs beside its original, what was inserted, where and why.

    Every text is escaped. The page's own policy forbids any request and any script but its own.
    """
    source = str(plan.source["spec"]) if plan.source and plan.source.get("spec") else "a network"
    notes = notes_list((*plan.notes, *verification.notes))
    return page(
        f"{source}, deepened by onebyone",
        Head(
            join("onebyone deepen ", tag("code", source)),
            bound(deeper_headline(verification)),
            bound(quality_sentence(verification)),
        ),
        (
            unnamed("Original and deeper network", cards(verification)),
            section("layers", "What was inserted", insertion_rows(plan)),
            section("forms-title", "What the insertions are", kinds_list(plan)),
            section("method-title", "How it was measured", method(verification, plan), notes),
        ),
        skip=("layers", "the table of insertions"),
    )
