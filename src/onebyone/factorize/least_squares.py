"""Linear least squares with an intercept and a ridge towards a known answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.judging import (
    careful_multiple,
    halves,
    lost_from_moments,
    lost_from_samples,
    together,
)
from onebyone.factorize.metric import factor, least_variance, raised, ridge_penalty


@dataclass(frozen=True)
class Fit:
    """y ≈ slope · z + intercept."""

    slope: Float[Tensor, "targets features"]
    intercept: Float[Tensor, " targets"]
    feature_mean: Float[Tensor, " features"]


class Regression:
    """Ridge regressions of several targets on the same features: the expensive half is done once.

    Minimises mean ‖y − B z − b‖² + ridge · Σ_j s_j ‖B_j − prior_j‖² with s = diag Cov(z) + its mean
    (of at least `least_variance`).
    The products run in the samples' dtype, the solve in float64; with fewer samples than features
    the dual problem is solved (Saunders, Gammerman & Vovk, "Ridge regression learning algorithm in
    dual variables", 1998). `prior` comes back where the samples say nothing. Without `intercept` b is
    zero, and the moments are not centered. With `judged`, targets and a factor L of their metric, the
    ridge is made heavier as long as fits to one half of the samples, the first or the last, get better
    on the other.
    """

    def __init__(
        self,
        features: Float[Tensor, "samples features"],
        prior: Float[Tensor, "targets features"],
        ridge: float,
        intercept: bool = True,
        judged: tuple[Float[Tensor, "samples targets"], Float[Tensor, "targets targets"]]
        | None = None,
    ) -> None:
        self.prior = prior
        self.intercept = intercept
        self.mean = features.mean(0) if intercept else torch.zeros_like(features[0])
        self.centred = features - self.mean
        self.guess = self.centred @ prior.to(features.dtype).T
        variance = self.centred.square().mean(0).double()
        least = least_variance(judged[0], prior) if judged is not None else 0.0
        self.penalty = ridge_penalty(variance, ridge, least)
        many = len(features) >= features.shape[1]
        self.covariance: Tensor | None = None
        if judged is not None and len(features) > 1:
            targets, metric = judged[0], judged[1].to(features.dtype)
            rest = self._rest(targets)[1]
            if many:
                one, other = halves(self.centred, rest, intercept)
                self.covariance = together((one, other))
                lost = lost_from_moments(
                    (one.in_metric(metric), other.in_metric(metric)), self.penalty
                )
            else:
                lost = lost_from_samples(self.centred, rest @ metric, self.penalty, intercept)
            self.penalty *= careful_multiple(lost)
        if many:
            if self.covariance is None:
                self.covariance = (self.centred.T @ self.centred).double() / len(features)
            self.lower = _cholesky(self.covariance, self.penalty)
        else:
            self.scaled = (self.centred.double()) / self.penalty.sqrt()
            kernel = self.scaled @ self.scaled.T / len(features)
            self.lower = _cholesky(kernel, torch.ones_like(kernel[0]))

    def fit(self, targets: Float[Tensor, "samples targets"]) -> Fit:
        """The best slope and intercept for these targets."""
        mean, rest = self._rest(targets)
        if self.covariance is not None:
            cross = (self.centred.T @ rest).double() / len(targets)
            slope = torch.cholesky_solve(cross, self.lower).T.add_(self.prior)
        else:
            dual = torch.cholesky_solve(rest.double(), self.lower) / len(targets)
            slope = (dual.T @ self.scaled).div_(self.penalty.sqrt()).add_(self.prior)
        centre = self.mean.double()
        return Fit(slope, mean.double() - slope @ centre, centre)

    def _rest(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The targets' mean, and what the prior leaves of them."""
        mean = targets.mean(0) if self.intercept else torch.zeros_like(targets[0])
        return mean, targets - mean - self.guess

    def root(self, slope: Float[Tensor, "targets features"]) -> Float[Tensor, "parts targets"]:
        """R with Rᵀ R the covariance of slope · z, of as few rows as there are samples or features."""
        if self.covariance is None:
            return self.centred.double() @ slope.T / len(self.centred) ** 0.5
        return (slope @ self.spread).T

    @cached_property
    def spread(self) -> Float[Tensor, "features features"]:
        """Triangular L with L Lᵀ the features' covariance."""
        assert self.covariance is not None
        return factor(self.covariance)


def _cholesky(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """The factor of matrix + diag; rounding that leaves it indefinite is met by a heavier diagonal."""
    while True:
        lower, info = torch.linalg.cholesky_ex(raised(matrix.clone(), diagonal))
        if info.item() == 0:
            return lower
        diagonal = 10 * diagonal + torch.finfo(torch.float32).eps * matrix.diagonal().mean()
