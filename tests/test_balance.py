"""Factors scaled alike compute what they computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onebyone.factorize.balance import balanced
from onebyone.factorize.factors import Factors


def whole(factors: Factors) -> Tensor:
    """expand · core · reduce at every tap, (c_out, taps, c_in)."""
    made = factors.core.double()
    if factors.reduce is not None:
        made = made @ factors.reduce.double()
    return made if factors.expand is None else torch.tensordot(factors.expand.double(), made, 1)


def given(rank: int, faintest: float, seed: int = 0) -> Factors:
    """A pair 40×rank and rank×2×30 of norms far apart, their directions down to `faintest`."""
    generator = torch.Generator().manual_seed(seed)
    expand, core = (
        torch.randn(40, rank, generator=generator),
        torch.randn(rank, 60, generator=generator),
    )
    scales = torch.logspace(0, float(torch.tensor(faintest).log10()), rank)
    return Factors(
        1e-3 * core.double().reshape(rank, 2, 30), torch.zeros(40), None,
        1e3 * expand.double() * scales,
    )  # fmt: skip


@pytest.mark.parametrize("faintest", [1.0, 1e-3, 1e-5, 1e-9, 1e-14])
@pytest.mark.parametrize("rank", [1, 7, 40])
def test_a_pair_is_balanced(rank: int, faintest: float) -> None:
    before = given(rank, faintest)
    after = balanced(before)
    assert after.expand is not None
    torch.testing.assert_close(whole(after), whole(before), rtol=1e-7, atol=1e-9)
    one, other = after.expand.T @ after.expand, after.core.flatten(1) @ after.core.flatten(1).T
    if faintest >= 1e-5:
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(one.max()))
        torch.testing.assert_close(
            one, torch.diag(one.diagonal()), rtol=0, atol=1e-6 * float(one.max())
        )
    values = torch.linalg.svdvals(whole(before).flatten(1))[:rank]
    torch.testing.assert_close(one.diagonal(), values, rtol=1e-5, atol=1e-6 * float(values[0]))


def test_a_silent_direction_stays_finite() -> None:
    before = given(7, 1.0)
    assert before.expand is not None
    before.expand[:, 3] = 0
    silent = balanced(before)
    before.core[5] = 0
    for factors in (silent, balanced(before)):
        assert factors.expand is not None
        assert bool(factors.expand.isfinite().all())
        assert bool(factors.core.isfinite().all())
    torch.testing.assert_close(whole(balanced(before)), whole(before), rtol=1e-7, atol=1e-9)


def test_three_factors_keep_their_map() -> None:
    generator = torch.Generator().manual_seed(1)
    core, reduce, expand = (
        torch.randn(shape, generator=generator).double() for shape in ((6, 9, 5), (5, 12), (16, 6))
    )
    before = Factors(100 * core, torch.zeros(16), reduce / 100, expand)
    after = balanced(before)
    assert after.reduce is not None
    assert after.expand is not None
    torch.testing.assert_close(whole(after), whole(before), rtol=1e-9, atol=1e-9)
    norms = [float(part.norm()) for part in (after.core, after.reduce, after.expand)]
    assert max(norms) < 2 * min(norms)
    assert max(norms) < 1.001 * min(norms)
    for part, other in (
        (after.core.square().sum((1, 2)), after.expand.square().sum(0)),
        (after.core.square().sum((0, 1)), after.reduce.square().sum(1)),
    ):  # one scale for each direction
        torch.testing.assert_close(part, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sizes", [(12, 2, 4), (2, 1, 5), (6, 9, 5)])
def test_three_factors_with_silent_directions(sizes: tuple[int, int, int]) -> None:
    """More directions than the core has, and one of zeros: finite factors of the same map and sizes."""
    out, taps, inside = sizes
    generator = torch.Generator().manual_seed(2)
    core = torch.randn(out, taps, inside, generator=generator).double()
    reduce = torch.randn(inside, 7, generator=generator).double()
    expand = torch.randn(16, out, generator=generator).double()
    core[0], reduce[-1] = 0, 0
    before = Factors(core, torch.zeros(16), reduce, expand)
    after = balanced(before)
    assert after.reduce is not None
    assert after.expand is not None
    for one, other in zip(
        (core, reduce, expand), (after.core, after.reduce, after.expand), strict=True
    ):
        assert one.shape == other.shape
        assert bool(other.isfinite().all())
    torch.testing.assert_close(whole(after), whole(before), rtol=1e-9, atol=1e-9)
