"""What may stand at a site: the layer, a form of it, either with fewer channels; and which are timed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from onebyone.conv import ConvSpec
from onebyone.forms import FORMS, KEPT
from onebyone.pacing.sites import Site

GRID = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the channels: ranks that are timed
COARSE = (0.125, 0.25, 0.5, 0.75)  # where two ranks are combined
WIDTHS = (0.25, 0.5, 0.75, 1.0)  # of the channels on each side that is narrowed
NARROW = "narrow"  # the row of the layer itself with fewer channels; its ranks are c_out and c_in
ROW = re.compile(r"(\w+)(?: (\d+) to (\d+))?")  # as `Way.place` names it: form, channels in and out

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Way:
    """What may stand at a site: a form of the layer, of `conv` where it has fewer channels there."""

    form: str
    ranks: Ranks
    conv: ConvSpec

    @staticmethod
    def at(site: Site, form: str, ranks: Ranks, conv: ConvSpec | None = None) -> Way:
        """With the bias that the layer has at the site."""
        return Way(form, ranks, replace(conv or site.conv, bias=site.conv.bias))

    def place(self, site: Site) -> tuple[str, Ranks]:
        """The row and the ranks under which its time is kept."""
        c_in, c_out = self.conv.c_in, self.conv.c_out
        own = self.conv == site.conv
        if self.form in KEPT:
            return ("keep", ()) if own else (NARROW, (c_out, c_in))
        return (self.form if own else f"{self.form} {c_in} to {c_out}", self.ranks)

    def parts(self) -> list[ConvSpec]:
        """The layers it is made of; the bias as at the site."""
        parts = [part.conv for part in FORMS[self.form].parts(self.conv, self.ranks)]
        return [*parts[:-1], replace(parts[-1], bias=self.conv.bias)]


def grid_of(site: Site, step: int) -> list[Way]:
    """The candidates that are timed: a few ranks of each form that suits the layer."""
    found: list[Way] = []
    for name, form in FORMS.items():
        if not form.ranks or form.refuse(site.conv) is not None:
            continue
        sides = [
            _rungs(size, step, GRID if len(form.ranks) == 1 else COARSE)
            for size in form.full(site.conv)
        ]
        found += [Way.at(site, name, ranks) for ranks in product(*sides)]
    return found


def widths_of(site: Site, conv: ConvSpec, step: int) -> list[Way]:
    """The layer at a few widths of the sides on which `conv` has fewer channels."""
    own = site.conv
    if own.depthwise:
        rungs = _rungs(own.c_out, step, WIDTHS)[:-1]
        return [Way.at(site, NARROW, (), replace(own, c_in=n, c_out=n, groups=n)) for n in rungs]
    sides = [
        _rungs(most, step, WIDTHS) if now < most else [most]
        for now, most in ((conv.c_out, own.c_out), (conv.c_in, own.c_in))
    ]
    return [
        Way.at(site, NARROW, (), replace(own, c_out=c_out, c_in=c_in))
        for c_out, c_in in product(*sides)
        if (c_out, c_in) != (own.c_out, own.c_in)
    ]


def _rungs(size: int, step: int, parts: Sequence[float]) -> list[int]:
    step = step if size >= 4 * step else 1
    return sorted({min(max(step * round(p * size / step), step), size) for p in parts})
