"""The times of layers and of their forms in one runtime: measured, interpolated between, kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
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
from onebyone.pacing.caches import reader_of
from onebyone.pacing.graphs import EAGER, opened
from onebyone.pacing.interpolating import STEPS, interpolated, put, step_of
from onebyone.pacing.sites import Site
from onebyone.pacing.ways import NARROW, ROW, Ranks, Way, grid_of, widths_of

SCHEMA = "onebyone.timings/2"
TOGETHER = 6  # candidates that take turns with the layer itself
SECONDS, LEAST, MOST = 0.25, 7, 60
NOISY = 0.3  # of the median, between the quartiles of the layer itself
PROBE = Site(
    ConvSpec(64, 64, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), (28, 28), activation="relu"
)
PROBED = range(17, 33)
MOST_RANK = 2**31  # more channels than any layer has
PLACES = Places(1, 1, 1)  # weights do not depend on them


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

    Before each call so many mebibytes are read (`between`), as the rest of a network would: its
    weights alone can fill the caches, and a large layer that finds its own there is up to a third
    faster than it is in the network. `notes` has sentences for people: a damaged cache, a machine
    too noisy.
    """

    def __init__(
        self,
        runtime: str,
        threads: int,
        between: int = 0,
        *,
        again: bool = False,
        path: Path | None = None,
    ) -> None:
        self.runtime, self.threads = runtime, threads
        self._read_memory = reader_of(between)
        self.notes: list[str] = []
        version = f"PyTorch {torch.__version__}" if runtime == EAGER else TARGETS[runtime].version
        self.key = {
            "processor": processor_name(torch.device("cpu")), "runtime": runtime,
            "version": version, "threads": threads, "dtype": "float32", "between": between,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        self.path = path or cache_folder() / f"timings-{digest}.json"
        self.times: dict[str, Times] = {}
        self.step = 0
        self.measured = 0  # calls of the clock, for those who count
        self.folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.missed: dict[
            tuple[str, str], tuple[int, float]
        ] = {}  # what `_missed` found, of how many
        if not again:
            self._read()

    # --- the table on disk

    def _read(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError:
            return
        except ValueError as error:
            self._damaged(error)
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
            self._damaged(error)
            return
        self.step, self.times = step, times

    def _damaged(self, error: Exception) -> None:
        self.notes.append(f"the table of timings {self.path} is damaged ({error}): made anew")

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
            self.measure(site, grid_of(site, self.step))
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
        # A layer comes back with every few of its candidates: some runtimes take seconds to write it.
        whole = Path(self.folder, hashlib.sha256(site.key.encode()).hexdigest())
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            calls: dict[str, Callable[[], object]] = {
                "keep": opened(self.runtime, site, [site.conv], whole, self.threads)
            }
            names = {" ".join(map(str, way.place(site))): way for way in group}
            for number, (name, way) in enumerate(names.items()):
                there, path = replace(site, conv=way.conv), Path(folder, str(number))
                calls[name] = opened(self.runtime, there, way.parts(), path, self.threads)
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
                calls, threads=self.threads, seconds=seconds, least=LEAST, most=MOST,
                before=self._read_memory,
            )  # fmt: skip
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
                path = Path(folder, str(rank))
                calls[str(rank)] = opened(self.runtime, PROBE, parts, path, self.threads)
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
        that what their weights say, which is hopeful, until some of them are timed: then the others
        are taken to miss that by as much.
        """
        times, own = self.times[site.key], site.conv
        conv = replace(conv or own, bias=own.bias)
        if form in KEPT:
            narrower = 1.0 if conv == own else self._narrower(site, conv)
            return np.full(len(ranks), narrower * times.keep_ms)
        shares = self._shares(site, form, ranks)
        if conv != own:
            shares = shares * _weights(form, own, (conv.c_in, conv.c_out), ranks)
            shares *= self._missed(site, form)
            row, _ = Way(form, (), conv).place(site)
            put(times.ratios.get(row, {}), ranks, shares)
        return shares * times.keep_ms

    def _missed(self, site: Site, form: str) -> float:
        """How many times longer a form of fewer channels took than its weights said, the median."""
        ratios = self.times[site.key].ratios
        rows = {row: found for row, found in ratios.items() if row.startswith(f"{form} ")}
        number = sum(map(len, rows.values()))
        known, factor = self.missed.get((site.key, form), (0, 1.0))
        if number != known:
            took: list[NDArray[np.float64]] = []
            for row, found in rows.items():
                c_in, c_out = map(int, row.split()[1::2])
                ranks = np.asarray(list(found), dtype=np.int64)
                shares = self._shares(site, form, ranks)
                said = shares * _weights(form, site.conv, (c_in, c_out), ranks)
                took.append(np.asarray(list(found.values())) / said)
            factor = float(np.median(np.concatenate(took)))
            self.missed[site.key, form] = number, factor
        return factor

    def _shares(self, site: Site, form: str, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Times in parts of the layer's own, of a form of all its channels."""
        row = self.times[site.key].ratios.get(form)
        if not row:
            return np.full(len(ranks), np.inf)
        found = interpolated(row, self._stepped(ranks, FORMS[form].full(site.conv)))
        put(row, ranks, found)
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
        at = self._stepped(np.asarray([sides]), whole)
        cut = [axis for axis in (0, 1) if sides[axis] < whole[axis]]
        if len(cut) == 1 or site.conv.depthwise:  # along one line of those that were timed
            axis, other = cut[0], 1 - cut[0]
            line = {
                w[axis : axis + 1]: ratio
                for w, ratio in (row | {whole: 1.0}).items()
                if site.conv.depthwise or w[other] == whole[other]
            }
            return float(interpolated(line, at[:, axis : axis + 1])[0])
        return float(interpolated(row | {whole: 1.0}, at)[0])

    def _stepped(self, ranks: NDArray[np.int64], most: Ranks) -> NDArray[np.int64]:
        """Ranks rounded up to the runtime's steps."""
        return np.minimum(self.step * -(-ranks // self.step), most)

    def _measure_widths(self, site: Site, conv: ConvSpec) -> None:
        """Time the layer with fewer channels on those sides where `conv` has fewer."""
        known = self.times[site.key].ratios.get(NARROW, {})
        wanted = [w for w in widths_of(site, conv, self.step) if w.place(site)[1] not in known]
        if wanted:
            self.measure(site, wanted)

    def known(self, site: Site, way: Way) -> bool:
        """Whether this very candidate was timed."""
        row, ranks = way.place(site)
        return row == "keep" or ranks in self.times[site.key].ratios.get(row, {})


def _weights(
    form: str, own: ConvSpec, channels: tuple[int, int], ranks: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The weights (n,) of a form of a layer with so many channels in and out, in parts of those of
    the same form of all its own."""
    made = FormCosts(form, own, PLACES).at_ranks(ranks)
    narrow, whole = (cost_at(made, *c)[:, 1] for c in (channels, (own.c_in, own.c_out)))
    return np.asarray(narrow / whole)


def _times(values: Any) -> Times:
    keep = float(values["keep_ms"])
    ratios = {
        str(form): {
            tuple(int(r) for r in ranks.split(",")): float(ratio) for ranks, ratio in found.items()
        }
        for form, found in values["ratios"].items()
    }
    every = [keep, *(v for found in ratios.values() for v in found.values())]
    known = all((at := ROW.fullmatch(row)) and at[1] in FORMS for row in ratios)
    if not known or not all(isfinite(v) and v > 0 for v in every):
        raise ValueError("a time is no positive number")
    for row, found in ratios.items():
        sides = 2 if row == NARROW else len(FORMS[row.split()[0]].ranks)
        if not all(
            len(ranks) == sides and all(0 < r < MOST_RANK for r in ranks) for ranks in found
        ):
            raise ValueError(f"ranks of {row} are not {sides} positive numbers")
    return Times(keep, ratios)
