"""Products of symmetric and triangular matrices of which one triangle is enough, by blocks of columns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 192  # columns at once: enough for a matrix product to be fast


def lower_product(one: Float[Tensor, "k d"], other: Float[Tensor, "k d"]) -> Float[Tensor, "d d"]:
    """The lower triangle of AᵀB; what stands above it is not to be read."""
    found = one.new_empty(one.shape[1], one.shape[1])
    for first, end in _blocks(len(found)):
        found[first:, first:end] = one[:, first:].T @ other[:, first:end]
    return found


def congruent(form: Float[Tensor, "d d"], lower: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The lower triangle of LᵀFL, F symmetric and L lower triangular; a quarter of the whole product."""
    found, half = torch.empty_like(form), torch.empty_like(form)
    for first, end in _blocks(len(form)):
        half[first:, first:end] = form[first:, first:] @ lower[first:, first:end]
    for first, end in _blocks(len(form)):
        found[first:end, :end] = lower[first:, first:end].T @ half[first:, :end]
    return found


def whitened(covariance: Float[Tensor, "d d"], unit: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The lower triangle of L⁻¹ΣL⁻ᵀ, Σ symmetric and L lower triangular of unit diagonal."""
    found = torch.linalg.solve_triangular(unit, covariance, upper=False, unitriangular=True)
    for first, end in _blocks(len(found)):
        rows = found[first:, first:end]
        rows -= found[first:, :first] @ unit[first:end, :first].T
        found[first:, first:end] = torch.linalg.solve_triangular(
            unit[first:end, first:end].T, rows, upper=True, left=False, unitriangular=True
        )
    return found


def _blocks(size: int) -> list[tuple[int, int]]:
    return [(first, min(first + BLOCK, size)) for first in range(0, size, BLOCK)]
