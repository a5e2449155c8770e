"""What was found on one half of the samples, judged on the other."""

from __future__ import annotations

import pytest
import torch

from onebyone.factorize.judging import (
    careful_multiple,
    lost_from_moments,
    lost_from_samples,
    tails_on_other,
)
from onebyone.factorize.metric import energies, factor, tails


@pytest.mark.parametrize(("best", "taken"), [(1, 1), (8, 1), (64, 8), (4096, 512)])
def test_one_step_lighter_than_the_best(best: float, taken: float) -> None:
    assert careful_multiple(lambda m: abs(m - best)) == taken


def test_moments_and_samples_agree_up_to_a_constant() -> None:
    torch.manual_seed(0)
    x, y, penalty = (
        torch.randn(20, 6).double(),
        torch.randn(20, 3).double(),
        torch.full((6,), 0.1).double(),
    )
    one, other = lost_from_moments(x, y, penalty), lost_from_samples(x, y, penalty)
    assert one(8.0) - one(1.0) == pytest.approx(other(8.0) - other(1.0))


def test_the_same_samples_lose_their_own_tails() -> None:
    torch.manual_seed(0)
    a, b = (m @ m.T for m in torch.randn(2, 7, 7).double())
    root = factor(a)
    own = tails(energies(root.T @ b @ root))
    torch.testing.assert_close(tails_on_other(a, b, a, b), own, rtol=1e-3, atol=1e-3)
