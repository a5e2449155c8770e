"""The report of `slim`: the interactive page, opened on the network before and after."""

from __future__ import annotations

from pathlib import Path
from string import Template

from onebyone.explaining import bundle
from onebyone.explaining.insight import Insight
from onebyone.explaining.page import Opening, page
from onebyone.explaining.versus import charts, frontier_section, image_section, versus_json
from onebyone.files import write_text
from onebyone.plans import Plan
from onebyone.report.cards import cards, headline, quality_sentence
from onebyone.report.details import forms_list, layer_table, method, notes_list
from onebyone.report.markup import Content, Markup, text
from onebyone.report.page import bound
from onebyone.report.picture import picture
from onebyone.verification import Verification


def report_html(verification: Verification, plan: Plan, insight: Insight | None = None) -> str:
    """The page: what became of the network, a picture, a table, what the forms mean, and how.

    Every text is escaped. The page's own policy forbids any request and any script but its own; what
    it says about the network reads without JavaScript, but for what `insight` adds.
    """
    source = _name(plan)
    opening = Opening(
        6, "slim", source, bound(headline(verification)), f"{source}, slimmed by onebyone"
    )
    network = insight.network.to_json() if insight and insight.network else None
    return page(
        opening,
        {"versus": versus_json(verification, plan, insight), "network": network},
        versus=versus(verification, plan, insight, "Before and after"),
    )


def write_report(
    path: str | Path, verification: Verification, plan: Plan, insight: Insight | None = None
) -> None:
    """Write the report; the file appears whole or not at all."""
    write_text(path, report_html(verification, plan, insight))


def versus(verification: Verification, plan: Plan, insight: Insight | None, title: str) -> Markup:
    """The last screen: numbers, the other plans, picture, image, table, spectra, forms and method."""
    errors = {e.layer: e.error for e in verification.layers}
    parts: dict[str, Content] = {
        "title": bound(title),
        "quality": bound(quality_sentence(verification)),
        "cards": cards(verification),
        "frontier": frontier_section(plan, insight),
        "picture": picture(plan, errors),
        "both": image_section(insight),
        "table": layer_table(plan, errors),
        "charts": charts(verification, plan, insight),
        "forms": forms_list(plan),
        "method": method(verification, plan),
        "notes": notes_list((*plan.notes, *verification.notes)),
    }
    template = Template(bundle.asset("versus.html"))
    return Markup(template.substitute({name: text(part) for name, part in parts.items()}))


def _name(plan: Plan) -> str:
    return str(plan.source["spec"]) if plan.source and plan.source.get("spec") else "a network"
