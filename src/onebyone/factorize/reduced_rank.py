"""A linear map of low rank: two thin maps, best in the loss's metric (channel, pointwise)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.metric import spectrum

SOUND = 1e-12  # of the largest eigenvalue: below is rounding


@dataclass(frozen=True)
class LowRank:
    """slope ≈ expand · reduce."""

    reduce: Float[Tensor, "rank features"]
    expand: Float[Tensor, "c_out rank"]


def reduced_rank(
    slope: Float[Tensor, "c_out features"],
    root: Float[Tensor, "parts c_out"],
    metric: Float[Tensor, "c_out c_out"],
    rank: int,
) -> LowRank:
    """The rank-r map nearest to `slope` in E‖Lᵀ(B − B̂) z‖², L Lᵀ = the metric G.

    `root` is any R with Rᵀ R = B Cov(z) Bᵀ and `metric` the triangular L. With U the top right
    singular vectors of R L: reduce = Uᵀ Lᵀ B, expand = L⁻ᵀ U. (Izenman, "Reduced-rank regression for
    the multivariate linear model", 1975; Zhang et al. 2016, §3.1, with G = I.) Where the rank cuts
    nothing, any basis of all outputs, or of what Lᵀ B reaches, is as good: B itself, or without a spectrum.
    """
    if rank >= len(slope):
        return LowRank(slope, torch.eye(len(slope)).to(metric))
    if rank == slope.shape[1]:
        kept = torch.linalg.qr(metric.T @ slope).Q
    else:
        kept = _largest(root.double() @ metric, slope, metric, rank)
    expand = torch.linalg.solve_triangular(metric.T, kept, upper=True)
    return LowRank((metric @ kept).T @ slope, expand)


def _largest(
    inner: Float[Tensor, "parts c_out"],
    slope: Float[Tensor, "c_out features"],
    metric: Float[Tensor, "c_out c_out"],
    rank: int,
) -> Float[Tensor, "c_out rank"]:
    """The top right singular vectors of R L, and more where it has too few."""
    kept = _thin_vectors(inner) if len(inner) < len(slope) else spectrum(inner.T @ inner)[1]
    if kept.shape[1] < rank:
        kept = _completed(kept, slope, metric, rank)
    return kept[:, :rank]


def _thin_vectors(inner: Float[Tensor, "parts c_out"]) -> Float[Tensor, "c_out found"]:
    """Right singular vectors of a matrix with few rows, those above rounding."""
    values, vectors = spectrum(inner @ inner.T)
    sound = values > SOUND * values[0]
    return torch.linalg.qr(inner.T @ vectors[:, sound]).Q


def _completed(
    kept: Float[Tensor, "c_out found"],
    slope: Float[Tensor, "c_out features"],
    metric: Float[Tensor, "c_out c_out"],
    rank: int,
) -> Float[Tensor, "c_out rank"]:
    """Orthonormal columns past what the samples say: the largest of Lᵀ B itself, by a random sketch.

    (Halko, Martinsson & Tropp, "Finding structure with randomness", 2011, algorithm 4.3.)
    """
    sketch = torch.randn(
        slope.shape[1], rank - kept.shape[1], generator=torch.Generator().manual_seed(0)
    ).to(slope)
    span = metric.T @ (slope @ sketch)
    span = span - kept @ (kept.T @ span)
    span = metric.T @ (slope @ (slope.T @ (metric @ torch.linalg.qr(span).Q)))
    return torch.linalg.qr(torch.cat([kept, span], 1)).Q
