"""An export in its runtime beside the network in PyTorch: how far apart their outputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from onebyone.errors import ModelError
from onebyone.running import call
from onebyone.tree import evaluating, tensors_in

CHECKED_BATCH = 8  # images at once, after a first one alone
TIE = 2e-3  # of the largest output: classes nearer than that are equally first


@dataclass(frozen=True)
class Limit:
    """What an export may differ by: see Check for the two values."""

    error: float
    agreement: float


LIMITS = {
    "float32": Limit(error=1e-3, agreement=0.99),
    "float16": Limit(error=2e-2, agreement=0.98),
    "int8": Limit(error=0.5, agreement=0.9),
}


@dataclass(frozen=True)
class Check:
    """How far an export is from PyTorch on some images.

    `max_abs` is max |y − ŷ| over all outputs, `error` the same divided by max |y|, each output by
    its own. `agreement` is the fraction of images with the same top-1 class, None for outputs that
    are no class scores (N, classes); classes whose scores are nearer than 0.2 % of the largest score
    are equally first. `drawn`: the images were drawn at random.
    """

    images: int
    drawn: bool
    max_abs: float
    error: float
    agreement: float | None
    limit: Limit

    @property
    def failure(self) -> str | None:
        """Which limit is exceeded and by what value, None where all hold."""
        if not self.error <= self.limit.error:  # NaN too
            return (
                f"its outputs differ from PyTorch's by up to {self.error:.2g} of the largest output "
                f"({self.max_abs:.3g}), and the limit is {self.limit.error:g}"
            )
        if self.agreement is not None and self.agreement < self.limit.agreement:
            return (
                f"it chooses the same class as PyTorch for {self.agreement:.1%} of {self.images} "
                f"images, and the limit is {self.limit.agreement:.0%}"
            )
        return None


def check(
    model: nn.Module,
    session: Callable[[Sequence[Tensor]], list[Tensor]],
    inputs: tuple[Tensor, ...],
    *,
    limit: Limit,
    any_batch: bool,
    drawn: bool,
) -> Check:
    """Run the same inputs through both, one image first and then eight at once where that goes.

    Raises ModelError where the export fails on an input or returns other outputs than the network.
    """
    expected: list[list[Tensor]] = []
    found: list[list[Tensor]] = []
    with evaluating(model), torch.inference_mode():
        for part in _parts(inputs, any_batch):
            mine = [t for t in tensors_in(call(model, *part)) if t.is_floating_point()]
            try:
                theirs = [t for t in session(part) if t.is_floating_point()]
            except Exception as error:
                raise ModelError(
                    f"it fails on a batch of {len(part[0])} ({type(error).__name__}: {error})"
                ) from error
            shapes = [[tuple(t.shape) for t in side] for side in (mine, theirs)]
            if shapes[0] != shapes[1]:
                raise ModelError(f"its outputs have shapes {shapes[1]} and PyTorch's {shapes[0]}")
            expected.append([t.double() for t in mine])
            found.append([t.double() for t in theirs])
    pairs = [
        (torch.cat(one) if one[0].ndim else one[0], torch.cat(other) if one[0].ndim else other[0])
        for one, other in zip(
            map(list, zip(*expected, strict=True)), map(list, zip(*found, strict=True)), strict=True
        )
    ]
    gaps = [float((y - z).abs().max()) if y.numel() else 0.0 for y, z in pairs]
    sizes = [float(y.abs().max()) if y.numel() else 0.0 for y, _ in pairs]
    errors = [gap / size if size else gap for gap, size in zip(gaps, sizes, strict=True)]
    worst = [e if e == e else float("inf") for e in errors]
    return Check(
        len(inputs[0]), drawn, max(gaps), max(worst), _agreement(*pairs[0]) if pairs else None,
        limit,
    )  # fmt: skip


def _parts(inputs: tuple[Tensor, ...], any_batch: bool) -> Iterator[tuple[Tensor, ...]]:
    total = len(inputs[0])
    edges = [0, 1, *range(1 + CHECKED_BATCH, total, CHECKED_BATCH), total]
    if not any_batch:
        edges = list(range(total + 1))
    for start, end in pairwise(edges):
        if end > start:
            yield tuple(x[start:end] if x.ndim else x for x in inputs)


def _agreement(expected: Tensor, found: Tensor) -> float | None:
    if expected.ndim != 2 or expected.shape[1] < 2:
        return None
    best = expected.max(1).values
    own = expected.gather(1, found.argmax(1, keepdim=True))[:, 0]
    return float((best - own <= TIE * expected.abs().max()).double().mean())
