"""A linear map of low rank: two thin maps, best in the loss's metric (channel, pointwise)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.metric import spectrum


@dataclass(frozen=True)
class LowRank:
    """slope ≈ expand · reduce."""

    reduce: Float[Tensor, "rank features"]
    expand: Float[Tensor, "c_out rank"]


def reduced_rank(
    slope: Float[Tensor, "c_out features"],
    output_covariance: Float[Tensor, "c_out c_out"],
    metric: Float[Tensor, "c_out c_out"],
    rank: int,
) -> LowRank:
    """The rank-r map nearest to `slope` in E‖Lᵀ(B − B̂) z‖², L Lᵀ = the metric G.

    `output_covariance` is B Cov(z) Bᵀ and `metric` the triangular L. With U the top eigenvectors of
    Lᵀ B Cov(z) Bᵀ L: reduce = Uᵀ Lᵀ B, expand = L⁻ᵀ U. (Izenman, "Reduced-rank regression for the
    multivariate linear model", 1975; Zhang et al. 2016, §3.1, with G = I.)
    """
    inner = metric.T @ slope
    energy = metric.T @ output_covariance.double() @ metric
    if inner.shape[1] < len(inner):  # the energy lies in the span of few features
        span = torch.linalg.qr(inner).Q
        kept = span @ spectrum(span.T @ energy @ span)[1][:, :rank]
    else:
        kept = spectrum(energy)[1][:, :rank]
    expand = torch.linalg.solve_triangular(metric.T, kept, upper=True)
    return LowRank(kept.T @ inner, expand)
