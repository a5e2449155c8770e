"""Results that notebooks show as pages, and as tables where only text is shown."""

from __future__ import annotations

from importlib import import_module
from typing import Any

PAGES = "onebyone.explaining.notebook"  # by its name: results know nothing of how they are drawn


class Displayed:
    """A result with Jupyter's two hooks; `onebyone.explaining.notebook` has a row for each kind."""

    def _repr_html_(self) -> str:
        """The result as a page in a frame of its own, which can reach nothing around it."""
        return import_module(PAGES).framed(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The same as plain text, for terminals and where HTML is not trusted."""
        printer.text(import_module(PAGES).plain(self))
