"""A grouped convolution refitted or split: every group is a problem of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.factors import Factors
from onebyone.factorize.fit import Band, fit, relax
from onebyone.factorize.judging import careful_multiple, halves, lost_from_moments
from onebyone.factorize.metric import least_variance, raised, ridge_penalty


def group_features(
    patches: Float[Tensor, "samples taps c_in"], groups: int
) -> Float[Tensor, "groups samples features"]:
    """What each group reads; a group's features are ordered as its kernel, taps first.

    The samples of a feature lie one after another in memory: products of many small groups take a tenth
    of the time so.
    """
    samples, taps, c_in = patches.shape
    if groups == 1:
        return patches.reshape(1, samples, taps * c_in)
    own = c_in // groups
    columns = patches.reshape(samples, taps * c_in).T.contiguous()
    split = columns.reshape(taps, groups, own, samples).transpose(0, 1)
    return split.reshape(groups, taps * own, samples).transpose(1, 2)


def fit_groups(
    weight: Float[Tensor, "c_out taps c_group"],
    patches: Float[Tensor, "samples taps c_in"],
    targets: Float[Tensor, "samples c_out"],
    groups: int,
    ridge: float,
    band: Band | None = None,
    rounds: int = 3,
    bias: bool = True,
) -> Factors:
    """The weights (and bias) whose outputs on `patches` come nearest to `targets`, group by group.

    Minimises mean ‖y − B z − b‖² + ridge · Σ_j s_j ‖B_j − W_j‖² in each group, s = diag Cov(z) + its
    mean, as `Regression` does. With a `band`, targets outside it are relaxed in every round, as in
    `fit`. No metric is needed: without a cut of the rank each output is a problem of its own.
    """
    c_out, taps, _ = weight.shape
    features = group_features(patches, groups)
    prior = weight.reshape(groups, c_out // groups, -1).double()
    mean = features.mean(1, keepdim=True) if bias else torch.zeros_like(features[:, :1])
    features = features - mean
    samples = features.shape[1]
    covariance = (features.transpose(1, 2) @ features).double() / samples
    variance = covariance.diagonal(dim1=1, dim2=2)
    floor = torch.finfo(torch.float32).tiny
    penalty = ridge_penalty(variance, ridge, least_variance(targets, prior))
    guess = features @ prior.to(features.dtype).transpose(1, 2)
    if samples > 1:
        middle = targets.mean(0) if bias else torch.zeros_like(targets[0])
        spread = targets.std(0).clamp_min(floor)
        off = group_features((targets - middle)[:, None], groups) - guess
        rest = off / group_features(spread[None, None], groups)
        penalty = penalty * careful_multiple(
            lost_from_moments(halves(features, rest, bias), penalty + floor)
        )
    inverse = torch.linalg.inv(raised(covariance, penalty + floor))
    wanted, slope, intercept = targets, prior, torch.zeros_like(targets[0]).double()
    for step in range(1 + (rounds if band is not None else 0)):
        middle = wanted.mean(0) if bias else torch.zeros_like(wanted[0])
        rest = group_features((wanted - middle)[:, None], groups) - guess
        cross = (rest.transpose(1, 2) @ features).double() / samples
        slope = prior + cross @ inverse
        intercept = middle.double() - (slope @ mean.double().transpose(1, 2)).reshape(-1)
        if band is not None and step < rounds:
            given = features @ slope.to(features.dtype).transpose(1, 2)
            wanted = relax(targets, given.transpose(0, 1).reshape(samples, -1) + middle, band)
    return Factors(slope.reshape(c_out, taps, -1), intercept)


def fit_each_group(
    weight: Float[Tensor, "c_out taps c_group"],
    patches: Float[Tensor, "samples taps c_in"],
    targets: Float[Tensor, "samples c_out"],
    metrics: Float[Tensor, "groups out out"],
    rank_in: int | None,
    rank_out: int | None,
    ridge: float,
    band: Band,
    rounds: int,
) -> Factors:
    """The factors of `fit` for each group by itself, one after another: parts with as many groups."""
    samples, taps, _ = patches.shape
    groups = len(metrics)
    reads = patches.reshape(samples, taps, groups, -1)
    each = [
        fit(w, reads[:, :, g].contiguous(), y, metrics[g], rank_in, rank_out, ridge,
            Band(low, high), rounds)
        for g, (w, y, low, high) in enumerate(zip(
            weight.chunk(groups), targets.chunk(groups, 1), band.lower.chunk(groups),
            band.upper.chunk(groups), strict=True,
        ))
    ]  # fmt: skip
    return Factors(
        torch.cat([f.core for f in each]), torch.cat([f.bias for f in each]),
        None if rank_in is None else torch.cat([f.reduce for f in each if f.reduce is not None]),
        None if rank_out is None else torch.cat([f.expand for f in each if f.expand is not None]),
    )  # fmt: skip
