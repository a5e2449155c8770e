"""Results → text for a terminal, JSON, and one self-contained HTML file."""

from onebyone.report.html import report_html, write_report
from onebyone.report.json import to_json
from onebyone.report.text import plan_table, summary

__all__ = ["plan_table", "report_html", "summary", "to_json", "write_report"]
