"""What the rest of a network leaves of a layer in the processor's caches."""

from __future__ import annotations

from collections.abc import Callable
from math import log2

import torch
from torch import nn

MEBIBYTES = (0, 4, 16, 32)  # read between two calls; more than the last changes little


def mebibytes_between(model: nn.Module) -> int:
    """What is read between two passes of a layer, as its network reads all of its weights there.

    The nearest of a few sizes, so that networks of a kind share a table of timings.

    >>> mebibytes_between(nn.Linear(1024, 1024)), mebibytes_between(nn.Linear(4096, 1024))
    (4, 16)
    """
    held = sum(4 * p.numel() for p in model.parameters()) / 2**20  # in float32, as it is timed
    least, *more = MEBIBYTES[1:]
    if held < least / 2:
        return 0
    return min((least, *more), key=lambda size: abs(log2(size) - log2(held)))


def reader_of(mebibytes: int) -> Callable[[str], object] | None:
    """A call that reads so much memory; None for nothing to read."""
    if not mebibytes:
        return None
    held = torch.ones(mebibytes * 2**18)
    return lambda _: held.sum()
