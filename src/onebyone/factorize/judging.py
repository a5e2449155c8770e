"""What was found on one half of the samples, judged on the other: how heavy a ridge, how low a rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.metric import (
    factor,
    of_unit_mean,
    raised,
    shrink,
    shrinkage_of_halves,
    spectrum,
    tails,
)  # fmt: skip
from onebyone.factorize.triangular import lower_product

JUDGED = 1536  # channels at the most whose directions or widths are: more take longer than a pass
HEAVIER = 8.0  # times the ridge, from one trial to the next
TRIALS = 4


def careful_multiple(lost: Callable[[float], float]) -> float:
    """The multiple of a ridge to take: one step lighter than the best of 8, 64, 512, ….

    Trials go on as long as each loses less than the last; whether 1 is better than 8 makes no difference.
    The best is for half of the samples, and for a layer by itself; heavier ridges leave more of the errors
    of the layers before it.
    """
    multiple, least = HEAVIER, lost(HEAVIER)
    for _ in range(TRIALS - 1):
        heavier = lost(HEAVIER * multiple)
        if not heavier < least:
            break
        multiple, least = HEAVIER * multiple, heavier
    return multiple / HEAVIER


@dataclass(frozen=True)
class Part:
    """Second moments of some of the samples: features with themselves and with targets, and the means
    that both were centred by (zero where they were not)."""

    samples: int
    own: Float[Tensor, "*groups features features"]
    cross: Float[Tensor, "*groups features targets"]
    mean: Float[Tensor, "*groups 1 features"]
    middle: Float[Tensor, "*groups 1 targets"]

    def in_metric(self, root: Float[Tensor, "targets targets"]) -> Part:
        """The same of the targets times L."""
        return replace(self, cross=self.cross @ root, middle=self.middle @ root)


def halves(
    features: Float[Tensor, "*groups samples features"],
    rest: Float[Tensor, "*groups samples targets"],
    intercept: bool = True,
) -> tuple[Part, Part]:
    """The moments of the first half of the samples and of the second."""
    found = []
    for x, y in zip(features.tensor_split(2, -2), rest.tensor_split(2, -2), strict=True):
        (x, mean), (y, middle) = _centred(x, intercept), _centred(y, intercept)
        turned, count = x.transpose(-1, -2), x.shape[-2]
        found.append(Part(count, turned @ x / count, turned @ y / count, mean, middle))
    return found[0], found[1]


def together(parts: tuple[Part, Part]) -> Float[Tensor, "*groups features features"]:
    """The covariance of features that were centred by their mean over both parts, in float64."""
    one, other = (
        part.samples * (part.own + part.mean.transpose(-1, -2) @ part.mean).double()
        for part in parts
    )
    return (one + other) / (parts[0].samples + parts[1].samples)


def lost_from_moments(
    parts: tuple[Part, Part], penalty: Float[Tensor, "*groups features"]
) -> Callable[[float], float]:
    """What a ridge regression loses on samples that it was not fitted to, up to a constant.

    It is fitted to each half of the samples and judged on the other, at any multiple of the penalty.
    Infinite where rounding leaves no solution. The factors are in float64; what they are applied to
    stays in the moments' dtype.
    """

    def lost(multiple: float) -> float:
        total = 0.0
        for fitted, other in (parts, parts[::-1]):
            own = fitted.own.to(torch.float64, copy=True)
            lower, info = torch.linalg.cholesky_ex(raised(own, multiple * penalty))
            if info.any():
                return torch.inf
            slope = torch.cholesky_solve(fitted.cross, lower.to(fitted.cross.dtype))
            offset = other.middle - fitted.middle - (other.mean - fitted.mean) @ slope
            missed = slope * (other.own @ slope - 2 * other.cross)
            total += float(missed.double().sum() + offset.double().square().sum())
        return total

    return lost


def lost_from_samples(
    features: Float[Tensor, "samples features"],
    rest: Float[Tensor, "samples targets"],
    penalty: Float[Tensor, " features"],
    intercept: bool = True,
) -> Callable[[float], float]:
    """The same where there are fewer samples than features, by the dual problem; no constant is missing."""
    scaled = features.double() / penalty.sqrt()
    halves = list(zip(scaled.tensor_split(2), rest.double().tensor_split(2), strict=True))

    def lost(multiple: float) -> float:
        total = 0.0
        for (x, y), (other, wanted) in (halves, halves[::-1]):
            (x, mean), (y, middle) = _centred(x, intercept), _centred(y, intercept)
            kernel = raised(x @ x.T / len(x), multiple)
            dual = torch.cholesky_solve(y, torch.linalg.cholesky(kernel)) / len(x)
            given = (other - mean) @ (x.T @ dual)
            total += float((wanted - middle - given).square().sum() / len(wanted))
        return total

    return lost


def _centred(rows: Tensor, whether: bool) -> tuple[Tensor, Tensor]:
    """The rows less their mean, and the mean; zero where they are not to be centred."""
    mean = rows.mean(-2, keepdim=True) if whether else torch.zeros_like(rows[..., :1, :])
    return rows - mean, mean


def tails_on_other(
    form: Float[Tensor, "d d"],
    covariance: Float[Tensor, "d d"],
    other_form: Float[Tensor, "d d"],
    other_covariance: Float[Tensor, "d d"],
) -> Float[Tensor, " d_plus_1"]:
    """What other samples lose when the r directions are kept that are best for some, for r = 0 … d.

    With G = L Lᵀ (shrunk by as much as both forms differ) and U the eigenvectors of Lᵀ Σ L, the
    directions that go have the columns of L⁻ᵀ U from r on; the others lose Σ_{i, j ≥ r} X_ij Y_ij,
    X = (L⁻ᵀ U)ᵀ G' (L⁻ᵀ U) and Y = (L U)ᵀ Σ' (L U).
    """
    noise = min(shrinkage_of_halves(form, other_form), 0.99)
    # From here on in float32, which takes half the time: what they are judged by is known to a few digits.
    # Directions are those of any multiples, and the factors of one half may be beyond its range.
    root = factor(of_unit_mean(shrink(form.double(), noise))[0]).float()
    vectors = spectrum(root.T @ of_unit_mean(covariance)[0].float() @ root)[1]
    out, read = torch.linalg.solve_triangular(root.T, vectors, upper=True), root @ vectors
    (judging, more), (seen, times) = of_unit_mean(other_form), of_unit_mean(other_covariance)
    products = lower_product(judging.float() @ out, out) * lower_product(seen.float() @ read, read)
    return corners(products) * more * times


def corners(products: Float[Tensor, "d d"]) -> Float[Tensor, " d_plus_1"]:
    """Σ_{i, j ≥ r} of symmetric products for r = 0 … d, of which the lower triangle is read; in float64,
    where rounding never makes it negative."""
    sums = products.tril(-1).sum(0, dtype=torch.float64)
    return tails(2 * sums + products.diagonal()).clamp_min(0)
