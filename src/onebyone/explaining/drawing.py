"""Pictures as plain shapes and labels, written as SVG or PNG."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from io import BytesIO
from math import cos, radians, sin
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onebyone.errors import OutputError
from onebyone.files import staged, write_text
from onebyone.report.markup import Markup, join, tag

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]
LEADS = {"start": 0.0, "middle": 0.5, "end": 1.0}  # how much of a text lies before its anchor
STROKES = {"×": (45, 135), "∗": (30, 90, 150)}  # angles of what each is made of, in degrees
STROKED = 0.56  # width of such a sign, in sizes of the font
INK, PAPER = "#1b1e24", "#ffffff"
FONT = "system-ui, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
SCALE = 3  # pixels of a PNG for each unit of a drawing
SMOOTH = 2  # times finer that it is drawn first
MARGIN = 12


@dataclass(frozen=True)
class Shape:
    """A polygon, or a line where it is not filled and has two points."""

    points: tuple[Point, ...]
    fill: str | None = None
    stroke: str | None = INK
    width: float = 1.0


@dataclass(frozen=True)
class Label:
    """A line of text whose baseline has its middle, its start or its end at a point."""

    at: Point
    text: str
    size: float = 14
    anchor: Anchor = "middle"
    color: str = INK


@dataclass
class Drawing:
    """Shapes and labels, drawn in order; the title says what is to be seen."""

    title: str
    parts: list[Shape | Label] = field(default_factory=list)

    def box(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of all that is drawn, with a margin around it."""
        points = [p for part in self.parts for p in _corners(part)]
        left, top = (min(p[i] for p in points) - MARGIN for i in (0, 1))
        right, bottom = (max(p[i] for p in points) + MARGIN for i in (0, 1))
        return left, top, right - left, bottom - top

    def svg(self) -> str:
        """An SVG file: on any background, scaling without loss, its text as text."""
        left, top, width, height = (f"{v:.1f}" for v in self.box())
        body = join(tag("title", self.title), *map(_element, self.parts))
        namespace = "http://www.w3.org/2000/svg"
        root = tag("svg", body, xmlns=namespace, viewBox=f"{left} {top} {width} {height}", width=width,
                   height=height, role="img", font_family=FONT)  # fmt: skip
        return f"{root}\n"

    def png(self) -> bytes:
        """A PNG file on white, three pixels a unit."""
        from PIL import Image, ImageDraw

        left, top, width, height = self.box()
        fine = SCALE * SMOOTH
        image = Image.new("RGB", (round(width * fine), round(height * fine)), PAPER)
        pen = ImageDraw.Draw(image)
        for part in self.parts:
            if isinstance(part, Label):
                at = ((part.at[0] - left) * fine, (part.at[1] - top) * fine)
                _write(pen, part, at, part.size * fine)
                continue
            points = [((x - left) * fine, (y - top) * fine) for x, y in part.points]
            if part.fill:
                pen.polygon(points, fill=part.fill)
            if part.stroke:
                closed = [*points, points[0]] if len(points) > 2 else points
                pen.line(closed, fill=part.stroke, width=round(part.width * fine), joint="curve")
        size = (round(width * SCALE), round(height * SCALE))
        file = BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(file, "PNG", optimize=True)
        return file.getvalue()

    def save(self, path: str | Path) -> Path:
        """Write it as .svg or .png, whole or not at all; OutputError for other suffixes."""
        path = Path(path)
        if path.suffix.lower() == ".svg":
            write_text(path, self.svg())
        elif path.suffix.lower() == ".png":
            with staged(path) as file:
                file.write_bytes(self.png())
        else:
            raise OutputError(f"{path}: a figure is an .svg or a .png file")
        return path


def _write(pen: ImageDraw, label: Label, at: Point, size: float) -> None:
    """A label in pixels; the signs that the font lacks are drawn as strokes."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    pieces = [p for p in re.split("([×∗])", label.text.replace("…", "...")) if p]
    widths = [STROKED * size if p in STROKES else font.getlength(p) for p in pieces]
    x, y = at[0] - LEADS[label.anchor] * sum(widths), at[1]
    for piece, width in zip(pieces, widths, strict=True):
        if piece not in STROKES:
            pen.text((x, y), piece, fill=label.color, font=font, anchor="ls")
        for angle in STROKES.get(piece, ()):
            dx, dy = (0.2 * size * f(radians(angle)) for f in (cos, sin))
            middle = (x + width / 2, y - 0.32 * size)
            ends = [(middle[0] + s * dx, middle[1] + s * dy) for s in (-1, 1)]
            pen.line(ends, fill=label.color, width=max(round(size * 0.075), 1))
        x += width


def _corners(part: Shape | Label) -> tuple[Point, ...]:
    if isinstance(part, Shape):
        return part.points
    (x, y), wide = part.at, 0.56 * part.size * len(part.text)
    start = x - LEADS[part.anchor] * wide
    return (start, y - part.size), (start + wide, y + 0.3 * part.size)


def _element(part: Shape | Label) -> Markup:
    if isinstance(part, Label):
        x, y = (f"{v:.1f}" for v in part.at)
        return tag("text", part.text, x=x, y=y, font_size=f"{part.size:g}", text_anchor=part.anchor,
                   fill=part.color)  # fmt: skip
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in part.points)
    kind = "polygon" if len(part.points) > 2 else "polyline"
    return tag(kind, points=points, fill=part.fill or "none", stroke=part.stroke or "none",
               stroke_width=f"{part.width:g}", stroke_linejoin="round")  # fmt: skip
