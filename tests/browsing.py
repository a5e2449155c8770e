"""A real browser for tests of pages: Chromium by way of Playwright, cut off from any network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test, saying why, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """One page in one window; it notes all that goes wrong, and every request."""

    def __init__(self, browser: Any, path: Path, width: int = 1440, **more: Any) -> None:
        self.path = path
        settings = {"viewport": {"width": width, "height": 900}, "offline": True, **more}
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(8000)
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", self._asked)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.troubles.append(message.text)

    def _asked(self, dialog: Any) -> None:
        self.troubles.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, hash: str = "") -> Tab:
        """Load the page anew at this state."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.path.as_uri()}#{hash}")
        self.page.wait_for_selector("html[data-ready]", state="attached")
        return self

    def number(self, selector: str) -> float:
        """The number that an element shows."""
        return number(self.page.locator(selector).first.inner_text())

    def visit(self, states: list[str], selector: str) -> list[float]:
        """What the element shows at each of these states of one screen, one after the other."""
        found = self.page.evaluate(
            """async ([states, selector]) => {
                const found = [];
                for (const [index, state] of states.entries()) {
                    const before = document.documentElement.dataset.ready;
                    location.hash = `${state}&n=${index}`;
                    while (document.documentElement.dataset.ready === before) {
                        await new Promise((resolve) => setTimeout(resolve, 0));
                    }
                    found.push(document.querySelector(selector).textContent);
                }
                return found;
            }""",
            [states, selector],
        )
        return [number(text) for text in found]

    def close(self) -> None:
        self.context.close()


def number(text: str) -> float:
    """A number as the page spells it."""
    return float(text.replace("−", "-").replace(",", ""))
