"""What was found on one half of the samples, judged on the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import onebyone as obo
from onebyone import statistics
from onebyone.factorize.judging import (
    careful_multiple,
    halves,
    lost_from_moments,
    lost_from_samples,
    tails_on_other,
    together,
)
from onebyone.factorize.metric import energies, factor, tails
from onebyone.factorize.selection import RIDGES, Order, Reading, judged
from onebyone.losses import Losses, beyond


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
    one, other = lost_from_moments(halves(x, y), penalty), lost_from_samples(x, y, penalty)
    assert one(8.0) - one(1.0) == pytest.approx(other(8.0) - other(1.0))


@pytest.mark.parametrize("samples", [20, 21])
def test_the_moments_of_halves_make_those_of_all(samples: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(samples, 6).double() + 3, torch.randn(samples, 3).double()
    torch.testing.assert_close(together(halves(x - x.mean(0), y)), torch.cov(x.T, correction=0))
    torch.testing.assert_close(together(halves(x, y, intercept=False)), x.T @ x / samples)


def test_the_same_samples_lose_their_own_tails() -> None:
    torch.manual_seed(0)
    a, b = (m @ m.T for m in torch.randn(2, 7, 7).double())
    root = factor(a)
    own = tails(energies(root.T @ b @ root))
    torch.testing.assert_close(tails_on_other(a, b, a, b), own, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-31, 1e31])
def test_what_one_half_hardly_felt_is_judged_as_well(scale: float) -> None:
    """Directions are those of any multiple; what is lost is a multiple of what the other half felt."""
    torch.manual_seed(0)
    a, b, c, d = (m @ m.T for m in torch.randn(4, 7, 7))
    lost = tails_on_other(a, b, c, d)
    torch.testing.assert_close(tails_on_other(a * scale, b, c, d), lost, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tails_on_other(a, b * scale, c, d), lost, rtol=1e-3, atol=1e-3)
    for other in (tails_on_other(a, b, c * scale, d), tails_on_other(a, b, c, d * scale)):
        torch.testing.assert_close(other / scale, lost, rtol=1e-3, atol=1e-3)
    assert tails_on_other(a * 0, b, c, d).isfinite().all()


@pytest.mark.parametrize("groups", [1, 2])
def test_what_a_widening_layer_loses_is_lost_within_its_reach(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs fill a part of their space alone, in which all is worked out as in the whole of it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 16, 1, groups=groups), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 5),
    ).eval()  # fmt: skip
    images = torch.randn(512, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    reached = obo.observe(model, images)
    (seen,) = (s for s in reached.survey.layers if s.layer == "2")
    monkeypatch.setattr(statistics, "_bases", lambda *given: {})
    whole = obo.observe(model, images)
    one, other = reached.layers["2"], whole.layers["2"]
    assert (one.outputs.size, other.outputs.size) == (6 // groups, 16 // groups)
    torch.testing.assert_close(one.covariance, other.covariance, rtol=1e-4, atol=1e-5)
    for half, as_whole in zip(reached.halves, whole.halves, strict=True):
        one, other = half.layers["2"], as_whole.layers["2"]
        assert (one.gradients.shape[-1], other.gradients.shape[-1]) == (6 // groups, 16 // groups)
        torch.testing.assert_close(one.covariance, other.covariance, rtol=1e-4, atol=1e-5)
    assert bool(reached.orders) == (groups == 1)
    for name, order in reached.orders.items():
        assert torch.equal(order.channels, whole.orders[name].channels)
        torch.testing.assert_close(order.errors, whole.orders[name].errors, rtol=1e-3, atol=1e-6)
    within, everywhere = Losses(reached), Losses(whole)
    for side, found in within.at(seen).items():
        assert found == pytest.approx(everywhere.at(seen)[side], rel=0.02, abs=1e-5 * found[0])
    spectra = within.spectrum(seen, "out"), everywhere.spectrum(seen, "out")
    torch.testing.assert_close(*spectra, rtol=1e-4, atol=1e-5 * float(spectra[0][0]))
    assert len(within.spectrum(seen, "out").nonzero()) == 6 // groups
    if groups == 1:
        kept = (0, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13, 15)
        for one, other in zip(
            within.spectrum(seen, "out", kept), everywhere.spectrum(seen, "out", kept), strict=True
        ):
            assert float(one) == pytest.approx(float(other), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("channels", "samples"), [(7, 5), (12, 400), (40, 30)])
def test_errors_of_widths_are_those_of_one_halfs_refits_on_the_other(
    channels: int, samples: int
) -> None:
    """Worked out width by width: what the dropped channels are made of in one half, judged on the other."""
    torch.manual_seed(channels)
    mixed = torch.randn(channels, channels).double()
    halves = [torch.randn(samples, channels).double() @ mixed for _ in range(2)]
    forms = [m @ m.T for m in torch.randn(2, channels, 3).double()]
    readings = [
        Reading(x.T @ x / samples, form, samples) for x, form in zip(halves, forms, strict=True)
    ]
    order = Order(torch.randperm(channels), torch.zeros(channels + 1).double())

    def left(fitted: Reading, other: Reading, width: int, ridge: float) -> float:
        kept, gone = order.channels[:width], order.channels[width:]
        variance = fitted.covariance.diagonal()
        whole = fitted.covariance + torch.diag(ridge * (variance + variance.mean()))
        made = torch.zeros(channels, channels).double()
        made[kept, kept] = 1
        made[gone[:, None], kept] = torch.linalg.solve(whole[kept][:, kept], whole[kept][:, gone]).T
        missed = torch.eye(channels).double() - made
        return float(torch.trace(other.form @ missed @ other.covariance @ missed.T))

    found = judged(order, readings[:1], readings[1:])
    one, other = readings
    curves = [
        torch.tensor([left(one, other, w, r) + left(other, one, w, r) for w in range(channels + 1)])
        for r in RIDGES
    ]
    monotone = [torch.cummax(c.flip(0), 0).values.flip(0) for c in curves]
    assert any(torch.allclose(found.errors, c.double(), rtol=1e-3, atol=1e-4) for c in monotone)
    assert float(found.errors[-1]) == 0
    assert (found.errors.diff() <= 0).all()
    assert found.channels is order.channels


def test_errors_of_widths_where_a_signal_has_died_away() -> None:
    """What is below all normal numbers is no covariance: products of it are rounded to anything."""
    torch.manual_seed(0)
    noise = torch.randn(6, 6) * 1e-40
    reading = Reading((noise + noise.T).fill_diagonal_(1e-45).double(), torch.eye(6).double(), 20)
    found = judged(Order(torch.arange(6), torch.zeros(7).double()), [reading], [reading])
    assert found.errors.isfinite().all()
    assert float(found.errors[-1]) == 0


def test_losses_beyond_those_of_the_images_seen() -> None:
    own = np.array([10.0, 4.0, 2.0, 1.0, 0.0])
    assert beyond(own, np.ones(5)) == pytest.approx(own)
    assert beyond(own, np.array([1.0, 2.0, 3.0])) == pytest.approx([10, 6, 4, 2.5, 0])
    # More than all is never lost, nor more at a higher rank.
    assert beyond(own, np.array([1.0, 9.0, 9.0])) == pytest.approx([10, 10, 10, 9, 0])


def test_few_images_promise_more_than_they_hold() -> None:
    """What a layer seems to lose on them is told apart from what others lose, the more so the fewer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 48),
        nn.ReLU(),
        nn.Linear(48, 9),
    ).eval()
    images = torch.randn(1024, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    found = []
    for number in (64, 1024):
        statistics = obo.observe(model, images[:number])
        assert len(statistics.halves) == 2
        (seen,) = (s for s in statistics.survey.layers if s.layer == "3")
        optimism = Losses(statistics).optimism(seen)["out"]
        assert (optimism >= 1).all()
        assert optimism[-1] == 1  # nothing is lost at full rank
        found.append(float(optimism[24]))
    assert found[0] > 2 > 1.6 > found[1]
