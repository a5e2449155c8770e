"""Grouped layers refitted: each group as a least-squares problem of its own, whole networks too."""

from __future__ import annotations

import pytest
import torch
from models import TRAPS, images
from test_rewriting import edited, kept, outputs, relative_error
from torch import Tensor, nn

import onebyone as obo
from onebyone.factorize.fit import Band
from onebyone.factorize.grouped import fit_groups
from onebyone.factorize.least_squares import Regression


def problem(groups: int, c_in: int, c_out: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (c_out, taps, c_in / groups), patches and targets of 400 samples, 3 taps."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(c_out, 3, c_in // groups, generator=generator)
    patches = torch.randn(400, 3, c_in, generator=generator) + 0.5
    patches = patches + patches.roll(1, 2)
    targets = torch.randn(400, c_out, generator=generator) + patches[:, 0].mean(1, keepdim=True) + 2
    return weight, patches, targets


def check_each_group(groups: int, c_in: int, c_out: int, seed: int) -> None:
    """Law: every group's answer is that of a regression on its own channels alone."""
    weight, patches, targets = problem(groups, c_in, c_out, seed)
    found = fit_groups(weight, patches, targets, groups, 1e-3)
    inside, outside = c_in // groups, c_out // groups
    for g in range(groups):
        rows = slice(g * outside, (g + 1) * outside)
        features = patches[:, :, g * inside : (g + 1) * inside].reshape(len(patches), -1)
        prior = weight[rows].reshape(outside, -1)
        alone = Regression(features, prior.double(), 1e-3).fit(targets[:, rows])
        torch.testing.assert_close(found.core[rows].flatten(1), alone.slope, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.bias[rows], alone.intercept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("groups", "c_in", "c_out"), [(4, 8, 12), (6, 6, 6), (5, 5, 10), (1, 4, 3)]
)
def test_each_group_is_a_problem_of_its_own(groups: int, c_in: int, c_out: int) -> None:
    check_each_group(groups, c_in, c_out, 0)


def check_silent_groups(seed: int) -> None:
    """Law: where the samples say nothing the weights come back."""
    weight, patches, targets = problem(4, 8, 8, seed)
    patches[:, :, 2:4] = 0
    found = fit_groups(weight, patches, targets, 4, 1e-3)
    torch.testing.assert_close(found.core[2:4], weight[2:4].double())


def test_where_nothing_is_said_the_weights_come_back() -> None:
    check_silent_groups(0)


def test_a_band_lets_outputs_fall_on_their_side() -> None:
    weight, patches, targets = problem(4, 8, 8, 1)
    band = Band(torch.zeros(8), torch.full((8,), torch.inf))

    def error(**options: object) -> float:
        found = fit_groups(weight, patches, targets - 2, 4, 1e-6, **options)  # type: ignore[arg-type]
        split = patches.reshape(400, 3, 4, 2).permute(2, 0, 1, 3).reshape(4, 400, -1)
        core = found.core.reshape(4, 2, -1).float()
        given = (split @ core.transpose(1, 2)).transpose(0, 1).reshape(400, -1)
        given = given + found.bias.float()
        return float((given.relu() - (targets - 2).relu()).square().mean())

    assert error(band=band, rounds=3) < error()


@pytest.mark.parametrize("name", ["grouped", "depthwise"])
def test_grouped_layers_are_refitted_to_their_new_inputs(name: str) -> None:
    trap = TRAPS[name]
    model, inputs = trap.model(), trap.images(48)
    plan, statistics = kept(model, inputs)
    thin = edited(plan, {"first.0": ("squeeze", (2,))})
    lighter = obo.rewrite(model, thin, inputs, statistics=statistics)
    layer = lighter.get_submodule("first.1")
    assert isinstance(layer, nn.Conv2d)
    assert layer.groups == model.get_submodule("first.1").groups
    expected = outputs(model.first, inputs).relu()  # type: ignore[arg-type]
    refitted = relative_error(expected, outputs(lighter.first, inputs).relu())  # type: ignore[arg-type]
    layer.load_state_dict(model.get_submodule("first.1").state_dict())
    own = relative_error(expected, outputs(lighter.first, inputs).relu())  # type: ignore[arg-type]
    assert refitted < own


def test_a_network_of_grouped_layers_alone_keeps_every_bit() -> None:
    model, inputs = (
        nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU()).eval(),
        images(8, 4, 9, 9),
    )
    plan, statistics = kept(model, inputs)
    lighter = obo.rewrite(model, plan, inputs, statistics=statistics)
    assert torch.equal(lighter[0].weight, model[0].weight)  # type: ignore[index,union-attr]
