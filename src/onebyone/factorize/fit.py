"""One layer solved on the rows that reach it: the factors of any form, towards given outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from onebyone.factorize.alternate import improve_basis
from onebyone.factorize.balance import balanced
from onebyone.factorize.factors import Factors
from onebyone.factorize.least_squares import Regression
from onebyone.factorize.metric import factor
from onebyone.factorize.reduced_rank import reduced_rank
from onebyone.factorize.squeeze import squeeze_basis, tap_products

CHANNEL_SHRINKAGE = 1e-4
MET = 64  # units of rounding of the largest target: what is nearer cannot be told from it


@dataclass(frozen=True)
class Band:
    """The outputs that matter, channel by channel: what lies below `lower` or above `upper` counts
    as if it lay on the edge (a ReLU behind the layer, with whatever normalisation between)."""

    lower: Float[Tensor, " c_out"]
    upper: Float[Tensor, " c_out"]


def fit(
    weight: Float[Tensor, "c_out taps c_in"],
    patches: Float[Tensor, "samples taps c_in"],
    targets: Float[Tensor, "samples c_out"],
    metric: Float[Tensor, "c_out c_out"],
    rank_in: int | None,
    rank_out: int | None,
    ridge: float,
    band: Band | None = None,
    rounds: int = 3,
    bias: bool = True,
) -> Factors:
    """Factors whose outputs on `patches` come nearest to `targets` in the metric G = L Lᵀ.

    The squeezing basis is `squeeze_basis` under the patches' own moments; given it, the core is the
    least-squares map from squeezed patches to targets, and its best cut to `rank_out` is
    `reduced_rank` (exact, by Eckart–Young in the whitened space). Then, `rounds` times: the basis is
    improved given what follows it (`improve_basis`), and what follows is solved again. `ridge` draws
    towards `weight`; `bias` False solves without an intercept. With a `band`, targets outside it are
    relaxed in every round to what the last fit gave, as far as that lies outside too (Zhang et al.
    2016, §3.2, the nonlinear case, by majorization). There are no more rounds once the targets are met.
    """
    c_out, taps, _ = weight.shape
    if rank_in is None:
        flat = patches.reshape(len(patches), -1)
        judged = targets, metric
        regression = Regression(flat, weight.reshape(c_out, -1), ridge, bias, judged)
        found = _thin(regression, targets, metric, rank_out)
        for _ in range(rounds if band is not None else 0):
            given = _given(found, flat)
            if _met(targets, given):
                break
            found = _thin(regression, relax(targets, given, band), metric, rank_out)
        return balanced(_factors(found, taps, None))
    moments, tap_moments = patch_moments(patches)
    channels = factor(moments, CHANNEL_SHRINKAGE)
    reduce = squeeze_basis(weight, channels, tap_moments, metric, rank_in)
    wanted, found = targets, None
    for step in range(1 + rounds):
        if found is not None:
            now = _factors(found, taps, reduce)
            reduce = improve_basis(reduce, now.core, now.expand, patches, wanted, metric, channels)
        flat = (patches @ reduce.to(patches.dtype).T).reshape(len(patches), -1)
        prior = weight.double() @ (channels @ (reduce @ channels).T)
        regression = Regression(flat, prior.reshape(c_out, -1), ridge, judged=(wanted, metric))
        found = _thin(regression, wanted, metric, rank_out)
        if step < rounds:
            given = _given(found, flat)
            if _met(targets, given):
                break
            wanted = relax(targets, given, band)
    assert found is not None
    return balanced(_factors(found, taps, reduce))


def fit_within(
    basis: Float[Tensor, "c_out reach"],
    weight: Float[Tensor, "c_out taps c_in"],
    patches: Float[Tensor, "samples taps c_in"],
    targets: Float[Tensor, "samples c_out"],
    metric: Float[Tensor, "reach reach"],
    rank: int | None,
    ridge: float,
    bias: bool = True,
) -> Factors:
    """`fit` of a layer of many outputs, such as a classifier of thousands of classes, in what they reach.

    All but their mean lies in the span of the orthonormal columns Q of `basis`, that of the weights: the
    weights that come nearest lie there too. `metric` is that within it; no band relaxes single outputs.
    """
    own = torch.tensordot(basis.T.to(weight.dtype), weight, 1)
    found = fit(
        own, patches, targets @ basis.to(targets.dtype), metric, None, rank, ridge, bias=bias
    )
    spread = basis.double()
    mean = targets.mean(0).double() if bias else torch.zeros_like(spread[:, 0])
    shift = mean + spread @ (found.bias.double() - spread.T @ mean)
    if found.expand is not None:
        more = max(0, (rank or 0) - len(found.core))  # past the reach there is nothing to add
        core, expand = pad(found.core, (0, 0, 0, 0, 0, more)), pad(found.expand, (0, more))
        return Factors(core, shift, expand=spread @ expand)
    return Factors(torch.tensordot(spread, found.core, 1), shift)


@dataclass(frozen=True)
class _Map:
    """A linear map `slope`, or where its rank was cut `expand · slope`, and a bias."""

    slope: Tensor
    bias: Tensor
    expand: Tensor | None


def _thin(regression: Regression, targets: Tensor, metric: Tensor, rank: int | None) -> _Map:
    """The fit itself, or its best cut to a rank with the mean output kept."""
    found = regression.fit(targets)
    if rank is None:
        return _Map(found.slope, found.intercept, None)
    low = reduced_rank(found.slope, regression.root(found.slope), metric, rank)
    lost = found.slope @ found.feature_mean - low.expand @ (low.reduce @ found.feature_mean)
    return _Map(low.reduce, found.intercept + lost, low.expand)


def _given(found: _Map, flat: Tensor) -> Tensor:
    """The outputs of a map on these features."""
    through = flat @ found.slope.to(flat.dtype).T
    if found.expand is not None:
        through = through @ found.expand.to(flat.dtype).T
    return through + found.bias.to(flat.dtype)


def _met(targets: Tensor, given: Tensor) -> bool:
    near = MET * torch.finfo(targets.dtype).eps
    return bool((targets - given).abs().max() <= near * targets.abs().max())


def _factors(found: _Map, taps: int, reduce: Tensor | None) -> Factors:
    core = found.slope.reshape(len(found.slope), taps, -1)
    return Factors(core, found.bias, reduce, found.expand)


def relax(
    targets: Float[Tensor, "samples c_out"],
    given: Float[Tensor, "samples c_out"],
    band: Band | None,
) -> Float[Tensor, "samples c_out"]:
    """Targets outside the band moved to the given outputs where these lie outside on the same side."""
    if band is None:
        return targets
    lower, upper = band.lower.to(targets), band.upper.to(targets)
    below = torch.where(targets <= lower, torch.minimum(given, lower), targets)
    return torch.where(targets >= upper, torch.maximum(given, upper), below)


def patch_moments(
    patches: Float[Tensor, "samples taps c_in"],
) -> tuple[Float[Tensor, "c_in c_in"], Float[Tensor, "taps taps"]]:
    """Covariance of the channels over all taps, and of the taps over the channels (mean diagonal 1)."""
    rows = patches.reshape(-1, patches.shape[2])
    mean = rows.mean(0)
    channels = (rows.T @ rows).double() / len(rows) - mean.double().outer(mean.double())
    taps = tap_products(patches)
    return channels, taps / taps.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
