"""Planted bugs in the page, its figures and what it reads: each is seen by what their tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import Tab, chromium
from PIL import Image
from planting import Bug, check_caught
from torch import nn

from onebyone.comparing import compare
from onebyone.data import open_images
from onebyone.errors import ModelError
from onebyone.explaining import bundle, figures
from onebyone.explaining.defaults import slimmed_demo
from onebyone.explaining.insight import Insight, same_image
from onebyone.explaining.layers import show_layers
from onebyone.explaining.page import Opening, page
from onebyone.explaining.photos import shown
from onebyone.explaining.saved import Saved
from onebyone.explaining.toy import SIZES, toy
from onebyone.forms import FORMS
from onebyone.loading import load
from onebyone.plans import Decision

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


# A slimmed folder, opened again


@pytest.fixture(scope="module")
def saved() -> Saved:
    """A network and its slimmed folder in small; the two differ, so that mixing them up shows."""
    made = slimmed_demo()
    return Saved(made.verification, made.plan, lambda: load("demo").model, tuple("abcdefghij"))


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    return open_images("demo:test", limit=1).inputs


def law_of_the_folder(saved: Saved, photo: torch.Tensor) -> None:
    """The original's answer stands before, the lighter one's after, under the classes' own names."""
    lighter, original = slimmed_demo().model, saved.original()
    insight, notes = saved.look(lighter, photo)
    assert insight.plans == (saved.plan,)
    assert insight.image is not None
    with torch.inference_mode():
        for network, told in (
            (original, insight.image.before), (lighter, insight.image.after),
        ):  # fmt: skip
            best = network(photo)[0].softmax(0)
            assert saved.classes is not None
            assert told[0][0] == saved.classes[int(best.argmax())]
            assert told[0][1] == pytest.approx(float(best.max()), rel=1e-5)
    assert len(notes) == 1
    gone = replace(saved, original=_gone)
    insight, notes = gone.look(lighter, photo)
    assert insight.image is None
    assert "moved away" in notes[1]


def _gone() -> nn.Module:
    raise ModelError("it moved away")


def swapped(model: Any, lighter: Any, *more: Any) -> Any:
    return same_image(lighter, model, *more)


def unnamed(model: Any, lighter: Any, plan: Any, image: Any, classes: Any) -> Any:
    return same_image(model, lighter, plan, image)


def silent(self: Saved, lighter: nn.Module, image: torch.Tensor) -> Any:
    """A look that says nothing of an original that is gone."""
    try:
        both = same_image(self.original(), lighter, self.plan, image, self.classes)
    except ModelError:
        both = None
    return Insight((self.plan,), (), both), ("the plans are elsewhere",)


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        ("onebyone.explaining.saved.same_image", swapped),
        ("onebyone.explaining.saved.same_image", unnamed),
        ("onebyone.explaining.saved.Saved.look", silent),
    ],
)
def test_a_folder_shown_wrongly_is_seen(
    where: str, wrong: Any, saved: Saved, photo: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = Bug(lambda patch: patch.setattr(where, wrong), lambda: law_of_the_folder(saved, photo))
    check_caught(bug, monkeypatch, IndexError)


# Photos and figures


def law_of_the_bars() -> None:
    """The parts of a layer in the figure cost what the plan says of it."""
    for decision in slimmed_demo().plan.decisions:
        assert sum(macs for macs, _ in figures._parts(decision)) == decision.macs_after


def unshaped(decision: Decision) -> list[tuple[int, bool]]:
    assert decision.conv is not None
    parts = FORMS[decision.form].parts(decision.conv, decision.ranks)
    return [(part.macs(decision.places), False) for part in parts]


def law_of_grays() -> None:
    """A 16-bit ramp from black to white is one in 8 bits."""
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(4, 0)
    assert torch.equal(shown(Image.fromarray(ramp)).pixels[0, :, 0], torch.arange(256).byte())


@pytest.mark.parametrize(
    ("where", "wrong", "law"),
    [
        ("onebyone.explaining.figures._parts", unshaped, law_of_the_bars),
        ("onebyone.explaining.photos.eight_bits", lambda image: image, law_of_grays),
    ],
)
def test_a_wrong_picture_is_seen(
    where: str, wrong: Any, law: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_caught(Bug(lambda patch: patch.setattr(where, wrong), law), monkeypatch)
