"""Results in notebooks: framed without rights, as text where that is not trusted; the tutorial runs."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from browsing import Tab, chromium
from torch import nn

import onebyone as obo
from onebyone.displaying import Displayed
from onebyone.explaining.defaults import slimmed_demo
from onebyone.explaining.notebook import KINDS, plain

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """One result of each kind."""
    slimmed = slimmed_demo()
    model, example = obo.load("demo")
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    found = (
        slimmed, slimmed.plan, slimmed.verification, obo.measure(model, example),
        obo.compare("8x6x6", "8x6x6", latency=False), obo.diff(model, slimmed.model, example),
        obo.explain(net, torch.rand(3, 8, 8), latency=False),
    )  # fmt: skip
    return {type(result).__name__: result for result in found}


def test_every_kind_that_is_displayed_has_its_row() -> None:
    assert set(KINDS) == set(Displayed.__subclasses__())


@pytest.mark.parametrize("name", [kind.__name__ for kind in KINDS])
def test_results_are_framed_without_rights(name: str, results: dict[str, Any]) -> None:
    html = results[name]._repr_html_()
    assert html.count("<") == 2  # the frame's own; all of the page is escaped
    assert re.search(r'sandbox="([^"]*)"', html)[1] == "allow-scripts allow-downloads"  # type: ignore[index]
    page = unescape(re.search(r'srcdoc="([^"]*)"', html)[1])  # type: ignore[index]
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'" in page


@pytest.mark.parametrize("name", [kind.__name__ for kind in KINDS])
def test_results_have_a_plain_text(
    name: str, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    bundle = results[name]._repr_mimebundle_()
    said = bundle["text/plain"]
    assert said == plain(results[name])
    assert 10 < len(said) < 20_000
    assert max(map(len, said.splitlines())) <= 100
    assert "object at 0x" not in said
    assert "\x1b" not in said
    assert bundle["text/html"] == results[name]._repr_html_()


@pytest.fixture(scope="module")
def tab(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """All of them one below the other, as a notebook has them."""
    path = tmp_path_factory.mktemp("notebook") / "notebook.html"
    frames = "".join(r._repr_html_().replace('loading="lazy"', "") for r in results.values())
    path.write_text(f"<!doctype html><html lang=en><body>{frames}</body></html>", encoding="utf-8")
    with chromium() as browser:
        opened = Tab(browser, path)
        opened.page.goto(path.as_uri())
        yield opened
        opened.close()
        # Downloads need rights of the window around; nothing else may be complained of.
        assert opened.troubles == []


def test_frames_show_the_pages(tab: Tab, results: dict[str, Any]) -> None:
    for name in results:
        frame = tab.page.frame_locator(f'iframe[title="onebyone: {name}"]')
        assert len(frame.locator("body").inner_text()) > 200, name
    page = tab.page.frame_locator('iframe[title="onebyone: Explanation"]')
    page.locator("html[data-ready]").wait_for(state="attached")
    page.locator("#tabs button").nth(3).click()
    page.locator("#screen-4 .frame").first.wait_for()
    report = tab.page.frame_locator('iframe[title="onebyone: Slimmed"]')
    assert report.locator("#layer-table").is_visible()


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads(TUTORIAL.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    shown = []
    for cell in notebook["cells"]:
        assert cell["id"]
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        shown.append(run_cell("".join(cell["source"]), scope))
    pages = [type(value).__name__ for value in shown if isinstance(value, Displayed)]
    assert pages == [
        "Explanation", "Comparison", "Measurement", "Plan", "Slimmed", "Difference", "Explanation",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def run_cell(source: str, scope: dict[str, Any]) -> object:
    """What a notebook would show below the cell: the value of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), scope)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), scope)  # type: ignore[attr-defined]
