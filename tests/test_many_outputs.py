"""Layers of many more outputs than inputs, none of which can be left out: classifiers of many classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import onebyone as obo
from onebyone.factorize.factors import Factors
from onebyone.factorize.fit import fit, fit_within
from onebyone.factorize.metric import factor, reach


def layer(bias: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights of a linear layer 6 → 40, inputs that are off, its own outputs, and gradients."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(40, 1, 6, generator=generator)
    x = torch.randn(300, 1, 6, generator=generator)
    shift = torch.randn(40, generator=generator) if bias else torch.zeros(40)
    y = x[:, 0] @ weight[:, 0].T + shift
    gradients = torch.randn(500, 40, generator=generator)
    return weight, x + 0.1 * torch.randn(x.shape, generator=generator), y, gradients


@pytest.mark.parametrize(
    ("rank", "bias"), [(None, True), (None, False), (2, True), (6, True), (9, True), (40, False)]
)
def test_fit_within_the_reach_is_the_fit(rank: int | None, bias: bool) -> None:
    weight, x, y, gradients = layer(bias)
    basis = reach(weight[:, 0])
    form = gradients.T @ gradients
    own, whole_form = basis.T @ form @ basis, factor(form, 0.0)
    whole = fit(weight, x, y, whole_form, None, rank, 1e-6, bias=bias)
    within = fit_within(basis, weight, x, y, factor(own, 0.0), rank, 1e-6, bias=bias)

    def outputs(found: Factors) -> Tensor:
        core, expand = found.core.double(), found.expand
        made = core[:, 0] if expand is None else expand.double() @ core[:, 0]
        return x[:, 0].double() @ made.T + found.bias.double()

    torch.testing.assert_close(outputs(within), outputs(whole), rtol=1e-4, atol=1e-4)
    for one, other in ((whole.core, within.core), (whole.expand, within.expand)):
        assert (one is None) == (other is None)
        assert one is None or other is None or one.shape == other.shape


class Many(nn.Sequential):
    """A classifier of 3,000 classes on 24 channels."""

    def __init__(self, classes: int = 3000) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes),
        )  # fmt: skip


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Many().eval(), torch.randn(96, 3, 16, 16)


def test_gradients_are_kept_within_the_reach(made: tuple[nn.Module, Tensor]) -> None:
    model, images = made
    seen = obo.observe(model, images).layers
    assert seen["6"].gradients.shape == (24, 24)
    assert seen["6"].bounded
    assert seen["2"].gradients.shape == (24, 24)
    assert not seen["2"].bounded


def test_a_classifier_of_many_classes_is_slimmed(made: tuple[nn.Module, Tensor]) -> None:
    model, images = made
    slimmed = obo.slim(model, images, macs=0.5, held_out=16, latency=False)
    assert slimmed.plan.macs_after <= 0.5 * slimmed.plan.macs_before
    with torch.no_grad():
        one, other = slimmed.model(images), model(images)
    assert one.shape == (96, 3000)
    spread = (other - other.mean(0)).norm()
    assert float((one - other).norm() / spread) < 0.5


@pytest.mark.parametrize("rank", [3000, 24, 9, 1])
def test_every_rank_of_it_fits(made: tuple[nn.Module, Tensor], rank: int) -> None:
    model, images = made
    statistics = obo.observe(model, images)
    plan = obo.plan(model, statistics, obo.Budget(macs=1.0))
    decisions = tuple(
        replace(d, form="pointwise", ranks=(rank,), reason="", shape=None) if d.layer == "6" else d
        for d in plan.decisions
    )
    lighter = obo.rewrite(
        model, replace(plan, decisions=decisions, narrowings=()), images, statistics=statistics
    )
    with torch.no_grad():
        one, other = lighter(images), model(images)
    spread = (other - other.mean(0)).norm()
    lost = float((one - other).norm() / spread)
    assert lost < 1e-4 if rank >= 24 else 1e-4 < lost < 1


def test_one_that_no_gradient_reaches_keeps_its_outputs(made: tuple[nn.Module, Tensor]) -> None:
    class Detached(Many):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).detach()

    torch.manual_seed(0)
    model = Detached().eval()
    found = obo.observe(model, made[1])
    seen = found.layers["6"]
    assert seen.gradients.shape == (24, 24)
    assert bool(seen.gradients.any())
