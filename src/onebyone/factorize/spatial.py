"""A kernel split along its axes: several taps of all channels read as one pixel with more channels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.metric import energies, factor
from onebyone.factorize.squeeze import input_form


def along_first(
    values: Float[Tensor, "n taps c_in"], first: int
) -> Float[Tensor, "n rest first_c_in"]:
    """The same numbers with the `first` taps of one axis taken for channels; taps are ordered along it.

    A kernel k×1 that is followed by one 1×k is to these values what a 1×1 before a convolution is to
    plain channels, so that all that holds for `squeeze` holds for it.
    """
    n, taps, c_in = values.shape
    split = values.reshape(n, first, taps // first, c_in).transpose(1, 2)
    return split.reshape(n, taps // first, first * c_in)


def between_form(
    weight: Float[Tensor, "c_out taps c_in"],
    taps: Float[Tensor, "taps taps"],
    gradients: Float[Tensor, "c_out c_out"],
    first: int,
) -> Float[Tensor, "first c_in first c_in"]:
    """What the loss feels of errors in the channels and first taps: Wᵀ (G ⊗ T₂) W in float32.

    Outputs and the taps of the other axes are the rows of W. The covariance of a patch is taken as a
    product of that of the channels (Σ) and of the taps along either side (T₁, T₂), as in `input_energy`.
    """
    other = torch.einsum("aras->rs", _along_both(taps, first))
    form = input_form(along_first(weight, first), other, gradients)
    # Several times as many as channels: float32 halves their products and what is kept of them.
    return form.float().reshape(first, weight.shape[2], first, weight.shape[2])


def between_energies(
    form: Float[Tensor, "first c_in first c_in"],
    covariance: Float[Tensor, "c_in c_in"],
    taps: Float[Tensor, "taps taps"],
    c_out: int,
) -> Float[Tensor, " found"]:
    """Loss-weighted energy of each direction between the two halves, from large to small.

    The squared singular values of (G^½ ⊗ T₂^½) W (T₁^½ ⊗ Σ^½), W with outputs and the taps of the other
    axes as rows, channels and the taps of the first axis as columns: the spatial decomposition of
    Jaderberg et al. 2014 in the metric of the loss. `form` is `between_form`, or its part for the
    channels that stay.
    """
    first, size = len(form), len(covariance)
    one = torch.einsum("arbr->ab", _along_both(taps, first))
    along = factor(one / one.diagonal().mean().clamp_min(1e-30)).float()
    channels = factor(covariance).float()
    white = torch.einsum(
        "abpq,ai,bj->ipjq", channels.T @ form.transpose(1, 2) @ channels, along, along
    )
    found = energies(white.reshape(first * size, first * size)).double()
    # A matrix of so many rows has no more: what is there is rounding.
    found[c_out * len(taps) // first :] = 0
    return found


def _along_both(taps: Tensor, first: int) -> Float[Tensor, "first rest first rest"]:
    rest = len(taps) // first
    return taps.double().reshape(first, rest, first, rest)
