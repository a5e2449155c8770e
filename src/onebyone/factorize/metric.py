"""Symmetric positive semi-definite matrices as metrics: factors, spectra, tails. All in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 64  # of a matrix at once, where copies of all of it would not fit into the processor's cache
DEAD = 0.1  # of the variance that a layer's outputs ask for at least: features of less have died


def shrink(matrix: Float[Tensor, "d d"], amount: float) -> Float[Tensor, "d d"]:
    """(1 − amount) · M + amount · mean(diag M) · I: never singular unless M is zero.

    Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004,
    with a given amount. A zero matrix becomes the identity, so that a metric always exists.
    """
    scale = matrix.diagonal().mean()
    if not scale > 0:
        return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return raised((1 - amount) * matrix, amount * scale)


def raised(matrix: Tensor, diagonal: Tensor | float) -> Tensor:
    """The matrix (or each of several) with so much added to its diagonal, in place."""
    matrix.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    return matrix


def shrinkage(covariance: Float[Tensor, "d d"], samples: int) -> float:
    """How much to shrink a covariance of so many samples, from 0 to 1: oracle approximating shrinkage.

    ρ = ((1 − 2/d) tr S² + tr² S) / ((n + 1 − 2/d) (tr S² − tr² S / d)), at most 1. Chen, Wiesel, Eldar
    & Hero, "Shrinkage algorithms for MMSE covariance estimation", 2010, equation 23.
    """
    d = len(covariance)
    square = float(covariance.square().sum())
    trace = float(covariance.diagonal().sum()) ** 2
    spread = (samples + 1 - 2 / d) * (square - trace / d)
    return max(0.0, min(1.0, ((1 - 2 / d) * square + trace) / spread)) if spread > 0 else 1.0


def shrinkage_of_halves(first: Float[Tensor, "d d"], second: Float[Tensor, "d d"]) -> float:
    """How much to shrink the sum of second moments of two halves of the samples, from 0 to 1.

    ρ = v / (s + v) gives the least mean squared error (Ledoit & Wolf, above). With A and B the halves,
    each scaled to a trace of 1, and T = I / d, what they have in common is s = ⟨A − T, B − T⟩, and the
    variance of their mean is v = (‖A − B‖² / 2) / 2. Samples need not be independent within a half, as the
    pixels of one image are not. 0 where a half is empty.
    """
    if not (first.any() and second.any()):
        return 0.0
    traces = [m.diagonal().sum(dtype=torch.float64) for m in (first, second)]
    common, noise = -1 / len(first), 0.0  # ⟨A − T, B − T⟩ = ⟨A, B⟩ − 1 / d
    for parts in zip(first.split(ROWS), second.split(ROWS), strict=True):
        a, b = (
            (part.double() / trace).flatten() for part, trace in zip(parts, traces, strict=True)
        )
        common += float(a @ b)
        a -= b
        noise += float(a @ a) / 4
    return noise / (common + noise) if common > 0 else 1.0


def factor(matrix: Float[Tensor, "d d"], amount: float = 1e-6) -> Float[Tensor, "d d"]:
    """Lower triangular L with L Lᵀ = the shrunk matrix (Cholesky), of which the lower triangle is read."""
    matrix = matrix.double()
    while True:
        lower, info = torch.linalg.cholesky_ex(shrink(matrix, amount))
        if info.item() == 0:
            return lower
        amount *= 10


def ridge_penalty(
    variance: Float[Tensor, "*groups d"],
    ridge: float,
    least: Float[Tensor, "*groups 1"] | float = 0.0,
) -> Float[Tensor, "*groups d"]:
    """What a ridge adds to the diagonal of a covariance: its parts of each variance and of their mean.

    `least` is what counts as their mean where they are smaller.
    """
    mean = variance.mean(-1, keepdim=True).clamp_min(least)
    return ridge * (variance + mean).clamp_min(torch.finfo(torch.float32).tiny)


def least_variance(
    targets: Float[Tensor, "samples all_out"], prior: Float[Tensor, "*groups out d"]
) -> Float[Tensor, "*groups 1"]:
    """A mean variance of features z so small that y = B z cannot have come of them, for each group.

    tr Cov(y) = tr(B Cov(z) Bᵀ) ≤ ‖B‖² tr Cov(z); this is a part of what that asks for. Features that vary
    less have died on the way: what they say of the targets is chance, and weights that made up for it
    would be huge. 0 where B is.
    """
    energy = prior.double().square().sum((-2, -1))
    varies = targets.var(0, correction=0).double().reshape(*energy.shape, -1).sum(-1)
    return torch.where(energy > 0, DEAD * varies / (energy * prior.shape[-1]), 0.0).unsqueeze(-1)


def spectrum(matrix: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Eigenvalues from large to small, never below zero, with their eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    return values.flip(0).clamp_min(0), vectors.flip(1)


def energies(matrix: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
    """The eigenvalues of `spectrum` alone, several times cheaper."""
    return torch.linalg.eigvalsh(_symmetric(matrix)).flip(0).clamp_min(0)


def of_unit_mean(matrix: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], float]:
    """The matrix over the mean of its diagonal, in float64, and that mean; itself and 1 where it is 0."""
    mean = float(matrix.diagonal().double().mean())
    return (matrix.double() / mean, mean) if mean > 0 else (matrix.double(), 1.0)


def reach(weight: Float[Tensor, "*groups out features"]) -> Float[Tensor, "*groups out features"]:
    """Orthonormal columns Q that span the outputs of a linear map, less their mean, in float32.

    With Σ = Q S Qᵀ, the spectrum and the directions of a form G under Σ are those of Qᵀ G Q under S.
    """
    return torch.linalg.qr(weight.double()).Q.float()


def within(
    matrix: Float[Tensor, "*groups d d"], basis: Float[Tensor, "*groups d reach"]
) -> Float[Tensor, "*groups reach reach"]:
    """Qᵀ M Q, in float64."""
    basis = basis.double()
    return basis.mT @ (matrix.double() @ basis)


def _symmetric(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """(M + Mᵀ) / 2; zero where nothing in it is a normal number, on which LAPACK may not converge."""
    made = (matrix + matrix.T) / 2
    least = torch.finfo(made.dtype).tiny
    return made if bool((made.abs() >= least).any()) else torch.zeros_like(made)


def tails(values: Float[Tensor, " d"]) -> Float[Tensor, " d_plus_1"]:
    """What is lost when the first r values are kept, for r = 0 … d: Σ_{i ≥ r} values[i]."""
    zero = values.new_zeros(1)
    return torch.cat([values.flip(0).cumsum(0).flip(0), zero])
