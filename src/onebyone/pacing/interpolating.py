"""Times between those that were measured, and the step of ranks that a runtime likes."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.pacing.ways import Ranks

STEPS = (1, 2, 4, 8, 16)
FLAT = 0.04  # times within a step differ by no more than this


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


def put(row: Mapping[Ranks, float], ranks: NDArray[np.int64], into: NDArray[np.float64]) -> None:
    """What was measured in place of what was interpolated."""
    for own, value in row.items():
        into[(ranks == own).all(1)] = value
