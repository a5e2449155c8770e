"""The times of layers and of their forms in one runtime: measured, interpolated between, kept on disk."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.conv import ConvSpec, Places
from onebyone.errors import OutputError
from onebyone.exporting.targets import TARGETS
from onebyone.files import json_text, write_text
from onebyone.form_costs import FormCosts, cost_at
from onebyone.forms import FORMS, KEPT
from onebyone.measurement.roofline import cache_folder, processor_name
from onebyone.measurement.timing import Samples, interleave
from onebyone.pacing.graphs import EAGER, opened
from onebyone.pacing.sites import Site

SCHEMA = "onebyone.timings/2"
TOGETHER = 6  # candidates that take turns with the layer itself
SECONDS, LEAST, MOST = 0.25, 7, 60
NOISY = 0.3  # of the median, between the quartiles of the layer itself
GRID = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the channels: ranks that are timed
COARSE = (0.125, 0.25, 0.5, 0.75)  # where two ranks are combined
WIDTHS = (0.25, 0.5, 0.75, 1.0)  # of the channels on each side that is narrowed
STEPS = (1, 2, 4, 8, 16)
FLAT = 0.04  # times within a step differ by no more than this
PROBE = Site(
    ConvSpec(64, 64, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), (28, 28), activation="relu"
)
PROBED = range(17, 33)
PLACES = Places(1, 1, 1)  # weights do not depend on them

Ranks = tuple[int, ...]
NARROW = "narrow"  # the row of the layer itself with fewer channels; its ranks are c_out and c_in


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


@dataclass
class Times:
    """What is known of one site: milliseconds of the layer itself, and of forms in parts of that.

    `ratios` have a row for each form, one for the layer with fewer channels, and one for each form
    and number of channels that was timed (`Way.place`).
    """

    keep_ms: float
    ratios: dict[str, dict[Ranks, float]]


class Timetable:
    """Times in one runtime on so many threads; what is measured is kept in the cache folder.

    `notes` has sentences for people: a damaged cache, a machine too noisy.
    """

    def __init__(
        self, runtime: str, threads: int, *, again: bool = False, path: Path | None = None
    ) -> None:
        self.runtime, self.threads = runtime, threads
        self.notes: list[str] = []
        version = f"PyTorch {torch.__version__}" if runtime == EAGER else TARGETS[runtime].version
        self.key = {
            "processor": processor_name(torch.device("cpu")), "runtime": runtime,
            "version": version, "threads": threads, "dtype": "float32",
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        self.path = path or cache_folder() / f"timings-{digest}.json"
        self.times: dict[str, Times] = {}
        self.step = 0
        self.measured = 0  # calls of the clock, for those who count
        if not again:
            self._read()

    # --- the table on disk

    def _read(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError:
            return
        try:
            values = json.loads(text)
            if values["schema"] != SCHEMA or values["key"] != self.key:
                raise ValueError("it is of another kind")
            step = int(values["step"])
            times = {str(k): _times(v) for k, v in values["times"].items()}
            if step not in (0, *STEPS):
                raise ValueError(f"its step is {step}")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.notes.append(f"the table of timings {self.path} is damaged ({error}): made anew")
            return
        self.step, self.times = step, times

    def _write(self) -> None:
        rows = {
            key: {
                "keep_ms": times.keep_ms,
                "ratios": {
                    form: {",".join(map(str, ranks)): ratio for ranks, ratio in found.items()}
                    for form, found in times.ratios.items()
                },
            }
            for key, times in self.times.items()
        }
        values = {"schema": SCHEMA, "key": self.key, "step": self.step, "times": rows}
        with suppress(OutputError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json_text(values))

    # --- measuring

    def prepare(
        self, sites: Iterable[Site], progress: Callable[[float], None] = lambda done: None
    ) -> None:
        """Time the layer and a few ranks of each form for every site that is not known yet."""
        if not self.step:
            self.step = self._find_step()
            self._write()
        wanted = {site.key: site for site in sites if site.key not in self.times}
        for index, site in enumerate(wanted.values()):
            progress(index / len(wanted))
            self.measure(site, _grid(site, self.step))
        progress(1.0)

    def measure(self, site: Site, ways: Sequence[Way]) -> None:
        """Time candidates at a site, a few at a time, in turn with the layer itself; keep the times."""
        known = self.times.setdefault(site.key, Times(0.0, {}))
        for start in range(0, max(len(ways), 1), TOGETHER):
            keep_ms, ratios = self._clocked(site, ways[start : start + TOGETHER])
            known.keep_ms = min(known.keep_ms or keep_ms, keep_ms)
            for way, ratio in ratios.items():
                row, ranks = way.place(site)
                known.ratios.setdefault(row, {})[ranks] = ratio
        self._write()

    def _clocked(self, site: Site, group: Sequence[Way]) -> tuple[float, dict[Way, float]]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            calls: dict[str, Callable[[], object]] = {
                "keep": opened(self.runtime, site, [site.conv], Path(folder), self.threads)
            }
            names = {" ".join(map(str, way.place(site))): way for way in group}
            for name, way in names.items():
                there = replace(site, conv=way.conv)
                calls[name] = opened(self.runtime, there, way.parts(), Path(folder), self.threads)
            self.measured += len(calls)
            samples = self._quietest(calls)
        return samples.quartiles("keep").median, {
            way: samples.ratio(name, "keep").median for name, way in names.items()
        }

    def _quietest(self, calls: Mapping[str, Callable[[], object]]) -> Samples:
        """Samples in which the layer itself is steady; longer ones where the machine is noisy."""
        seconds = SECONDS
        while True:
            samples = interleave(
                calls, threads=self.threads, seconds=seconds, least=LEAST, most=MOST
            )
            own = samples.quartiles("keep")
            if own.high - own.low <= NOISY * own.median:
                return samples
            if seconds > 4 * SECONDS:
                self._noisy()
                return samples
            seconds *= 3

    def _noisy(self) -> None:
        said = (
            "the machine was noisy while layers were timed, so some choices may not be the best; the "
            "whole network is timed on its own"
        )
        if said not in self.notes:
            self.notes.append(said)

    def _find_step(self) -> int:
        """The step of ranks that the runtime likes: ranks within a step take as long as its end."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            calls: dict[str, Callable[[], object]] = {}
            for rank in PROBED:
                parts = [replace(PROBE.conv, c_out=rank)]
                calls[str(rank)] = opened(self.runtime, PROBE, parts, Path(folder), self.threads)
            self.measured += len(calls)
            samples = interleave(
                calls, threads=self.threads, seconds=4 * SECONDS, least=LEAST, most=MOST
            )
        best = {int(n): min(v) for n, v in samples.milliseconds.items()}
        return step_of(best)

    # --- asking

    def milliseconds(
        self, site: Site, form: str, ranks: NDArray[np.int64], conv: ConvSpec | None = None
    ) -> NDArray[np.float64]:
        """The times (n,) of a form at n pairs of ranks (n, sides) at a site, infinite if not known.

        Between measured ranks they are interpolated on the steps. A layer with fewer channels
        (`conv`) is timed at a few widths when it is first asked for; its forms are taken to save by
        that what their weights say, and to fall short of it as far as the layer itself does, until
        they are timed themselves.
        """
        times, own = self.times[site.key], site.conv
        conv = replace(conv or own, bias=own.bias)
        narrower = 1.0 if conv == own else self._narrower(site, conv)
        if form in KEPT:
            return np.full(len(ranks), narrower * times.keep_ms)
        shares = self._shares(site, form, ranks)
        if conv != own:
            made = FormCosts(form, own, PLACES).at_ranks(ranks)
            weights = [cost_at(made, c.c_in, c.c_out)[:, 1] for c in (conv, own)]
            beyond = narrower * own.params / conv.params
            shares = shares * weights[0] / weights[1] * beyond
            row, _ = Way(form, (), conv).place(site)
            _put(times.ratios.get(row, {}), ranks, shares)
        return shares * times.keep_ms

    def _shares(self, site: Site, form: str, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Times in parts of the layer's own, of a form of all its channels."""
        row = self.times[site.key].ratios.get(form)
        if not row:
            return np.full(len(ranks), np.inf)
        stepped = self.step * -(-ranks // self.step)
        found = interpolated(row, np.minimum(stepped, FORMS[form].full(site.conv)))
        _put(row, ranks, found)
        return found

    def _narrower(self, site: Site, conv: ConvSpec) -> float:
        """The time of the layer with fewer channels, in parts of its own."""
        _, sides = Way("keep", (), conv).place(site)
        row = self.times[site.key].ratios.get(NARROW, {})
        if sides not in row:
            self._measure_widths(site, conv)
            row = self.times[site.key].ratios[NARROW]
        if sides in row:
            return row[sides]
        whole = (site.conv.c_out, site.conv.c_in)
        row = row | {whole: 1.0}
        at = np.minimum(self.step * -(-np.asarray([sides]) // self.step), whole)
        if site.conv.depthwise:
            row, at = {w[:1]: ratio for w, ratio in row.items()}, at[:, :1]
        return float(interpolated(row, at)[0])

    def _measure_widths(self, site: Site, conv: ConvSpec) -> None:
        """Time the layer with fewer channels on those sides where `conv` has fewer."""
        known = self.times[site.key].ratios.get(NARROW, {})
        wanted = [w for w in _widths(site, conv, self.step) if w.place(site)[1] not in known]
        if wanted:
            self.measure(site, wanted)

    def known(self, site: Site, way: Way) -> bool:
        """Whether this very candidate was timed."""
        row, ranks = way.place(site)
        return row == "keep" or ranks in self.times[site.key].ratios.get(row, {})


def step_of(milliseconds: Mapping[int, float]) -> int:
    """The largest step s such that ranks within a step take as long as the multiple of s above them.

    >>> step_of({r: float(-(-r // 8)) for r in range(17, 33)})
    8
    >>> step_of({r: float(r) for r in range(17, 33)})
    1
    """
    for step in reversed(STEPS):
        ends = {r: milliseconds.get(step * ceil(r / step)) for r in milliseconds}
        inside = [(milliseconds[r], end) for r, end in ends.items() if end is not None]
        if all(mine >= (1 - FLAT) * end for mine, end in inside):
            return step
    return 1


def interpolated(found: Mapping[Ranks, float], ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """The values (n,) at n pairs of ranks (n, sides): linear between the nearest measured ones.

    Beyond the largest the slope goes on, below the smallest the value stays: a layer is never taken
    to be faster than what was measured.
    """
    if ranks.shape[1] == 1:
        return _line({r[0]: v for r, v in found.items()}, ranks[:, 0])
    rows: dict[int, dict[int, float]] = {}
    for (first, second), value in found.items():
        rows.setdefault(first, {})[second] = value
    most = max(map(len, rows.values()))
    whole = {first: row for first, row in rows.items() if len(row) >= most - 1 or len(row) > 1}
    return _line({first: _line(row, ranks[:, 1]) for first, row in whole.items()}, ranks[:, 0])


def _line(points: Mapping[int, Any], at: NDArray[np.int64]) -> NDArray[np.float64]:
    """Along one axis: the points' values are numbers, or (n,) with one for each of `at`."""
    known = np.asarray(sorted(points))
    values = np.stack([np.broadcast_to(points[r], at.shape) for r in known.tolist()])
    if len(known) == 1:
        return values[0].copy()
    low = np.clip(np.searchsorted(known, at, side="right") - 1, 0, len(known) - 2)
    part = np.clip((at - known[low]) / (known[low + 1] - known[low]), 0, 1)
    each = np.arange(len(at))
    between = values[low, each] * (1 - part) + values[low + 1, each] * part
    rise = (values[-1] - values[-2]) / (known[-1] - known[-2])
    return between + np.maximum(rise, 0) * np.maximum(at - known[-1], 0)


def _put(row: Mapping[Ranks, float], ranks: NDArray[np.int64], into: NDArray[np.float64]) -> None:
    """What was measured in place of what was interpolated."""
    for own, value in row.items():
        into[(ranks == own).all(1)] = value


def _grid(site: Site, step: int) -> list[Way]:
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


def _widths(site: Site, conv: ConvSpec, step: int) -> list[Way]:
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


def _times(values: Any) -> Times:
    keep = float(values["keep_ms"])
    ratios = {
        str(form): {
            tuple(int(r) for r in ranks.split(",")): float(ratio) for ranks, ratio in found.items()
        }
        for form, found in values["ratios"].items()
    }
    every = [keep, *(v for found in ratios.values() for v in found.values())]
    forms = {row.partition(" ")[0] for row in ratios}
    if not all(isfinite(v) and v > 0 for v in every) or not forms <= set(FORMS):
        raise ValueError("a time is no positive number")
    return Times(keep, ratios)
