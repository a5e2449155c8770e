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
NEAR = 0.02  # of the largest: whole numbers that far apart at most may count as the same
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

    `max_abs` is max |y − ŷ| over all outputs of floating-point numbers, `error` the same divided by max
    |y|, each output by its own. `agreement` is the fraction of images with the same top-1 class, None for
    outputs that are no class scores (N, classes); classes whose scores are nearer than 0.2 % of the
    largest score are equally first. A detector's outputs have a row for each thing that it finds, in the
    order of its scores, which rounding may change: there `agreement` is the fraction of rows that the
    other side has too, within the limit, the errors are those of these rows, and `rows` is how many there
    are. `same` is the fraction of whole numbers, such as classes and masks, that are the same on both
    sides or nearer than the limit of the error, of the output where it is least; None without such
    outputs. `drawn`: the images were drawn at random. `empty`: no output had any number, as of a detector
    that finds nothing in them, so that nothing was compared.
    """

    images: int
    drawn: bool
    max_abs: float
    error: float
    agreement: float | None
    limit: Limit
    empty: bool = False
    rows: int = 0
    same: float | None = None

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
        if self.same is not None and self.same < self.limit.agreement:
            return (
                f"{self.same:.1%} of the whole numbers in an output are PyTorch's, and the limit is "
                f"{self.limit.agreement:.0%}"
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
    outputs: list[_Output] = []
    with evaluating(model), torch.inference_mode():
        for part in _parts(inputs, any_batch):
            given = call(model, *(x.clone() for x in part))
            # Files hold complex numbers as pairs.
            mine = [torch.view_as_real(t) if t.is_complex() else t for t in tensors_in(given)]
            theirs = _run(session, part)
            shapes = [[tuple(t.shape) for t in side] for side in (mine, theirs)]
            if not mine:
                raise ModelError("it returns no tensors, which are what is compared")
            if shapes[0] != shapes[1]:
                raise ModelError(f"its outputs have shapes {shapes[1]} and PyTorch's {shapes[0]}")
            outputs = outputs or [_Output(floating=t.is_floating_point()) for t in mine]
            for output, y, z in zip(outputs, mine, theirs, strict=True):
                output.add(y, z, len(part[0]))
    floating = [o for o in outputs if o.floating]
    errors = [o.gap / o.size if o.size else o.gap for o in floating]
    return Check(
        len(inputs[0]), drawn, max((o.gap for o in floating), default=0.0),
        max((e if e == e else torch.inf for e in errors), default=0.0),
        next((o.agreement() for o in floating), None), limit, not any(o.count for o in outputs),
        same=min((o.same(limit.error) for o in outputs if not o.floating), default=None),
    )  # fmt: skip


class _Output:
    """One output of both sides, part after part: how far it is apart, and from what largest value."""

    def __init__(self, *, floating: bool) -> None:
        self.floating = floating
        self.gap = self.size = 0.0
        self.count = 0
        self.scores: list[tuple[Tensor, Tensor]] | None = []
        self.off: list[Tensor] = []  # how far whole numbers are apart that are not the same

    def add(self, mine: Tensor, theirs: Tensor, images: int) -> None:
        self.count += mine.numel()
        if not mine.numel():
            return
        y, z = mine.double(), theirs.double()
        far = torch.where(y == z, 0.0, (y - z).abs())  # equal infinities are not apart
        finite = y[y.isfinite()].abs()
        self.gap = max(self.gap, float(far.nan_to_num(torch.inf, torch.inf).max()))
        self.size = max(self.size, float(finite.max()) if finite.numel() else 0.0)
        if not self.floating:
            self.off.append(far[far > 0])
        scores = y.ndim == 2 and y.shape[1] > 1 and len(y) == images
        if self.scores is not None:
            self.scores = [*self.scores, (y, z)] if scores else None

    def same(self, error: float) -> float:
        """The fraction of whole numbers that are the same, or nearer than that part of the largest."""
        near = min(error, NEAR) * self.size
        return 1 - sum(int((far > near).sum()) for far in self.off) / max(1, self.count)

    def agreement(self) -> float | None:
        """The fraction of images with the same best class, None where these are no scores of classes."""
        if not self.scores or len({y.shape[1] for y, _ in self.scores}) > 1:
            return None
        expected, found = (torch.cat(side) for side in zip(*self.scores, strict=True))
        best = expected.max(1).values
        own = expected.gather(1, found.argmax(1, keepdim=True))[:, 0]
        return float(((best == own) | (best - own <= TIE * self.size)).double().mean())


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
    """The tensors that the export gives; ModelError where it fails."""
    try:
        return [t for t in session(part) if isinstance(t, Tensor)]
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
