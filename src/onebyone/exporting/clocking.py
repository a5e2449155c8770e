"""An export timed in its runtime, beside the original exported the same way."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from onebyone.measurement.latency import Latency
from onebyone.measurement.timing import Samples, interleave

BATCH = 8  # images of the larger batch
SECONDS = 1.0  # for each number of threads and each batch
LEAST_ROUNDS = 5

Opened = Callable[[int], Callable[[tuple[Tensor, ...]], list[Tensor]]]


@dataclass(frozen=True)
class Timing:
    """The latency of an export, and of the original exported the same way (None without one)."""

    after: Latency
    before: Latency | None


def all_threads() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def time_exports(
    candidates: Mapping[str, Opened],
    inputs: tuple[Tensor, ...],
    *,
    runtime: str,
    dtype: str,
    any_batch: bool,
    seconds: float = SECONDS,
) -> list[dict[str, Latency]]:
    """Latency of each candidate, for one thread and all, one image and eight.

    `candidates` are functions that open a file with so many threads. What is timed together takes
    turns. Eight images only where a file takes any batch.
    """
    found: list[dict[str, Latency]] = []
    for threads in sorted({1, all_threads()}):
        sessions = {name: opened(threads) for name, opened in candidates.items()}
        for batch in (1, BATCH) if any_batch else (len(inputs[0]),):
            given = tuple(_repeated(x, batch) for x in inputs)
            samples = interleave(
                {n: lambda run=run, given=given: run(given) for n, run in sessions.items()},
                threads=threads, seconds=seconds, least=LEAST_ROUNDS,
            )  # fmt: skip
            found.append({n: latency_in(samples, n, batch, runtime, dtype) for n in sessions})
    return found


def latency_in(samples: Samples, name: str, batch: int, runtime: str, dtype: str) -> Latency:
    """What the samples say about one candidate in a runtime."""
    spread = samples.quartiles(name)
    return Latency(
        batch, spread.median, spread.low, spread.high, samples.rounds, samples.warmup,
        samples.threads, dtype, "cpu", runtime, notes=samples.notes,
    )  # fmt: skip


def _repeated(x: Tensor, batch: int) -> Tensor:
    if not x.ndim or len(x) == batch:
        return x
    return x[:1].expand(batch, *x.shape[1:]).contiguous()
