"""What the report adds: plans that could be, spectra as planning sees them, one image through both."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import Tab, chromium
from torch import nn

from onebyone.data import open_images
from onebyone.explaining.defaults import slimmed_demo
from onebyone.explaining.insight import frontier, same_image, spectra
from onebyone.explaining.layers import pointwise_layers
from onebyone.explaining.report import report_html, write_report
from onebyone.explaining.versus import versus_json
from onebyone.loading import load
from onebyone.losses import Losses, beyond
from onebyone.planning import Planner, plan
from onebyone.plans import Budget, Measured, Plan
from onebyone.slimming import Slimmed, slim
from onebyone.statistics import Statistics, observe

HOSTILE = "<img src=x onerror=alert(1)>"
BOXES = """["#frontier text", "#frontier circle"].map((what) => [...document.querySelectorAll(what)]
    .map((part) => part.getBoundingClientRect()).map(({ top, bottom }) => [top, bottom]))"""


@pytest.fixture(scope="module")
def slimmed() -> Slimmed:
    return slimmed_demo()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load("demo").model


@pytest.fixture(scope="module")
def statistics(model: nn.Module) -> Statistics:
    return observe(model, open_images("demo", limit=64))


def test_the_frontier_falls_and_holds_the_chosen_plan(
    model: nn.Module, statistics: Statistics
) -> None:
    chosen = plan(model, statistics, Budget(macs=0.42))
    found = frontier(Planner(statistics), chosen, seconds=60)
    assert chosen in found
    assert len(found) > 8
    macs = [p.macs_after for p in found]
    errors = [p.error for p in found]
    assert macs == sorted(set(macs))
    assert errors == sorted(errors, reverse=True)
    by_params = frontier(
        Planner(statistics), plan(model, statistics, Budget(params=0.5)), seconds=60
    )
    params = [p.params_after for p in by_params]
    assert params == sorted(set(params))
    assert len(by_params) >= 3
    assert all(p.budget.macs is None for p in by_params)
    hurried = frontier(Planner(statistics), chosen, seconds=0)
    assert chosen in hurried
    assert len(hurried) == 3


def test_a_worse_plan_than_others_stays_where_it_was_chosen(
    model: nn.Module, statistics: Statistics
) -> None:
    good = plan(model, statistics, Budget(macs=0.6))
    worst = tuple(replace(d, error=1.0) for d in good.decisions)
    chosen = replace(good, decisions=worst)
    assert chosen in frontier(Planner(statistics), chosen, seconds=0)


def test_spectra_are_those_that_plans_are_made_of(model: nn.Module, statistics: Statistics) -> None:
    """The energy beyond a rank, halved, is what planning raises to the error on images not seen."""
    found = {s.layer: s for s in spectra(Losses(statistics))}
    losses = Losses(statistics)
    optimism = {s.layer: losses.optimism(s) for s in statistics.survey.layers if not s.refusal}
    assert set(found) == {s.layer for s in statistics.survey.layers if s.refusal is None}
    for made in (plan(model, statistics, Budget(macs=m), narrow=False) for m in (0.5, 0.3)):
        told = 0
        for decision in made.decisions:
            spectrum = found[decision.layer]
            values, ranks = {
                "channel": (spectrum.outside, spectrum.ranks_out),
                "pointwise": (spectrum.outside, spectrum.ranks_out),
                "squeeze": (spectrum.inside, spectrum.ranks_in),
            }.get(decision.form, ((), ()))
            narrowed = (
                decision.shape is not None
            )  # planned for fewer channels than the spectrum has
            if not values or narrowed or list(ranks) != list(range(1, len(ranks) + 1)):
                continue
            energy = np.square(values)
            left = np.append(energy[::-1].cumsum()[::-1], 0) / energy.sum()
            whole = _tail(decision.layer, decision.form, model, statistics)
            side = "in" if decision.form == "squeeze" else "out"
            wanted = beyond(left * whole, optimism[decision.layer][side])[decision.ranks[0]]
            assert decision.error == pytest.approx(wanted, rel=1e-3)
            assert decision.error >= 0.999 * left[decision.ranks[0]] * whole
            told += 1
        assert told


def _tail(layer: str, form: str, model: nn.Module, statistics: Statistics) -> float:
    """Half of all the energy of a side, by brute force from the moments."""
    from onebyone.factorize.metric import energies, factor
    from onebyone.factorize.squeeze import input_energy

    seen = statistics.layers[layer]
    weight = model.get_submodule(layer).weight.detach()  # type: ignore[union-attr]
    kernel = weight.reshape(len(weight), weight.shape[1], -1).transpose(1, 2)
    metric = factor(seen.gradients / statistics.images)
    if form == "squeeze":
        taps = seen.taps / seen.taps.diagonal().mean()
        energy = energies(input_energy(kernel, factor(seen.channels.all.covariance), taps, metric))
    else:
        energy = energies(metric.T @ seen.outputs.covariance @ metric)
    return float(energy.sum() / 2)


def test_the_same_image_goes_through_both(model: nn.Module, slimmed: Slimmed) -> None:
    image = open_images("demo:test", limit=3).inputs[1:2]
    classes = tuple(f"kind {i}" for i in range(10))
    found = same_image(model, slimmed.model, slimmed.plan, image, classes)
    assert found is not None
    with torch.inference_mode():
        for network, told in ((model, found.before), (slimmed.model, found.after)):
            expected = network(image)[0].softmax(0).sort(descending=True)
            assert [n for n, _ in told] == [f"kind {i}" for i in expected.indices[:5]]
            torch.testing.assert_close(torch.tensor([p for _, p in told]), expected.values[:5])
    assert [b.layer for b in found.layers] == [d.layer for d in slimmed.plan.decisions if d.ranks]
    assert all(0 <= b.error < 1 for b in found.layers)
    unchanged = same_image(model, model, slimmed.plan, image)
    assert unchanged is not None
    assert [b.error for b in unchanged.layers] == [0] * len(unchanged.layers)
    assert unchanged.before == unchanged.after
    assert unchanged.before[0][0].startswith("class ")


def test_errors_of_layers_behind_a_pool_are_relative_to_their_size() -> None:
    """Maps of one pixel have no variance over their pixels."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 96, 1), nn.ReLU(),
        nn.Conv2d(96, 32, 1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    made = slim(net, torch.randn(40, 3, 9, 9), params=0.5, latency=False)
    assert made.insight is not None
    assert made.insight.image is not None
    behind = [b for b in made.insight.image.layers if b.layer in ("3", "5")]
    assert behind
    assert all(0 < b.error < 1 for b in behind)


def test_inputs_that_are_no_images_have_no_picture(slimmed: Slimmed, model: nn.Module) -> None:
    assert same_image(model, slimmed.model, slimmed.plan, torch.zeros(1, 8, 30)) is None


def test_every_slimmed_network_can_be_reported(tmp_path: Path) -> None:
    """One dimension, no class logits, another budget: nothing of the report may depend on images."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 24, 5), nn.ReLU(), nn.Conv1d(24, 24, 5), nn.Conv1d(24, 4, 1))
    made = slim(net, torch.randn(40, 3, 50), params=0.6, latency=False)
    assert made.insight is not None
    assert made.insight.image is None
    assert made.insight.network is None
    write_report(tmp_path / "report.html", made.verification, made.plan, made.insight)
    values = versus_json(made.verification, made.plan, made.insight)
    assert values["image"] is None
    assert values["frontier"] is None or values["frontier"]["by"] == "params"


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert found is not None
    return json.loads(found[1])


def test_the_pages_arrays_are_the_maps(slimmed: Slimmed) -> None:
    assert slimmed.insight is not None
    assert slimmed.insight.image is not None
    html = report_html(slimmed.verification, slimmed.plan, slimmed.insight)
    first = data_of(html)["versus"]["image"]["layers"][0]["before"]
    levels, low, step = (
        np.frombuffer(
            zlib.decompress(base64.b64decode(first[key]["data"])), dtype=first[key]["kind"]
        )
        for key in ("levels", "low", "step")
    )
    expected = slimmed.insight.image.layers[0].before.values.numpy()
    np.testing.assert_array_equal(
        low[0] + step[0] * levels.reshape(first["levels"]["shape"]), expected
    )


def test_what_a_search_measured_is_told_from_predictions(slimmed: Slimmed, tmp_path: Path) -> None:
    insight, accuracy = slimmed.insight, slimmed.verification.after.accuracy
    assert insight is not None
    assert accuracy is not None
    plans = tuple(
        replace(slimmed.plan, decisions=tuple(replace(d, error=e) for d in slimmed.plan.decisions))
        for e in (0.02, 0.01)
    )
    chosen, tried, other = range(3)
    insight = replace(insight, plans=(slimmed.plan, *plans))
    found = replace(insight, measured=(Measured(plans[0], 0.8125),))
    write_report(tmp_path / "r.html", slimmed.verification, slimmed.plan, found)
    with chromium() as browser:
        opened = Tab(browser, tmp_path / "r.html").open()
        slider, said = opened.page.locator("#plans"), opened.page.locator("#plan-said")
        for index, wanted in ((chosen, f"{accuracy:.2%}"), (tried, "81.25%")):
            slider.fill(str(index))
            told = opened.page.locator("[data-v=plan-accuracy]").inner_text()
            assert told.replace(" ", "") == wanted
        slider.fill(str(other))
        assert "not carried out, so its accuracy is not known" in said.inner_text()
        assert opened.page.locator("#accuracies").is_visible()
        assert opened.page.locator("#accuracies circle").count() == 3  # and the original
        assert opened.page.locator("#frontier circle.guess").count() == 1
        opened.close()
        assert opened.troubles == []
    without = replace(
        slimmed.verification,
        before=replace(slimmed.verification.before, accuracy=None),
        after=replace(slimmed.verification.after, accuracy=None),
    )
    write_report(tmp_path / "r.html", without, slimmed.plan, insight)
    with chromium() as browser:
        opened = Tab(browser, tmp_path / "r.html").open()
        assert not opened.page.locator("#accuracies").is_visible()
        assert "Accuracy was not measured" in opened.page.locator("#accuracies-said").inner_text()
        opened.close()


@pytest.mark.parametrize(("error", "top"), [(1.0, "1"), (1e16, "10¹⁶")])
def test_a_point_on_the_uppermost_line_leaves_the_title_free(
    error: float, top: str, slimmed: Slimmed, tmp_path: Path
) -> None:
    insight = slimmed.insight
    assert insight is not None
    first, *others = insight.plans
    share = 0.9999 * error / first.error
    worst = replace(
        first, decisions=tuple(replace(d, error=share * d.error) for d in first.decisions),
        narrowings=tuple(replace(n, error=share * n.error) for n in first.narrowings),
    )  # fmt: skip
    assert worst.error == pytest.approx(0.9999 * error)
    found = replace(insight, plans=(worst, *others))
    write_report(tmp_path / "r.html", slimmed.verification, slimmed.plan, found)
    with chromium() as browser:
        for width in (360, 768, 1440):
            opened = Tab(browser, tmp_path / "r.html", width).open()
            opened.page.locator("#plans").fill("0")
            texts = opened.page.locator("#frontier text").all_text_contents()
            (title,) = (i for i, text in enumerate(texts) if text.startswith("predicted rise"))
            assert top in texts
            boxes, points = opened.page.evaluate(BOXES)
            assert boxes[title][1] <= min(high for high, _ in points)
            opened.close()
            assert opened.troubles == []


def test_a_search_keeps_the_plans_it_measured_in_the_frontier(
    model: nn.Module, statistics: Statistics
) -> None:
    chosen = plan(model, statistics, Budget(macs=0.42))
    tried = replace(chosen, decisions=tuple(replace(d, error=9.0) for d in chosen.decisions[:-1]))
    found = frontier(Planner(statistics), chosen, seconds=0, carried_out=(tried,))
    assert tried in found
    assert chosen in found


@pytest.fixture(scope="module")
def tab(slimmed: Slimmed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    path = tmp_path_factory.mktemp("report") / "report.html"
    hostile = replace(slimmed.plan, decisions=(
        replace(slimmed.plan.decisions[0], layer=HOSTILE), *slimmed.plan.decisions[1:]
    ))  # fmt: skip
    insight = slimmed.insight
    assert insight is not None
    plans = tuple(
        hostile if p is slimmed.plan or p.decisions == slimmed.plan.decisions else p
        for p in insight.plans
    )
    write_report(path, slimmed.verification, hostile, replace(insight, plans=plans))
    with chromium() as browser:
        opened = Tab(browser, path).open()
        yield opened
        opened.close()
        assert opened.troubles == []


def test_the_report_opens_on_the_last_screen(tab: Tab) -> None:
    assert tab.page.locator("#screen-6").is_visible()
    assert not tab.page.locator("#screen-1").is_visible()
    assert tab.page.locator("img").count() == 0
    assert HOSTILE in tab.page.locator("#plan-rows").inner_text()
    assert HOSTILE in tab.page.locator("#layer-table").inner_text()


def test_the_lighter_networks_own_layers_are_in_the_report(tab: Tab, slimmed: Slimmed) -> None:
    assert slimmed.insight is not None
    assert slimmed.insight.network is not None
    assert len(slimmed.insight.network.layers) == len(pointwise_layers(slimmed.model)) > 1
    shown = slimmed.insight.network.layers[1]
    found = tab.open("4?layer=layer1&x=3&y=4&k=2").number("#cell-rows [data-v=result]")
    assert found == pytest.approx(float(shown.output[2, 4, 3]), abs=1e-5)
    assert tab.path.stat().st_size < 3 * 10**6
    tab.open()


def test_the_slider_shows_the_plan_at_every_budget(tab: Tab, slimmed: Slimmed) -> None:
    assert slimmed.insight is not None
    slider = tab.page.locator("#plans")
    for index, made in enumerate(slimmed.insight.plans):
        slider.fill(str(index))
        assert tab.number("[data-v=plan-error]") == pytest.approx(made.error, rel=1e-3)
        rows = tab.page.locator("#plan-rows tr")
        assert rows.count() == len(made.decisions)
        said = tab.page.locator("#plan-said").inner_text()
        assert ("plan that was carried out" in said) == (made.decisions == slimmed.plan.decisions)


def test_maps_of_the_same_image_are_drawn(tab: Tab, slimmed: Slimmed) -> None:
    assert slimmed.insight is not None
    assert slimmed.insight.image is not None
    tab.page.wait_for_selector("#same-maps li")
    assert tab.page.locator("#same-maps canvas").count() == 2 * len(slimmed.insight.image.layers)
    colors = tab.page.locator("#same-maps canvas").first.evaluate(
        "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    )
    assert colors > 5


def test_long_names_scroll_tables_and_not_the_page(
    tab: Tab, slimmed: Slimmed, tmp_path: Path
) -> None:
    insight = slimmed.insight
    assert insight is not None

    def renamed(made: Plan) -> Plan:
        return replace(made, decisions=tuple(
            replace(d, layer=f"backbone.stage4.blocks.11.{d.layer}") for d in made.decisions
        ))  # fmt: skip

    long = replace(insight, plans=tuple(renamed(p) for p in insight.plans))
    write_report(tmp_path / "r.html", slimmed.verification, renamed(slimmed.plan), long)
    for width in (360, 768):
        opened = Tab(tab.context.browser, tmp_path / "r.html", width).open()
        assert opened.page.locator("#plan-rows tr").count()
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        opened.close()


def test_without_javascript_the_report_still_tells(tab: Tab) -> None:
    plain = Tab(tab.context.browser, tab.path, java_script_enabled=False)
    plain.page.goto(tab.path.as_uri())
    assert plain.page.locator("#layer-table").is_visible()
    assert plain.page.locator("#screen-1").is_hidden()
    plain.close()
