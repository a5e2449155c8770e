"""Fewer input channels for a k×k convolution: the 1×1 that squeezes them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.metric import factor, spectrum


def input_energy(
    weight: Float[Tensor, "c_out taps c_in"],
    channels: Float[Tensor, "c_in c_in"],
    taps: Float[Tensor, "taps taps"],
    metric: Float[Tensor, "c_out c_out"],
) -> Float[Tensor, "c_in c_in"]:
    """Loss-weighted energy of the directions of the whitened input channels, as a quadratic form.

    The covariance of a patch is taken as a Kronecker product of that of the channels and that of
    the taps (the assumption of Grosse & Martens, "A Kronecker-factored approximate Fisher matrix
    for convolution layers", 2016); `channels` and `metric` are triangular factors L of L Lᵀ.
    """
    c_out, k, c_in = weight.shape
    root = factor(taps)
    white = metric.T @ weight.double().reshape(c_out, -1)
    white = torch.einsum("okc,kj->ojc", white.reshape(c_out, k, c_in), root).reshape(-1, c_in)
    white = white @ channels
    return white.T @ white


def input_form(
    weight: Float[Tensor, "c_out taps c_in"],
    taps: Float[Tensor, "taps taps"],
    gradients: Float[Tensor, "c_out c_out"],
) -> Float[Tensor, "c_in c_in"]:
    """Σ_kl T_kl W_kᵀ G W_l: what the loss feels of errors in the input channels, as a quadratic form.

    It is `input_energy` before the channels are whitened, with T scaled to a mean diagonal of 1.
    """
    c_out, k, c_in = weight.shape
    own = weight.to(gradients.dtype)
    felt = gradients @ own.reshape(c_out, -1)
    scaled = (taps / taps.diagonal().mean().clamp_min(1e-30)).to(own.dtype)
    mixed = torch.einsum("kl,olc->okc", scaled, own) if k > 1 else own
    found = felt.reshape(-1, c_in).T @ mixed.reshape(-1, c_in)
    return (found + found.T) / 2


def tap_products(
    patches: Float[Tensor, "samples taps c_in"], most: int = 1 << 16
) -> Float[Tensor, "taps taps"]:
    """Products of the centered taps, summed over channels and over about `most` values of each tap."""
    every = max(1, patches.shape[0] * patches.shape[2] // most)
    part = patches[::every]
    centered = part - part.mean((0, 1))
    values = centered.transpose(1, 2).reshape(-1, patches.shape[1])
    return (values.T @ values).double()


def squeeze_basis(
    weight: Float[Tensor, "c_out taps c_in"],
    channels: Float[Tensor, "c_in c_in"],
    taps: Float[Tensor, "taps taps"],
    metric: Float[Tensor, "c_out c_out"],
    rank: int,
) -> Float[Tensor, "rank c_in"]:
    """The `rank` mixtures of the input channels that the loss needs most; every tap reads the same.

    With x = L z, z white, and V the top eigenvectors of `input_energy`: Vᵀ L⁻¹. (Zhang et al. 2016
    for outputs; here for inputs, Kim et al. 2016, §3, weighted.) Where the rank cuts nothing, L⁻¹: any
    basis is as good.
    """
    if rank >= len(channels):
        vectors = torch.eye(len(channels)).to(channels)
    else:
        vectors = spectrum(input_energy(weight, channels, taps, metric))[1][:, :rank]
    return torch.linalg.solve_triangular(channels.T, vectors, upper=True).T
