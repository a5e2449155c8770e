"""An export in its runtime beside the network in PyTorch: how far apart their outputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from onebyone.errors import ModelError
from onebyone.exporting.tracing import is_detector
from onebyone.running import call
from onebyone.tree import evaluating, tensors_in

CHECKED_BATCH = 8  # images at once, after a first one alone
FEW = 64  # numbers of a detector's row, such as a box; a mask has more
TIE = 2e-3  # of the largest output: classes nearer than that are equally first
NOTHING = (
    "the network finds nothing in the images of the check, so nothing was compared: give others, in "
    "which it finds something"
)


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
    are equally first. A detector's outputs have a row for each thing that it finds, in the order of its
    scores, which rounding may change: there `agreement` is the fraction of rows that the other side has
    too, within the limit, the errors are those of these rows, and `rows` is how many there are. `drawn`:
    the images were drawn at random. `empty`: no output had any number, as of a detector that finds nothing
    in them, so that nothing was compared.
    """

    images: int
    drawn: bool
    max_abs: float
    error: float
    agreement: float | None
    limit: Limit
    empty: bool = False
    rows: int = 0

    @property
    def failure(self) -> str | None:
        """Which limit is exceeded and by what value, None where all hold."""
        if not self.error <= self.limit.error:  # NaN too
            return (
                f"its outputs differ from PyTorch's by up to {self.error:.2g} of the largest output "
                f"({self.max_abs:.3g}), and the limit is {self.limit.error:g}"
            )
        if self.agreement is not None and self.agreement < self.limit.agreement and self.rows:
            return (
                f"it finds the same as PyTorch for {self.agreement:.1%} of {self.rows:,} things in the "
                f"images, and the limit is {self.limit.agreement:.0%}"
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
    if is_detector(model):
        return _check_rows(model, session, inputs, limit, drawn)
    expected: list[list[Tensor]] = []
    found: list[list[Tensor]] = []
    with evaluating(model), torch.inference_mode():
        for part in _parts(inputs, any_batch):
            mine = [
                t
                for t in tensors_in(call(model, *(x.clone() for x in part)))
                if t.is_floating_point()
            ]
            theirs = [t for t in _run(session, part) if t.is_floating_point()]
            if not mine:
                raise ModelError("it returns no floating-point numbers, which are what is compared")
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
        limit, not any(y.numel() for y, _ in pairs),
    )  # fmt: skip


def _check_rows(
    model: nn.Module,
    session: Callable[[Sequence[Tensor]], list[Tensor]],
    inputs: tuple[Tensor, ...],
    limit: Limit,
    drawn: bool,
) -> Check:
    """The check of a detector, image by image: each row beside the nearest one on the other side."""
    rows = found = total = 0
    most, worst = 0.0, 0.0
    with evaluating(model), torch.inference_mode():
        for part in _parts(inputs, any_batch=False):
            mine = list(tensors_in(call(model, *(x.clone() for x in part))))
            theirs = _run(session, part)
            shapes = [[tuple(t.shape[1:]) for t in side] for side in (mine, theirs)]
            if shapes[0] != shapes[1]:
                raise ModelError(
                    f"the rows of its outputs have shapes {shapes[1]} and PyTorch's {shapes[0]}"
                )
            rows += len(mine[0])
            total += max(len(mine[0]), len(theirs[0]))
            gaps, errors = _nearest(mine, theirs)
            same = errors <= limit.error
            found += int(same.sum())
            if same.any():
                most = max(most, float(gaps[same].max()))
                worst = max(worst, float(errors[same].max()))
    agreement = found / total if total else None
    return Check(len(inputs[0]), drawn, most, worst, agreement, limit, not total, rows)


def _nearest(mine: list[Tensor], theirs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """For each row, how far the nearest one on the other side is: as it is, and of the largest value.

    The nearest is found by outputs of few numbers a row; labels are the same or not.
    """
    count = len(mine[0])
    if not count or not len(theirs[0]):
        return torch.full((count,), torch.inf), torch.full((count,), torch.inf)
    sides = []
    for pair in zip(mine, theirs, strict=True):
        one, other = (t.reshape(len(t), -1).double() for t in pair)
        size = float(one.abs().max()) if pair[0].is_floating_point() else 0.5
        sides.append((one, other, size or 1.0))
    few = [s for s in sides if s[0].shape[1] <= FEW] or sides
    far = torch.stack([torch.cdist(a / size, b / size, p=torch.inf) for a, b, size in few]).amax(0)
    place = far.argmin(1)
    gaps = torch.stack([(a - b[place]).abs().amax(1) for a, b, _ in sides])
    sizes = torch.tensor([size for _, _, size in sides], dtype=gaps.dtype)
    return gaps.amax(0), (gaps / sizes[:, None]).amax(0)


def _run(
    session: Callable[[Sequence[Tensor]], list[Tensor]], part: tuple[Tensor, ...]
) -> list[Tensor]:
    """What the export gives; ModelError where it fails."""
    try:
        return session(part)
    except Exception as error:
        raise ModelError(
            f"it fails on a batch of {len(part[0])} ({type(error).__name__}: {error})"
        ) from error


def _parts(inputs: tuple[Tensor, ...], any_batch: bool) -> Iterator[tuple[Tensor, ...]]:
    total = len(inputs[0])
    edges = [0, 1, *range(1 + CHECKED_BATCH, total, CHECKED_BATCH), total]
    if not any_batch:
        edges = list(range(total + 1))
    for start, end in pairwise(edges):
        if end > start:
            yield tuple(x[start:end] if x.ndim else x for x in inputs)


def _agreement(expected: Tensor, found: Tensor) -> float | None:
    if expected.ndim != 2 or expected.shape[1] < 2 or not len(expected):
        return None
    best = expected.max(1).values
    own = expected.gather(1, found.argmax(1, keepdim=True))[:, 0]
    return float((best - own <= TIE * expected.abs().max()).double().mean())
