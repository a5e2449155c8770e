"""The times of layers and of their forms in one runtime: measured, interpolated between, kept on disk."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onebyone.conv import ConvSpec
from onebyone.errors import OutputError
from onebyone.exporting.targets import TARGETS
from onebyone.files import json_text, write_text
from onebyone.forms import FORMS
from onebyone.measurement.roofline import cache_folder, processor_name
from onebyone.measurement.timing import Samples, interleave
from onebyone.pacing.graphs import EAGER, opened
from onebyone.pacing.sites import Site

SCHEMA = "onebyone.timings/1"
TOGETHER = 6  # candidates that take turns with the layer itself
SECONDS, LEAST, MOST = 0.25, 7, 60
NOISY = 0.3  # of the median, between the quartiles of the layer itself
GRID = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the channels: ranks that are timed
COARSE = (0.125, 0.25, 0.5, 0.75)  # where two ranks are combined
STEPS = (1, 2, 4, 8, 16)
FLAT = 0.04  # times within a step differ by no more than this
PROBE = Site(
    ConvSpec(64, 64, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), (28, 28), activation="relu"
)
PROBED = range(17, 33)

Ranks = tuple[int, ...]


@dataclass
class Times:
    """What is known of one site: milliseconds of the layer itself, and of forms in parts of that."""

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
            self.measure(site, _grid(site.conv, self.step))
        progress(1.0)

    def measure(self, site: Site, candidates: Sequence[tuple[str, Ranks]]) -> None:
        """Time candidates at a site, a few at a time, in turn with the layer itself; keep the times."""
        known = self.times.setdefault(site.key, Times(0.0, {}))
        for start in range(0, max(len(candidates), 1), TOGETHER):
            group = candidates[start : start + TOGETHER]
            keep_ms, ratios = self._clocked(site, group)
            known.keep_ms = min(known.keep_ms or keep_ms, keep_ms)
            for (form, ranks), ratio in ratios.items():
                known.ratios.setdefault(form, {})[ranks] = ratio
        self._write()

    def _clocked(
        self, site: Site, group: Sequence[tuple[str, Ranks]]
    ) -> tuple[float, dict[tuple[str, Ranks], float]]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            calls: dict[str, Callable[[], object]] = {
                "keep": opened(self.runtime, site, [site.conv], Path(folder), self.threads)
            }
            names = {f"{form} {ranks}": (form, ranks) for form, ranks in group}
            for name, (form, ranks) in names.items():
                parts = [part.conv for part in FORMS[form].parts(site.conv, ranks)]
                parts[-1] = replace(parts[-1], bias=site.conv.bias)
                calls[name] = opened(self.runtime, site, parts, Path(folder), self.threads)
            self.measured += len(calls)
            samples = self._quietest(calls)
        return samples.quartiles("keep").median, {
            pair: samples.ratio(name, "keep").median for name, pair in names.items()
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

    def milliseconds(self, site: Site, form: str, ranks: Ranks) -> float:
        """The time of a form at a site; between measured ranks by interpolation on the steps."""
        times = self.times[site.key]
        if form == "keep":
            return times.keep_ms
        found = times.ratios.get(form, {})
        stepped = tuple(
            min(self.step * ceil(r / self.step), c)
            for r, c in zip(ranks, FORMS[form].full(site.conv), strict=True)
        )
        if ranks in found:
            return found[ranks] * times.keep_ms
        if not found:
            return float("inf")
        return interpolated(found, stepped) * times.keep_ms

    def known(self, site: Site, form: str, ranks: Ranks) -> bool:
        """Whether this very candidate was timed."""
        return form == "keep" or ranks in self.times[site.key].ratios.get(form, {})


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


def interpolated(found: Mapping[Ranks, float], ranks: Ranks) -> float:
    """The value at these ranks: linear between the nearest measured ones, along each axis.

    Beyond the largest the slope goes on, below the smallest the value stays: a layer is never taken
    to be faster than what was measured.
    """
    if len(ranks) == 1:
        return _line({r[0]: v for r, v in found.items()}, ranks[0])
    rows: dict[int, dict[int, float]] = {}
    for (first, second), value in found.items():
        rows.setdefault(first, {})[second] = value
    most = max(map(len, rows.values()))
    whole = {first: row for first, row in rows.items() if len(row) >= most - 1 or len(row) > 1}
    return _line({first: _line(row, ranks[1]) for first, row in whole.items()}, ranks[0])


def _line(points: Mapping[int, float], at: int) -> float:
    known = sorted(points)
    values = [points[r] for r in known]
    if at > known[-1] and len(known) > 1:
        rise = (values[-1] - values[-2]) / (known[-1] - known[-2])
        return values[-1] + max(rise, 0.0) * (at - known[-1])
    return float(np.interp(at, known, values))


def _grid(conv: ConvSpec, step: int) -> list[tuple[str, Ranks]]:
    """The candidates that are timed: a few ranks of each form that suits the layer."""
    found: list[tuple[str, Ranks]] = []
    for name, form in FORMS.items():
        if not form.ranks or form.refuse(conv) is not None:
            continue
        sides = [
            _rungs(size, step, GRID if len(form.ranks) == 1 else COARSE) for size in form.full(conv)
        ]
        found += [
            (name, tuple(int(sides[i][k]) for i, k in enumerate(index)))
            for index in np.ndindex(*(len(s) for s in sides))
        ]
    return found


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
    if not all(isfinite(v) and v > 0 for v in every) or not set(ratios) <= set(FORMS):
        raise ValueError("a time is no positive number")
    return Times(keep, ratios)
