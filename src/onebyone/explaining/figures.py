"""The classic pictures of 1×1 convolutions, for papers and slides."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from onebyone.comparing import Variant, compare
from onebyone.errors import OutputError
from onebyone.explaining.bench import START
from onebyone.explaining.defaults import slimmed_demo
from onebyone.explaining.drawing import Drawing, Label, Point, Shape
from onebyone.forms import FORMS
from onebyone.plans import Decision, Plan
from onebyone.report.numbers import count, share
from onebyone.report.words import UNCHANGED, form_title, layer_name

FACES = ("#dfe7f5", "#eef3fb", "#b9cbea")  # front, top and side
LIT = ("#f2a65a", "#f7c899", "#d97f22")
LINE, MUTED = "#4a6291", "#59606b"
BEFORE = "#848b96"
COLORS = {
    "keep": "#4d5560", "refuse": "#4d5560", "squeeze": "#0b66d8", "channel": "#b34700",
    "tucker2": "#12855a", "pointwise": "#8f2f8f", "narrow": "#7d6200", "spatial": "#00707f",
}  # fmt: skip
GAP = 1.2  # between the parts of one layer
SLANT, RISE = 0.5, 0.3  # how a unit of depth is drawn


class Solid:
    """A cuboid C×H×W, its front's lower left corner at a point, `unit` long for each cell."""

    def __init__(self, at: Point, shape: tuple[int, int, int], unit: float) -> None:
        self.at, self.shape, self.unit = at, shape, unit

    @property
    def width(self) -> float:
        """From its left to its right end."""
        depth, _, wide = self.shape
        return (wide + SLANT * depth) * self.unit

    def place(self, x: float, y: float, z: float) -> Point:
        """A point inside, counted in cells from the lower left front corner: right, up, backward."""
        return (
            self.at[0] + (x + SLANT * z) * self.unit,
            self.at[1] - (y + RISE * z) * self.unit,
        )

    def faces(self, colors: tuple[str, str, str] = FACES, line: str = LINE) -> list[Shape]:
        """The three sides that are seen."""
        depth, high, wide = self.shape
        front = ((0, 0, 0), (wide, 0, 0), (wide, high, 0), (0, high, 0))
        top = ((0, high, 0), (wide, high, 0), (wide, high, depth), (0, high, depth))
        side = ((wide, 0, 0), (wide, 0, depth), (wide, high, depth), (wide, high, 0))
        return [
            Shape(tuple(self.place(*corner) for corner in face), color, line)
            for face, color in zip((front, top, side), colors, strict=True)
        ]

    def grid(self) -> list[Shape]:
        """The lines between cells, on the sides that are seen."""
        depth, high, wide = self.shape
        ends = [((x, 0, 0), (x, high, 0)) for x in range(1, wide)]
        ends += [((x, high, 0), (x, high, depth)) for x in range(1, wide)]
        ends += [((0, y, 0), (wide, y, 0)) for y in range(1, high)]
        ends += [((wide, y, 0), (wide, y, depth)) for y in range(1, high)]
        ends += [((0, high, z), (wide, high, z)) for z in range(1, depth)]
        ends += [((wide, 0, z), (wide, high, z)) for z in range(1, depth)]
        return [Shape((self.place(*a), self.place(*b)), None, LINE, 0.6) for a, b in ends]

    def label(self, below: float = 22, size: float = 15) -> Label:
        """Its lengths as height × width × channels, below it."""
        depth, high, wide = self.shape
        at = (self.at[0] + wide * self.unit / 2, self.at[1] + below)
        return Label(at, f"{high}×{wide}×{depth}", size)


def one_pixel(plan: Plan | None = None) -> Drawing:
    """5×5×6 ∗ 1×1×6 → 5×5×1: one pixel's column and the filter make one value of the map."""
    unit = 26.0
    volume = Solid((0, 0), (6, 5, 5), unit)
    drawing = Drawing("A 1×1 convolution: 5×5×6 ∗ 1×1×6 → 5×5×1")
    drawing.parts += [*volume.faces(), *volume.grid(), volume.label()]
    # The column of the upper right pixel lies open to three sides.
    x, y = 4, 4
    column = Solid(volume.place(x, y, 0), (6, 1, 1), unit)
    drawing.parts += [*column.faces(LIT, "#8a4b0c"), *column.grid()]
    middle = -2.5 * unit
    filter_ = Solid((volume.width + 70, middle + unit / 2), (6, 1, 1), unit)
    drawing.parts += [
        Label((volume.width + 34, middle + 8), "∗", 30),
        *filter_.faces(("#c9b8ef", "#e2d9f7", "#a48bdc"), "#5b3fa0"), *filter_.grid(),
        Label((filter_.at[0] + filter_.width / 2, 22), "1×1×6", 15),
    ]  # fmt: skip
    start = filter_.at[0] + filter_.width + 66
    result = Solid((start, 0), (1, 5, 5), unit)
    cell = Solid(result.place(x, y, 0), (1, 1, 1), unit)
    drawing.parts += [
        Label((start - 34, middle + 8), "=", 28), *result.faces(), *result.grid(),
        *cell.faces(LIT, "#8a4b0c"), result.label(),
    ]  # fmt: skip
    said = (
        (2.5 * unit, "input"), (filter_.at[0] + filter_.width / 2, "one filter"),
        (start + 2.5 * unit, "one output map"),
    )  # fmt: skip
    drawing.parts += [Label((at, 42), text, 13, color=MUTED) for at, text in said]
    return drawing


