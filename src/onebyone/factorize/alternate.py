"""The squeezing basis improved, given the layers behind it: the other half of an alternation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.metric import factor

STEPS = 5  # of conjugate gradients
FEW = 8  # samples a channel, below which one half of them judges the steps on the other
MOST_ROWS = 4096  # samples that they run on


def improve_basis(
    reduce: Float[Tensor, "rank c_in"],
    core: Float[Tensor, "core_out taps rank"],
    expand: Float[Tensor, "c_out core_out"] | None,
    patches: Float[Tensor, "samples taps c_in"],
    targets: Float[Tensor, "samples c_out"],
    metric: Float[Tensor, "c_out c_out"],
    channels: Float[Tensor, "c_in c_in"],
) -> Float[Tensor, "rank c_in"]:
    """A better `reduce` P for y ≈ b + Σ_k K_k P x_k, K_k = expand · core_k held fixed.

    Conjugate gradients on E‖Lᵀ(y − b − Σ_k K_k P x_k)‖², from the given P: a linear least-squares
    problem in P, one half of an alternation (Kroonenberg & de Leeuw, "Principal component analysis of
    three-mode data by means of alternating least squares algorithms", 1980). `metric` and `channels`
    are triangular factors L of L Lᵀ. It is preconditioned by the Kronecker product of Σ_k K_kᵀ G K_k
    and the channels' covariance, in which the rows of the result are orthonormal.

    Of few samples for so many channels it could fit the very samples: then there are as many steps as
    those on one half of them lower what the other half loses. With fewer samples than channels P stays.
    """
    if len(patches) < patches.shape[2]:
        return reduce
    every = -(-len(patches) // MOST_ROWS)
    patches, targets = patches[::every], targets[::every]
    out = metric.T if expand is None else metric.T @ expand
    if expand is not None:  # what lies outside its span no P can change
        span, out = torch.linalg.qr(out)
        metric = metric @ span
    maps = torch.einsum("qo,okr->qkr", out, core)  # Lᵀ K_k
    wanted = targets @ metric.to(targets.dtype)
    before = reduce @ channels

    def path(rows: slice, steps: int) -> Iterator[Tensor]:
        return _path(before, maps, _white(patches[rows], channels), wanted[rows], steps)

    steps = STEPS
    if len(patches) < FEW * patches.shape[2]:
        half = len(patches) // 2
        one, other = slice(half), slice(half, None)
        lost = torch.zeros(STEPS + 1, dtype=torch.float64)
        for fitted, judged in ((one, other), (other, one)):
            rows = _white(patches[judged], channels)
            found = [_lost(basis, maps, rows, wanted[judged]) for basis in path(fitted, STEPS)]
            lost += torch.tensor(found + found[-1:] * (STEPS + 1 - len(found)))
        steps = int(lost.argmin())
    *_, basis = path(slice(None), steps)
    orthonormal = torch.linalg.qr(basis.T).Q
    return torch.linalg.solve_triangular(channels.T, orthonormal, upper=True).T


def _white(
    patches: Float[Tensor, "samples taps c_in"], channels: Float[Tensor, "c_in c_in"]
) -> Float[Tensor, "samples taps c_in"]:
    """The samples less their mean, with the channels' covariance taken out."""
    centered = (patches - patches.mean(0)).reshape(-1, patches.shape[2])
    white = torch.linalg.solve_triangular(channels.to(patches.dtype), centered.T, upper=False).T
    return white.reshape(patches.shape)


def _lost(
    basis: Float[Tensor, "rank c_in"], maps: Float[Tensor, "q taps rank"],
    white: Float[Tensor, "samples taps c_in"], wanted: Float[Tensor, "samples q"],
) -> float:  # fmt: skip
    """E‖y − ȳ − Σ_k K_k P x_k‖² of these samples."""
    rest = wanted - wanted.mean(0) - _outputs(basis, maps, white)
    return float(rest.double().square().sum() / max(1, len(rest)))


def _outputs(basis: Tensor, maps: Tensor, white: Tensor) -> Tensor:
    kernel = maps.permute(1, 2, 0).reshape(-1, len(maps)).to(white.dtype)
    return (white @ basis.to(white.dtype).T).flatten(1) @ kernel


def _path(
    basis: Float[Tensor, "rank c_in"], maps: Float[Tensor, "q taps rank"],
    white: Float[Tensor, "samples taps c_in"], wanted: Float[Tensor, "samples q"], steps: int,
) -> Iterator[Float[Tensor, "rank c_in"]]:  # fmt: skip
    """The basis, and what it is after each step of conjugate gradients on these samples."""
    dtype, count = white.dtype, len(white)
    left = torch.cholesky_inverse(factor(torch.einsum("qkr,qks->rs", maps, maps)))
    kernel = maps.permute(1, 2, 0).reshape(-1, len(maps)).to(dtype)
    pixels = white.flatten(0, 1)

    def gradient(rest: Tensor) -> Tensor:
        return ((rest @ kernel.T).reshape(len(pixels), -1).T @ pixels).double() / count

    yield basis
    rest = wanted - wanted.mean(0) - _outputs(basis, maps, white)
    residual = gradient(rest)
    direction = left @ residual
    size = (residual * direction).sum()
    for _ in range(steps):
        moved = _outputs(direction, maps, white)
        curvature = moved.double().square().sum() / count
        if not (curvature > 0 and size > 0):
            break
        length = size / curvature
        basis = basis + length * direction
        yield basis
        rest = rest - length.to(dtype) * moved
        residual = gradient(rest)
        step = left @ residual
        before, size = size, (residual * step).sum()
        direction = step + size / before * direction
