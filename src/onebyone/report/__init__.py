"""Results → text for a terminal, JSON, and pages of one self-contained file."""

from onebyone.report.json import to_json
from onebyone.report.text import plan_table, summary

__all__ = ["plan_table", "summary", "to_json"]
