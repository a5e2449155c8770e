"""Which of several channels to keep, when what reads them is refitted to those that are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from onebyone.factorize.judging import corners
from onebyone.factorize.metric import factor, raised, ridge_penalty, tails
from onebyone.factorize.triangular import congruent, whitened

AT_ONCE = 128  # of so many channels that are left, one goes at a time; of twice as many, two
FRACTION = 5  # one in so many channels goes before matrices are brought up to date
LEAST_SHRINKAGE = 1e-4
RIDGES = (1e-2, 1e-1, 1.0)  # that errors are judged with
ROUNDED = 1e-12  # of the mean variance: as good as nothing beside a ridge


@dataclass(frozen=True)
class Reading:
    """One reader: covariance of the channels, and the quadratic form of the loss in their errors.

    `form` is Wᵀ G W for weights W and the metric G of the loss at the reader's output.
    """

    covariance: Float[Tensor, "c c"]
    form: Float[Tensor, "c c"]
    samples: int

    def of(self, channels: Int[Tensor, " some"]) -> Reading:
        """Of some of the channels, in their order."""
        own = channels.to(self.form.device)
        return Reading(self.covariance[own][:, own], self.form[own][:, own], self.samples)


@dataclass(frozen=True)
class Order:
    """Channels, those that are needed most first; `errors[w]` is lost when the first w are kept."""

    channels: Int[Tensor, " c"]
    errors: Float[Tensor, " c_plus_1"]


def needed_order(readings: Sequence[Reading]) -> Order:
    """An order of the channels by greedy backward elimination, exact least squares at every step.

    With B the reader's weights refitted to the channels that are left and P the inverse of their
    covariance, leaving out channel j as well costs (Bᵀ G B)_jj / P_jj, what the others cannot
    make up for; the cheapest goes next, and B and P are updated in closed form (Hassibi & Stork,
    "Second order derivatives for network pruning: Optimal Brain Surgeon", 1993; for whole channels
    He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", 2017). The errors add up
    over the readers. The covariance is shrunk by (channels / samples)², as few samples make it seem
    that some channels could be worked out from others; where there are fewer samples than channels none
    can be, and each costs what it carries.
    """
    amounts = [_shrinkage(reading) for reading in readings]
    if min(amounts) == 1:
        return _apart(readings)
    readers = []
    for reading, amount in zip(readings, amounts, strict=True):
        lower = factor(reading.covariance, amount)
        readers.append(_Refit(torch.cholesky_inverse(lower), reading.form.double()))
    left = torch.arange(len(readings[0].form), device=readings[0].form.device)
    gone: list[Tensor] = []
    errors = [0.0]
    while len(left):
        picked, lost = _round(readers)
        gone.append(left[picked].cpu())
        errors += [errors[-1] + float(step) for step in lost.cumsum(0)]
        mask = torch.ones(len(left), dtype=torch.bool, device=left.device)
        mask[picked] = False
        left, readers = left[mask], [reader.without(mask) for reader in readers]
    order = torch.cat(gone).flip(0)
    return Order(order, torch.tensor(errors, dtype=torch.float64).flip(0))


def _shrinkage(reading: Reading) -> float:
    few = min(1.0, (len(reading.form) / max(reading.samples, 1)) ** 2)
    return max(LEAST_SHRINKAGE, few)


def _apart(readings: Sequence[Reading]) -> Order:
    """The order where no channel makes up for another."""
    cost = torch.zeros(len(readings[0].form), dtype=torch.float64, device=readings[0].form.device)
    for reading in readings:
        variance = float(reading.covariance.diagonal().double().mean())
        cost += reading.form.diagonal().double() * (variance if variance > 0 else 1.0)
    lost, order = cost.clamp_min(0).sort(descending=True)
    return Order(order.cpu(), tails(lost).cpu())


def judged(order: Order, first: Sequence[Reading], second: Sequence[Reading]) -> Order:
    """The same order with the errors that refits to either half of the samples leave on the other.

    Refits have that ridge of `RIDGES` which, of those to the first half, leaves least over the wider
    three quarters of all widths.
    """
    one, other = ([reading.of(order.channels) for reading in part] for part in (first, second))
    best, least = RIDGES[0], _left(one, other, RIDGES[0])
    for ridge in RIDGES[1:]:
        errors = _left(one, other, ridge)
        if _sum_of_wide(errors) >= _sum_of_wide(least):
            break
        best, least = ridge, errors
    both = least + _left(other, one, best)
    return Order(order.channels, torch.cummax(both.flip(0), 0).values.flip(0))


def _sum_of_wide(errors: Tensor) -> float:
    return float(errors[len(errors) // 4 :].sum())


def _left(
    fitted: Sequence[Reading], other: Sequence[Reading], ridge: float
) -> Float[Tensor, " c_plus_1"]:
    """What refits to one half leave on the other when the first w channels are kept, for each w.

    With L D Lᵀ the covariance (and its ridge), L of unit diagonal, x = L y: what a refit to the first w
    channels leaves of the others is L y without the first w of y. In the form F that is
    Σ_{i, j ≥ w} X_ij Y_ij, X = Lᵀ F L and Y = L⁻¹ Σ L⁻ᵀ, for all widths at once.
    """
    errors = torch.zeros(len(fitted[0].form) + 1, dtype=torch.float64)
    for one, judging in zip(fitted, other, strict=True):
        penalty = ridge_penalty(one.covariance.diagonal(), ridge)
        lower = factor(raised(one.covariance.to(torch.float64, copy=True), penalty), ROUNDED)
        unit = (lower / lower.diagonal()).float()
        left = whitened(judging.covariance.float(), unit)
        errors += corners(left.mul_(congruent(judging.form.float(), unit))).cpu()
    return errors


def _round(readers: Sequence[_Refit]) -> tuple[Tensor, Tensor]:
    """Take out a part of the channels, the cheapest first: which, and what each costs."""
    size, device = len(readers[0].form), readers[0].form.device
    many = _many(size)
    gone = torch.zeros(size, dtype=torch.bool, device=device)
    picked: list[Tensor] = []
    lost: list[Tensor] = []
    while sum(map(len, picked)) < max(1, size // FRACTION):
        cost = torch.zeros(size, dtype=torch.float64, device=device)
        for reader in readers:
            cost += reader.costs()
        out = cost.masked_fill_(gone, torch.inf).topk(many, largest=False).indices
        total = sum(reader.leave_out(out) for reader in readers)
        gone[out] = True
        picked.append(out)
        lost.append(torch.full((many,), max(float(total), 0.0) / many, dtype=torch.float64))
    return torch.cat(picked), torch.cat(lost)


class _Refit:
    """One reader's P and Bᵀ G B on the way down.

    What channels that go take from them is kept as rows, and taken off all at once by `without`: until then
    only the diagonals are up to date, and the rows that are asked for. Shapes are not in the signatures of
    what runs for every few channels: where they are checked, that takes longer than the work.
    """

    def __init__(self, inverse: Float[Tensor, "c c"], form: Float[Tensor, "c c"]) -> None:
        self.inverse, self.form = inverse, form
        self.scales, self.energies = inverse.diagonal().clone(), form.diagonal().clone()
        most, self.gone = len(form) // FRACTION + _many(len(form)), 0
        self.rows, self.share, self.half = form.new_empty(3, most, len(form))

    def costs(self) -> Tensor:
        """What leaving out each channel costs, alone."""
        return self.energies / self.scales.clamp_min(torch.finfo(torch.float64).tiny)

    def leave_out(self, out: Tensor) -> float:
        """The update for channels that go; what it costs."""
        rows, share, half = self._taken()
        own, felt = self.inverse[out], self.form[out]
        if len(rows):
            own.addmm_(rows[:, out].T, share, alpha=-1)
            felt.addmm_(half[:, out].T, share, alpha=-1).addmm_(share[:, out].T, half, alpha=-1)
        square, corner = own[:, out], felt[:, out]
        new = slice(self.gone, self.gone + len(out))
        self.gone = new.stop
        share = own / square if len(out) == 1 else torch.linalg.solve(square, own)
        half = felt.addmm_(corner, share, alpha=-0.5)
        self.scales -= (own * share).sum(0)
        self.energies -= 2 * (half * share).sum(0)
        self.rows[new], self.share[new], self.half[new] = own, share, half
        return float((corner * torch.linalg.inv(square)).sum())

    def without(self, mask: Tensor) -> _Refit:
        """Of the channels that stay alone."""
        rows, share, half = (taken[:, mask] for taken in self._taken())
        inverse, form = (m[mask][:, mask] for m in (self.inverse, self.form))
        both, turned = torch.cat([half, share]), torch.cat([share, half])
        return _Refit(
            inverse.addmm_(rows.T, share, alpha=-1), form.addmm_(both.T, turned, alpha=-1)
        )

    def _taken(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.rows[: self.gone], self.share[: self.gone], self.half[: self.gone]


def _many(size: int) -> int:
    """How many channels go at once."""
    return max(1, size // AT_ONCE)
