"""Planted bugs in the page: each is seen by what the tests of the page look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsing import Tab, chromium
from torch import nn

from onebyone.comparing import compare
from onebyone.explaining import bundle
from onebyone.explaining.layers import show_layers
from onebyone.explaining.page import Opening, page
from onebyone.explaining.toy import SIZES, toy

OPENING = Opening(1, "explain", "a test", "A test", "A test")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def opened(
    browser: Any, path: Path, monkeypatch: pytest.MonkeyPatch, file: str, right: str, wrong: str
) -> Tab:
    """The page with one piece of its code replaced."""
    asset = bundle.asset
    assert right in asset(file)
    monkeypatch.setattr(
        bundle,
        "asset",
        lambda name: asset(name).replace(right, wrong) if name == file else asset(name),
    )
    bundle.script.cache_clear()
    try:
        path.write_text(page(OPENING, {}), encoding="utf-8")
    finally:
        bundle.script.cache_clear()
    return Tab(browser, path)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("let sum = b[k];", "let sum = 0;"),
        (
            "sum += w[k * C + c] * x[c * H * W + index]",
            "sum += w[c * volume.K + k] * x[c * H * W + index]",
        ),
        ("for (let c = 0; c < C; c++) sum", "for (let c = 1; c < C; c++) sum"),
    ],
)
def test_a_wrong_sum_is_seen(
    right: str, wrong: str, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab = opened(browser, tmp_path / "page.html", monkeypatch, "volume_data.js", right, wrong)
    expected = toy(*SIZES[0]).pointwise()
    cells = [(k, y, x) for k in range(4) for y in range(5) for x in range(0, 5, 2)]
    found = tab.open("1").visit(
        [f"1?x={x}&y={y}&k={k}" for k, y, x in cells], "#cell-rows [data-v=result]"
    )
    assert found != pytest.approx([float(expected[cell]) for cell in cells], abs=1e-5)
    tab.close()


def test_a_wrong_cost_is_seen(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = "part.before ? [asked.h, asked.w] : [h, w]"
    tab = opened(browser, tmp_path / "page.html", monkeypatch, "costs.js", right, "[h, w]")
    tab.open("5?bench=32,16,16,48,3,2,4,8")
    shown = tab.page.locator("[data-variant=bottleneck_before] [data-is=macs]").get_attribute(
        "data-v"
    )
    found = compare("32x16x16", "48x8x8", 3, width=8, latency=False)["bottleneck_before"].macs
    assert int(shown or 0) != found
    tab.close()


def test_text_that_becomes_markup_is_seen(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "for (const child of children.flat()) node.insertAdjacentHTML('beforeend', child);"
    right = (
        "node.append(...children.flat().filter((child) => child !== null && child !== undefined));"
    )
    assert right in bundle.asset("markup.js")
    tab = opened(browser, tmp_path / "page.html", monkeypatch, "markup.js", right, wrong)
    tab.page.goto(tab.path.as_uri())
    tab.page.wait_for_timeout(300)
    assert tab.troubles
    tab.close()


def test_a_stride_that_is_passed_over_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(3, 4, 1, stride=2)
    image = torch.randn(1, 3, 9, 9)
    right = show_layers(layer, image)[0][0]
    with torch.inference_mode():
        wanted = layer(image)[0]
    assert (right.output - wanted).abs().max() < 0.05
    monkeypatch.setattr("onebyone.explaining.layers._pixels", lambda layer, x, y: x[0, :, :5, :5])
    with pytest.raises(Exception, match="computes with other weights"):
        show_layers(layer, image)
