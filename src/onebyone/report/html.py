"""The report as one self-contained HTML file: no network, no font, and it reads without JavaScript."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from string import Template

from onebyone.files import write_text
from onebyone.planning import Plan
from onebyone.report.cards import cards, headline, quality_sentence
from onebyone.report.details import forms_list, layer_table, method
from onebyone.report.markup import Content, join, tag, text
from onebyone.report.picture import picture
from onebyone.verification import Verification


def report_html(verification: Verification, plan: Plan) -> str:
    """The page: what became of the network, a picture, a table, what the forms mean, and how.

    Every text is escaped. The page's own policy forbids any request and any script but its own.
    """
    source = str(plan.source["spec"]) if plan.source and plan.source.get("spec") else "a network"
    script = asset("table.js") + asset("report.js")
    return Template(asset("report.html")).substitute(
        title=text(f"{source}, slimmed by onebyone"),
        source=text(source),
        headline=text(bound(headline(verification))),
        quality=text(bound(quality_sentence(verification))),
        cards=cards(verification),
        picture=picture(verification, plan),
        table=layer_table(verification, plan),
        forms=forms_list(plan),
        method=method(verification, plan),
        notes=_notes((*plan.notes, *verification.notes)),
        style=asset("report.css"),
        script=script,
        script_hash=script_hash(script),
    )


def script_hash(script: str) -> str:
    """What a page's policy calls its one script."""
    return f"sha256-{b64encode(sha256(script.encode()).digest()).decode()}"


def bound(sentence: str) -> str:
    """With numbers and their percent signs on one line."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def asset(name: str) -> str:
    """A text file that belongs to the pages."""
    return files("onebyone.report").joinpath(name).read_text(encoding="utf-8")


def _notes(notes: tuple[str, ...]) -> Content:
    if not notes:
        return ""
    return join(tag("h3", "Notes"), tag("ul", *(tag("li", n) for n in notes), class_="notes"))


def write_report(path: str | Path, verification: Verification, plan: Plan) -> None:
    """Write the report; the file appears whole or not at all."""
    write_text(path, report_html(verification, plan))
