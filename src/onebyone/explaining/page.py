"""The interactive page as a whole: its frame, the screen that it opens on, and its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from onebyone.comparison import Comparison
from onebyone.explaining import bundle
from onebyone.explaining.bench import bench_json, measured_sentence
from onebyone.explaining.packing import data_block
from onebyone.explaining.photos import ASTRONAUT, Photo, built_in, shown
from onebyone.explaining.toy import toys_json
from onebyone.report.markup import Content, Markup, join, tag, text
from onebyone.report.page import asset, shell

SCREENS = 6


@dataclass(frozen=True)
class Opening:
    """The screen from 1 to 6 that the page opens on, and what its head says."""

    screen: int
    command: str
    source: str
    headline: str
    title: str


def page(
    opening: Opening,
    data: dict[str, Any],
    *,
    photo: Photo | None = None,
    timed: Comparison | None = None,
    notes: Sequence[str] = (),
    versus: Content = "",
) -> str:
    """One self-contained file. `data` holds `network` and `versus`, each where there is one.

    photo: that of the lessons, by default one that comes along; timed: the worked example of the cost
    bench, where it was measured; versus: what the last screen shows.
    """
    hidden = {f"hidden{i}": "" if i == opening.screen else "hidden" for i in range(1, SCREENS + 1)}
    body = Template(bundle.asset("app.html")).substitute(
        command=opening.command,
        source=text(opening.source),
        headline=text(opening.headline),
        measured=text(measured_sentence(timed)),
        versus=text(versus),
        notes=join(*(tag("p", _sentence(note)) for note in notes)),
        **hidden,
    )
    block = data_block(
        {"network": None, "versus": None}
        | data
        | {
            "toys": toys_json(), "photo": (photo or shown(*built_in(ASTRONAUT))).to_json(),
            "bench": bench_json(timed), "open": opening.screen,
        }
    )  # fmt: skip
    style = asset("report.css") + bundle.asset("app.css")
    script = bundle.script() + asset("table.js") * bool(versus)
    return shell(opening.title, style, script, Markup(body + block))


def _sentence(note: str) -> str:
    """A note as it stands on a page, where it has no prefix as on a terminal."""
    return f"{note[:1].upper()}{note[1:]}{'' if note.endswith(('.', '!', '?')) else '.'}"