def bottleneck(plan: Plan | None = None) -> Drawing:
    """The worked example: a 5×5 convolution alone, and with a 1×1 convolution before it, to scale."""
    found = compare(
        (START["c"], START["h"], START["w"]), (START["out"], START["h"], START["w"]), START["kernel"],
        width=START["width"], latency=False,
    )  # fmt: skip
    drawing = Drawing("A bottleneck before a 5×5 convolution")
    direct, before = found["direct"], found["bottleneck_before"]
    _chain(drawing, 0, [START["c"], START["out"]], ["5×5"], direct)
    _chain(drawing, 262, [START["c"], START["width"], START["out"]], ["1×1", "5×5"], before)
    return drawing


def _chain(
    drawing: Drawing, y: float, channels: list[int], kernels: list[str], cost: Variant
) -> None:
    """Volumes in a row with the convolutions between them, and what they cost."""
    unit, gap, x = 3.2, 74.0, 0.0
    for index, depth in enumerate(channels):
        if index:
            drawing.parts += _arrow((x + 8, y - 30), (x + gap - 10, y - 30), kernels[index - 1])
            x += gap
        solid = Solid((x, y), (depth, START["h"], START["w"]), unit)
        at = (x + START["w"] * unit / 2, y + 20)
        shape = Label(at, f"{depth}×{START['h']}×{START['w']}", 13)
        drawing.parts += [*solid.faces(), shape]
        x += solid.width
    said = f"{count(cost.params)} parameters, {count(cost.macs)} MACs"
    drawing.parts.append(Label((0, y + 46), said, 15, anchor="start"))


def _arrow(start: Point, end: Point, text: str) -> list[Shape | Label]:
    (x, y) = end
    head = ((x + 8, y), (x - 1, y - 5), (x - 1, y + 5))
    return [
        Shape((start, end), None, MUTED, 1.4), Shape(head, MUTED, None),
        Label(((start[0] + x) / 2, y - 9), text, 14),
    ]  # fmt: skip


def before_after(plan: Plan | None = None) -> Drawing:
    """A network before and after slimming: the MACs of every layer, to scale; the demo's by default."""
    plan = slimmed_demo().plan if plan is None else plan
    drawing = Drawing("A network before and after slimming: multiply–accumulates of each layer")
    layers = [d for d in plan.decisions if d.conv is not None]
    most = max((max(d.macs_before, d.macs_after) for d in layers), default=1) or 1
    wide, y = 420.0, 0.0
    for decision in layers:
        drawing.parts += _bars(decision, y, wide / most)
        y += 27
    rest = share(plan.macs_after, plan.macs_before) or "100 %"
    said = f"{count(plan.macs_before)} MACs before, {count(plan.macs_after)} after ({rest})"
    drawing.parts.append(Label((0, y + 16), said, 14, anchor="start"))
    legend = [(BEFORE, "before", False)]
    legend += [(COLORS[f], form_title(f), False) for f in dict.fromkeys(d.form for d in layers)]
    if any(added for d in layers for _, added in _parts(d)):
        legend.append((BEFORE, "paler: 1×1 parts that were added", True))
    for index, (color, title, pale) in enumerate(legend):
        at = y + 40 + 20 * index
        drawing.parts += [
            _bar((0, at - 10), 14, 11, color, pale), Label((22, at), title, 12.5, anchor="start"),
        ]  # fmt: skip
    return drawing


def _bars(decision: Decision, y: float, scale: float) -> list[Shape | Label]:
    """Gray before, the parts of what stands there now below it."""
    assert decision.conv is not None
    name = layer_name(decision.layer)
    shown = name if len(name) < 26 else f"…{name[-24:]}"
    drawn: list[Shape | Label] = [
        Label((-8, y + 13), shown, 12, "end", MUTED),
        _bar((0, y), decision.macs_before * scale, 5, BEFORE),
    ]
    parts, x = _parts(decision), 0.0
    for index, (macs, added) in enumerate(parts):
        gap = GAP if index + 1 < len(parts) else 0  # it tells parts of one color apart
        drawn.append(_bar((x, y + 7), macs * scale - gap, 11, COLORS[decision.form], pale=added))
        x += macs * scale
    return drawn


def _parts(decision: Decision) -> list[tuple[int, bool]]:
    """MACs of each convolution that stands there now, and whether it is a 1×1 that was added."""
    conv, shaped = decision.conv, decision.shaped
    if decision.form in UNCHANGED or conv is None or shaped is None:
        return [(decision.macs_after, False)]
    return [
        (part.macs(decision.places), part.conv.pointwise and not conv.pointwise)
        for part in FORMS[decision.form].parts(shaped, decision.ranks)
    ]


def _bar(at: Point, width: float, height: float, color: str, pale: bool = False) -> Shape:
    (x, y), width = at, max(width, 0.6)
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    return Shape(corners, mixed(color) if pale else color, color, 0.6)


def mixed(color: str, share: float = 0.4) -> str:
    """A color with white: so much of it.

    >>> mixed("#0000ff", 0.5)
    '#8080ff'
    """
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - share * (255 - part)):02x}" for part in parts)


FIGURES: dict[str, Callable[[Plan | None], Drawing]] = {
    "one-pixel": one_pixel,
    "bottleneck": bottleneck,
    "before-after": before_after,
}


def figure(name: str, plan: Plan | None = None) -> Drawing:
    """The picture of this name; `plan` is what before-after draws.

    Raises OutputError with the names that there are.
    """
    if name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise OutputError(
            f"no figure is called {name!r}{hint}: there are {', '.join(FIGURES)}, each as .svg or .png, as "
            "in --figure one-pixel.svg"
        )
    return FIGURES[name](plan)


def write_figure(path: str | Path, plan: Plan | None = None) -> Path:
    """Write the picture that the file's name says, such as one-pixel.svg or bottleneck.png."""
    path = Path(path)
    return figure(path.stem, plan).save(path)
