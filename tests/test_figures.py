"""The classic pictures: well-formed, to scale, the same numbers as everywhere."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from onebyone.cli.app import app
from onebyone.errors import OutputError
from onebyone.explaining.defaults import slimmed_demo
from onebyone.explaining.drawing import LEADS, SCALE, Drawing, Label, Shape
from onebyone.explaining.figures import FIGURES, Solid, before_after, figure, write_figure
from onebyone.plan_files import write_plan
from onebyone.report.numbers import count

HOSTILE = '<script>alert("1")</script>&'


def texts(svg: str) -> list[str]:
    root = ET.fromstring(svg)
    return [e.text or "" for e in root.iter() if e.tag.endswith("}text")]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_whole_picture_of_both_kinds(name: str, tmp_path: Path) -> None:
    drawing = figure(name)
    left, top, width, height = drawing.box()
    for part in drawing.parts:
        for x, y in part.points if isinstance(part, Shape) else (part.at,):
            assert left <= x <= left + width
            assert top <= y <= top + height
    svg = write_figure(tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    assert next(iter(ET.fromstring(svg))).text == drawing.title
    write_figure(tmp_path / f"{name}.png")
    with Image.open(tmp_path / f"{name}.png") as image:
        assert image.size == (round(width * SCALE), round(height * SCALE))
        colors = image.getcolors(10**6)
        assert colors is not None
        assert len(colors) > 20


def test_no_label_lies_on_another() -> None:
    for name in FIGURES:
        boxes = []
        for part in figure(name).parts:
            if isinstance(part, Label):
                wide = 0.5 * part.size * len(part.text)
                start = part.at[0] - LEADS[part.anchor] * wide
                boxes.append((start, part.at[1] - 0.8 * part.size, start + wide, part.at[1]))
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], name


def test_the_classic_picture_says_its_sizes() -> None:
    assert [t for t in texts(figure("one-pixel").svg()) if "×" in t] == ["5×5×6", "1×1×6", "5×5×1"]


def test_the_bottlenecks_numbers_are_counted() -> None:
    said = " ".join(texts(figure("bottleneck").svg()))
    for number in (100_000, 40_000_000, 22_000, 8_800_000):
        assert count(number) in said


def test_solids_are_to_scale() -> None:
    small, large = Solid((0, 0), (2, 3, 4), 10), Solid((5, 5), (4, 6, 8), 10)
    assert large.width == 2 * small.width
    assert [len(s.points) for s in small.faces()] == [4, 4, 4]
    assert small.place(4, 3, 2) == (40 + 10, -30 - 6)


def test_bars_are_to_scale_and_names_are_text() -> None:
    plan = slimmed_demo().plan
    hostile = replace(
        plan, decisions=(replace(plan.decisions[0], layer=HOSTILE), *plan.decisions[1:])
    )
    drawing = before_after(hostile)
    assert HOSTILE[-24:] in " ".join(texts(drawing.svg()))
    assert "<script" not in drawing.svg()
    bars = [p for p in drawing.parts if isinstance(p, Shape)]
    grays = [p.points[1][0] - p.points[0][0] for p in bars if p.fill == "#848b96"]
    macs = [d.macs_before for d in plan.decisions]
    *grays, _ = grays  # the last one is the legend's
    for gray, cost in zip(grays, macs, strict=True):
        assert gray == pytest.approx(max(420 * cost / max(macs), 0.6))
    ends = {}  # of what stands there now, by its height in the picture
    for bar in bars:
        if bar.points[2][1] - bar.points[1][1] == 11:
            ends[bar.points[0][1]] = bar.points[1][0]
    for end, decision in zip(ends.values(), plan.decisions, strict=False):
        assert end == pytest.approx(max(420 * decision.macs_after / max(macs), 0.6))


def test_names_end_at_their_bars(tmp_path: Path) -> None:
    svg = write_figure(tmp_path / "before-after.svg").read_text(encoding="utf-8")
    names = {d.layer for d in slimmed_demo().plan.decisions}
    found = [e for e in ET.fromstring(svg).iter() if e.text in names]
    assert len(found) == len(names)
    assert {(e.get("text-anchor"), e.get("x")) for e in found} == {("end", "-8.0")}


def test_signs_that_the_font_lacks_are_drawn() -> None:
    def pixels(text: str) -> bytes:
        with Image.open(BytesIO(Drawing("t", [Label((0, 0), text, 30)]).png())) as image:
            return image.tobytes()

    assert pixels("5×5") != pixels("5□5")
    assert pixels("5×5") != pixels("5∗5")


def test_the_command_writes_figures_and_knows_their_names(tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(app, ["explain", "--figure", str(tmp_path / "one-pixel.svg")])
    assert done.exit_code == 0, done.output
    write_plan(slimmed_demo().plan, tmp_path / "plan.json")
    done = run(app, ["explain", str(tmp_path), "--figure", str(tmp_path / "before-after.png")])
    assert done.exit_code == 0, done.output
    assert {p.name for p in tmp_path.iterdir()} == {
        "one-pixel.svg",
        "before-after.png",
        "plan.json",
    }
    for name, message in (
        ("one-pixels.svg", "did you mean one-pixel"), ("bottleneck.gif", "an .svg or a .png"),
        ("none/bottleneck.svg", "no folder"),
    ):  # fmt: skip
        failed = run(app, ["explain", "--figure", str(tmp_path / name)])
        assert failed.exit_code == 2
        assert message in re.sub(r"\s+", " ", failed.output)
    one = str(tmp_path / "bottleneck.svg")
    for more in ([str(tmp_path)], ["--image", "a.png"], ["--layer", "a"], ["--open"]):
        assert run(app, ["explain", *more, "--figure", one]).exit_code == 2
    with pytest.raises(OutputError, match="there are one-pixel, bottleneck, before-after"):
        figure("")
