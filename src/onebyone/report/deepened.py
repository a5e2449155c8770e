"""The report of a deepened network as one self-contained HTML file."""

from __future__ import annotations

from onebyone.planning import Plan
from onebyone.report.cards import cards, deeper_headline, quality_sentence
from onebyone.report.details import method, notes_list
from onebyone.report.insertions import insertion_rows, kinds_list
from onebyone.report.page import bound, page
from onebyone.verification import Verification


def deepened_html(verification: Verification, plan: Plan) -> str:
    """The page: what the network costs beside its original, what was inserted, where and why.

    Every text is escaped. The page's own policy forbids any request and any script but its own.
    """
    source = str(plan.source["spec"]) if plan.source and plan.source.get("spec") else "a network"
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
        notes=notes_list((*plan.notes, *verification.notes)),
    )
