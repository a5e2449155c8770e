"""The clock: candidates timed in turn, round by round, and what the rounds say together."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch

from onebyone.errors import OneByOneError, is_number, is_whole

WARMUP = 2
MOST_THREADS = 256  # where there are fewer cores
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
SECONDS = 2.0  # for all candidates together
BUSY_CORES = 0.5  # work of others that is worth a note
WATCHED_SECONDS = 0.2  # in which the load before a run is looked at

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Quartiles:
    """The first quartile, the median and the third quartile of some values, in their unit."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Samples:
    """Milliseconds of every candidate: the i-th of each are of the same round.

    `notes` has a sentence where the machine was busy with other work before the run.
    """

    milliseconds: dict[str, tuple[float, ...]]
    warmup: int
    threads: int
    notes: tuple[str, ...] = ()

    @property
    def rounds(self) -> int:
        """How often each candidate was timed."""
        return len(next(iter(self.milliseconds.values())))

    def quartiles(self, name: str) -> Quartiles:
        """Of one candidate's milliseconds."""
        return quartiles(self.milliseconds[name])

    def ratio(self, name: str, to: str) -> Quartiles:
        """Of tᵢ(name) / tᵢ(to) over the rounds i.

        Slow spells of a machine last longer than a round and cancel within it, so this says more
        about two candidates than the quotient of their medians.
        """
        pairs = zip(self.milliseconds[name], self.milliseconds[to], strict=True)
        return quartiles([mine / other if other else float("inf") for mine, other in pairs])


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    threads: int = 1,
    device: torch.device | None = None,
    seconds: float = SECONDS,
    least: int = LEAST_ROUNDS,
    most: int = MOST_ROUNDS,
    warmup: int = WARMUP,
    before: Callable[[str], object] | None = None,
    after: Callable[[str], object] | None = None,
    clock: Clock = time.perf_counter,
) -> Samples:
    """Time candidates in turn, so that noise meets them alike.

    After `warmup` rounds that do not count, rounds go on until there are `least` and either
    `seconds` are over or there are `most`. Another candidate begins each round, since one finds the
    caches as the one before it left them. On an accelerator the clock is read when its queue is
    empty. `before(name)` and `after(name)` run around each call, warm-up too, outside the clock;
    what a candidate returns is freed outside it as well. `threads` CPU threads compute meanwhile,
    and the number before comes back. Raises OneByOneError for less than one thread, round or
    candidate.
    """
    for what, number in (("candidates", len(candidates)), ("rounds", least)):
        if number < 1:
            raise OneByOneError(f"nothing can be timed with {number} {what}: give 1 or more")
    names = list(candidates)
    found: dict[str, list[float]] = {name: [] for name in names}
    wait = synchronizer(device)
    notes = busy_notes()

    def run(name: str) -> float:
        if before:
            before(name)
        took = _timed_ms(candidates[name], wait, clock)
        if after:
            after(name)
        return took

    with cpu_threads(threads):
        for _ in range(warmup):
            for name in names:
                run(name)
        began, done = clock(), 0
        while done < least or (done < most and clock() - began < seconds):
            first = done % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(run(name))
            done += 1
    return Samples({n: tuple(v) for n, v in found.items()}, warmup, threads, notes)


def _timed_ms(candidate: Callable[[], object], wait: Callable[[], None], clock: Clock) -> float:
    wait()
    start = clock()
    kept = candidate()
    wait()
    took = clock() - start
    del kept  # not before the clock is read
    return 1000 * took


def quartiles(values: Sequence[float]) -> Quartiles:
    """Quartiles of one or more values, by linear interpolation between the ordered values.

    >>> quartiles([4.0, 1.0, 3.0, 2.0, 5.0])
    Quartiles(low=2.0, median=3.0, high=4.0)
    """
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


def as_seconds(value: Any) -> float:
    """How long to time: any number from 0 up; OneByOneError for what is none."""
    if not is_number(value) or not 0 <= value < inf:
        raise OneByOneError(f"seconds={value!r} does not fit: give a number of 0 or more")
    return float(value)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """So many CPU threads inside; the number before comes back. OneByOneError for less than 1."""
    most = max(MOST_THREADS, 4 * (os.cpu_count() or 1))
    if not is_whole(count) or not 1 <= count <= most:
        raise OneByOneError(f"nothing computes with {count!r} threads here: give 1 to {most}")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronizer(device: torch.device | None) -> Callable[[], None]:
    """Waits until the device has done all that was asked of it."""
    if device is None or device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


def busy_notes(watched_seconds: float | None = None) -> tuple[str, ...]:
    """A sentence where other work keeps the processor busy now, nothing where it is quiet."""
    cores = _busy_cores_now(WATCHED_SECONDS if watched_seconds is None else watched_seconds)
    if cores is None or cores < BUSY_CORES:
        return ()
    return (
        f"other work kept {cores:.1f} of {os.cpu_count()} processor cores busy before the run: "
        "times may be too high, and ratios are safer than times",
    )


def _busy_cores_now(watched_seconds: float) -> float | None:
    """Cores at work while this process sleeps; where that cannot be seen, the load average."""
    counters = Path("/proc/stat")
    try:
        earlier = counters.read_text(encoding="ascii")
        time.sleep(watched_seconds)
        return busy_cores(earlier, counters.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy_cores(earlier: str, later: str) -> float:
    """Mean number of cores that were not idle between two states of /proc/stat.

    Its first line counts ticks of all cores: user, nice, system, idle, iowait, irq, softirq, steal
    (proc(5)); one line for each core follows.
    """
    ticks = [[int(n) for n in text.splitlines()[0].split()[1:9]] for text in (earlier, later)]
    passed = [b - a for a, b in zip(*ticks, strict=True)]
    cores = sum(line.startswith("cpu") for line in later.splitlines()) - 1
    idle = passed[3] + passed[4]
    return cores * (sum(passed) - idle) / sum(passed) if sum(passed) else 0.0
