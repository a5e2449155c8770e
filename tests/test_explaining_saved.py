"""A folder that slim wrote, opened again: the last screen is its own, and says what is gone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browsing import Tab, chromium
from torch import nn
from typer.testing import CliRunner

import onebyone as obo
from onebyone.cli.app import app
from onebyone.errors import DataError
from onebyone.explaining.defaults import slimmed_demo
from onebyone.explaining.layers import pointwise_layers
from onebyone.explaining.saved import read_saved
from onebyone.files import PLAN, REPORT_JSON, json_text
from onebyone.plan_files import read_plan
from onebyone.report.cards import headline
from onebyone.report.json import read_report, to_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slimmed_demo().save(tmp_path_factory.mktemp("saved") / "out")


def explained(folder: Path, *more: str) -> tuple[str, str]:
    """The page and what the command said."""
    page = folder.parent / "page.html"
    command = ["explain", str(folder), "--no-latency", "-o", str(page), *more]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return page.read_text(encoding="utf-8"), " ".join(done.output.split())


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = slimmed_demo()
    path = tmp_path / REPORT_JSON
    path.write_text(json_text(to_json(made.verification, made.plan)), encoding="utf-8")
    assert read_report(path, made.plan) == made.verification


def test_the_last_screen_is_the_folders_own(folder: Path) -> None:
    html, said = explained(folder)
    made = slimmed_demo()
    assert f"Before and after: {headline(made.verification)}".replace(" %", "\xa0%") in html
    assert "The demo network, slimmed" not in html
    assert "plans at other budgets and the spectra are in the folder's own report.html" in said
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    changed = [d.layer for d in made.plan.decisions if d.ranks]
    assert [both["layer"] for both in data["versus"]["image"]["layers"]] == changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{", "cannot be read as a report"),
        (lambda text: "{}", "it has no 'schema'"),
        (lambda text: text.replace('"held_out_images"', '"images"'), "it has no 'held_out_images'"),
        (lambda text: text.replace("onebyone.report/1", "other/9"), "its schema is 'other/9'"),
    ],
)
def test_a_damaged_report_leaves_the_demo_and_says_so(
    change: object, message: str, folder: Path
) -> None:
    path = folder / REPORT_JSON
    kept = path.read_text(encoding="utf-8")
    try:
        path.write_text(change(kept), encoding="utf-8")  # type: ignore[operator]
        with pytest.raises(DataError, match=message):
            read_report(path, read_plan(folder / PLAN))
        if message == "cannot be read as a report":
            html, said = explained(folder)
            assert "The demo network, slimmed" in html
            assert "the last screen shows the demo network" in said
    finally:
        path.write_text(kept, encoding="utf-8")


def test_an_original_that_is_gone_is_told(folder: Path) -> None:
    path = folder / PLAN
    kept = path.read_text(encoding="utf-8")
    values = json.loads(kept)
    values["source"] = None
    try:
        path.write_text(json.dumps(values), encoding="utf-8")
        html, said = explained(folder)
        assert "the photo is not shown through both networks" in said
        assert "Before and after: " in html
    finally:
        path.write_text(kept, encoding="utf-8")


def test_a_deepened_folder_is_told_from_a_slimmed_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deeper = replace(read_plan(folder / PLAN), reference=(1, 1))
    monkeypatch.setattr("onebyone.explaining.saved.read_plan", lambda path: deeper)
    with pytest.raises(DataError, match="deepened network"):
        read_saved(folder, lambda: slimmed_demo().model)


def no_pointwise() -> tuple[nn.Module, torch.Tensor]:
    """A network of 3×3 convolutions; its one input."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)]
    return nn.Sequential(*layers, *tail).eval(), torch.randn(1, 3, 16, 16)


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A slimmed folder whose network has no 1×1 convolution."""
    (tmp_path / "own_plain.py").write_text(f"from {__name__} import no_pointwise\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    model, _ = no_pointwise()
    images = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    source = {"spec": "own_plain:no_pointwise"}
    made = obo.slim(model, images, macs=0.7, source=source, held_out=images, latency=False)
    assert not pointwise_layers(made.model)
    return made.save(tmp_path / "out")


def test_a_slimmed_folder_without_1x1_convolutions_has_its_before_and_after(
    plain: Path, tmp_path: Path
) -> None:
    html, said = explained(plain, "--trust")
    assert "Before and after: " in html
    assert (
        "screen 4 has no layers of the network: Sequential has no 1×1 convolution to show" in said
    )
    assert "slim it first" not in said + html
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert data["network"] is None
    assert data["versus"]["image"] is not None
    with chromium() as browser:
        tab = Tab(browser, tmp_path / "page.html")
        for screen in "123456":
            tab.open(screen)
            assert tab.page.locator("section[id^=screen]:visible").count() == 1
        tab.close()
        assert tab.troubles == []


def test_a_damaged_folder_without_1x1_convolutions_is_refused_with_the_reason(plain: Path) -> None:
    (plain / REPORT_JSON).write_text("{", encoding="utf-8")
    done = CliRunner().invoke(app, ["explain", str(plain), "--trust", "--no-latency"])
    said = " ".join(done.output.split())
    assert done.exit_code == 2
    assert "has no 1×1 convolution to show, nor its before and after" in said
    assert "cannot be read as a report" in said
    assert "slim it first" not in said
