"""Which of several channels to keep, when what reads them is refitted to those that are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from onebyone.factorize.judging import corners
from onebyone.factorize.metric import factor, ridge_penalty

AT_ONCE = 128  # of so many channels that are left, one goes at a time; of twice as many, two
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
    that some channels could be worked out from others.
    """
    inverses, forms = [], []
    for reading in readings:
        few = min(1.0, (len(reading.form) / max(reading.samples, 1)) ** 2)
        lower = factor(reading.covariance, max(LEAST_SHRINKAGE, few))
        inverses.append(torch.cholesky_inverse(lower))
        forms.append(reading.form.double().clone())
    left = torch.arange(len(forms[0]), device=forms[0].device)
    gone: list[Tensor] = []
    errors = [0.0]
    while len(left):
        inverses, forms, picked, lost = _round(inverses, forms)
        gone.append(left[picked].cpu())
        mask = torch.ones(len(left), dtype=torch.bool, device=left.device)
        mask[picked] = False
        left = left[mask]
        inverses, forms = ([m[mask][:, mask] for m in ms] for ms in (inverses, forms))
        errors += [errors[-1] + float(step) for step in lost.cumsum(0)]
    order = torch.cat(gone).flip(0)
    return Order(order, torch.tensor(errors, dtype=torch.float64).flip(0))


def judged(order: Order, first: Sequence[Reading], second: Sequence[Reading]) -> Order:
    """The same order with the errors that refits to either half of the samples leave on the other.

    Refits have that ridge of `RIDGES` which, of those to the first half, leaves least over the wider
    three quarters of all widths.
    """
    best, least = RIDGES[0], _left(order.channels, first, second, RIDGES[0])
    for ridge in RIDGES[1:]:
        errors = _left(order.channels, first, second, ridge)
        if _sum_of_wide(errors) >= _sum_of_wide(least):
            break
        best, least = ridge, errors
    both = least + _left(order.channels, second, first, best)
    return Order(order.channels, torch.cummax(both.flip(0), 0).values.flip(0))


def _sum_of_wide(errors: Tensor) -> float:
    return float(errors[len(errors) // 4 :].sum())


def _left(
    channels: Int[Tensor, " c"], fitted: Sequence[Reading], other: Sequence[Reading], ridge: float
) -> Float[Tensor, " c_plus_1"]:
    """What refits to one half leave on the other, for each width.

    With L D Lᵀ the covariance (and its ridge) of the channels in their order, L of unit diagonal, x = L y:
    what a refit to the first w channels leaves of the others is L y without the first w of y. In the form
    F that is Σ_{i, j ≥ w} X_ij Y_ij, X = Lᵀ F L and Y = L⁻¹ Σ L⁻ᵀ, for all widths at once.
    """
    errors = torch.zeros(len(channels) + 1, dtype=torch.float64)
    for one, judging in zip(fitted, other, strict=True):
        order = channels.to(one.covariance.device)
        own, covariance, form = (
            m[order][:, order] for m in (one.covariance.double(), judging.covariance, judging.form)
        )
        lower = factor(own + torch.diag(ridge_penalty(own.diagonal(), ridge)), ROUNDED)
        unit = (lower / lower.diagonal()).float()
        half = torch.linalg.solve_triangular(
            unit, covariance.float(), upper=False, unitriangular=True
        )
        rest = torch.linalg.solve_triangular(unit, half.T, upper=False, unitriangular=True)
        errors += corners(rest * (unit.T @ form.float() @ unit)).cpu()
    return errors


def _round(
    inverses: list[Tensor], forms: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Take out about a fifth of the channels, the cheapest first: which, and what each costs.

    The matrices keep their size, so that their rows can be updated in place.
    """
    size = len(forms[0])
    many = max(1, size // AT_ONCE)
    gone = torch.zeros(size, dtype=torch.bool, device=forms[0].device)
    picked: list[Tensor] = []
    lost: list[Tensor] = []
    while sum(map(len, picked)) < max(1, size // 5):
        cost = torch.zeros(size, dtype=torch.float64, device=gone.device)
        for p, f in zip(inverses, forms, strict=True):
            cost += f.diagonal() / p.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
        out = cost.masked_fill_(gone, torch.inf).topk(many, largest=False).indices
        total = sum(_leave_out(p, f, out) for p, f in zip(inverses, forms, strict=True))
        gone[out] = True
        picked.append(out)
        lost.append(torch.full((len(out),), max(float(total), 0.0) / len(out), dtype=torch.float64))
    return inverses, forms, torch.cat(picked), torch.cat(lost)


def _leave_out(inverse: Tensor, form: Tensor, out: Tensor) -> float:
    """Update P and Bᵀ G B in place for channels that go, and return what that costs."""
    rows = inverse[out]
    square = rows[:, out]
    share = rows / square if len(out) == 1 else torch.linalg.solve(square, rows)
    corner = form[out][:, out]
    half = form[out] - corner @ share / 2
    form.addmm_(torch.cat([half, share]).T, torch.cat([share, half]), alpha=-1)
    inverse.addmm_(rows.T, share, alpha=-1)
    return float((corner * torch.linalg.inv(square)).sum())
