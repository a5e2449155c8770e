"""Half of a symmetric product is that of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onebyone.factorize.judging import corners
from onebyone.factorize.triangular import BLOCK, congruent, lower_product, whitened

SIZES = (1, 5, BLOCK, BLOCK + 1, 2 * BLOCK + 37)


def symmetric(size: int) -> Tensor:
    rows = torch.randn(size + 3, size, generator=torch.Generator().manual_seed(size)).double()
    return rows.T @ rows


def unit_lower(size: int) -> Tensor:
    torch.manual_seed(size)
    return torch.eye(size).double() + torch.randn(size, size).tril(-1).double() / max(size, 2)


@pytest.mark.parametrize("size", SIZES)
def test_lower_product(size: int) -> None:
    torch.manual_seed(0)
    one, other = torch.randn(2, 7, size).double()
    torch.testing.assert_close(lower_product(one, other).tril(), (one.T @ other).tril())


@pytest.mark.parametrize("size", SIZES)
def test_congruent(size: int) -> None:
    form, lower = symmetric(size), unit_lower(size)
    torch.testing.assert_close(congruent(form, lower).tril(), (lower.T @ form @ lower).tril())


@pytest.mark.parametrize("size", SIZES)
def test_whitened(size: int) -> None:
    covariance, unit = symmetric(size), unit_lower(size)
    inverse = torch.linalg.inv(unit)
    wanted = inverse @ covariance @ inverse.T
    torch.testing.assert_close(whitened(covariance, unit).tril(), wanted.tril())
    assert torch.equal(covariance, symmetric(size))


@pytest.mark.parametrize("size", SIZES)
def test_corners_read_the_lower_triangle(size: int) -> None:
    products = symmetric(size)
    wanted = torch.stack([products[r:, r:].sum() for r in range(size + 1)])
    spoiled = torch.where(torch.ones_like(products).tril().bool(), products, torch.nan)
    for given in (products, spoiled):
        torch.testing.assert_close(corners(given), wanted.clamp_min(0), rtol=1e-9, atol=1e-6)
