"""The report as one self-contained HTML file."""

from __future__ import annotations

from html import escape
from pathlib import Path

from onebyone.files import write_text
from onebyone.planning import Plan
from onebyone.report.json import to_json
from onebyone.verification import Verification


def report_html(verification: Verification, plan: Plan) -> str:
    return f"<!doctype html><pre>{escape(str(to_json(verification, plan)))}</pre>"


def write_report(path: str | Path, verification: Verification, plan: Plan) -> None:
    """Write the report; the file appears whole or not at all."""
    write_text(path, report_html(verification, plan))
