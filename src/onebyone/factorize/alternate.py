"""The squeezing basis improved, given the layers behind it: the other half of an alternation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.metric import factor

STEPS = 5  # of conjugate gradients
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
    """
    every = -(-len(patches) // MOST_ROWS)
    patches, targets = patches[::every], targets[::every]
    dtype, count = patches.dtype, len(patches)
    wanted = (targets - targets.mean(0)) @ metric.to(dtype)
    out = metric.T if expand is None else metric.T @ expand
    if expand is not None:  # what lies outside its span no P can change
        span, out = torch.linalg.qr(out)
        wanted = wanted @ span.to(dtype)
    maps = torch.einsum("qo,okr->qkr", out, core)  # Lᵀ K_k
    left = torch.cholesky_inverse(factor(torch.einsum("qkr,qks->rs", maps, maps)))
    kernel = maps.permute(1, 2, 0).reshape(-1, len(maps)).to(dtype)
    centered = (patches - patches.mean(0)).reshape(-1, patches.shape[2])
    white = torch.linalg.solve_triangular(channels.to(dtype), centered.T, upper=False).T

    def outputs(basis: Tensor) -> Tensor:
        return (white @ basis.to(dtype).T).reshape(count, -1) @ kernel

    def gradient(rest: Tensor) -> Tensor:
        return ((rest @ kernel.T).reshape(len(white), -1).T @ white).double() / count

    basis = reduce @ channels
    rest = wanted - outputs(basis)
    residual = gradient(rest)
    direction = left @ residual
    size = (residual * direction).sum()
    for _ in range(STEPS):
        moved = outputs(direction)
        curvature = moved.double().square().sum() / count
        if not (curvature > 0 and size > 0):
            break
        length = size / curvature
        basis = basis + length * direction
        rest = rest - length.to(dtype) * moved
        residual = gradient(rest)
        step = left @ residual
        before, size = size, (residual * step).sum()
        direction = step + size / before * direction
    orthonormal = torch.linalg.qr(basis.T).Q
    return torch.linalg.solve_triangular(channels.T, orthonormal, upper=True).T
