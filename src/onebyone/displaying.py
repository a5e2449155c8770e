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

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """The page, and the same as plain text, for terminals and where HTML is not trusted.

        A dataclass's own repr would be taken for the text else: it is of the class, and comes first.
        """
        return {"text/plain": import_module(PAGES).plain(self), "text/html": self._repr_html_()}
