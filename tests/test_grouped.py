"""Grouped layers refitted: each group as a least-squares problem of its own, whole networks too."""

from __future__ import annotations

import pytest
import torch
from models import TRAPS, head, images
from test_rewriting import edited, kept, outputs, relative_error
from torch import Tensor, nn

import onebyone as obo
from onebyone.building import skeleton
from onebyone.candidates import Candidates
from onebyone.factorize.fit import Band, fit
from onebyone.factorize.grouped import fit_each_group, fit_groups
from onebyone.factorize.least_squares import Regression
from onebyone.measurement.counting import count


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


@pytest.mark.parametrize("faint", [1e-4, 1e-6, 1e-8])
def test_channels_that_have_died_get_no_huge_weights(faint: float) -> None:
    """What is left of them agrees with the targets by chance; on another image they may be alive."""
    weight, patches, targets = problem(8, 8, 8, 0)
    patches[:, :, 3] *= faint
    metric, everywhere = torch.eye(8).double(), torch.full((8,), torch.inf)
    band = Band(-everywhere, everywhere)
    found = [
        fit_groups(weight, patches, targets, 8, 1e-3).core,
        fit(
            weight[3:4], patches[:, :, 3:4], targets[:, 3:4], metric[:1, :1], None, None, 1e-3
        ).core,
    ]
    alive = fit_groups(*problem(8, 8, 8, 0), 8, 1e-3).core
    assert float(found[0][3].norm()) < 30 * float(alive[3].norm())
    assert float(found[1].norm()) < 30 * float(alive[3].norm())
    others = [g for g in range(8) if g != 3]
    torch.testing.assert_close(found[0][others], alive[others])
    with_band = fit_groups(weight, patches, targets, 8, 1e-3, band).core
    assert float(with_band[3].norm()) < 30 * float(alive[3].norm())


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


# --- low-rank forms of each group


def check_thin_groups(seed: int) -> None:
    """Law: the factors of each group are those that its own channels and metric give."""
    weight, patches, targets = problem(4, 8, 12, seed)
    generator = torch.Generator().manual_seed(seed)
    metrics = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64).tril() * 3
    metrics += 4 * torch.eye(3)
    band = Band(torch.full((12,), -torch.inf), torch.full((12,), torch.inf))
    found = fit_each_group(weight, patches, targets, metrics, 1, 2, 1e-3, band, 1)
    for g in range(4):
        rows, columns = slice(3 * g, 3 * g + 3), slice(2 * g, 2 * g + 2)
        alone = fit(
            weight[rows], patches[:, :, columns].contiguous(), targets[:, rows], metrics[g], 1, 2,
            1e-3, Band(band.lower[rows], band.upper[rows]), 1,
        )  # fmt: skip
        for name in ("core", "bias", "reduce", "expand"):
            own = getattr(found, name).chunk(4)[g]
            torch.testing.assert_close(own, getattr(alone, name), rtol=1e-6, atol=1e-6)


def test_thin_groups_are_problems_of_their_own() -> None:
    check_thin_groups(0)


THIN = {"squeeze": (2,), "channel": (2,), "tucker2": (2, 2), "pointwise": (2,)}


def check_family(form: str, ranks: tuple[int, ...]) -> None:
    """Law: grouped kernels of the form's ranks are recovered, at the cost that PyTorch counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = 1 if form == "pointwise" else 3
        layer = nn.Conv2d(16, 24, size, stride=2, padding=size // 2, groups=4)
        model = head(nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), layer), 24).eval()
        thin = skeleton(layer, form, ranks)
        assert isinstance(thin, nn.Sequential)
        for part in thin:
            nn.init.normal_(part.weight, std=0.3)  # type: ignore[arg-type]
        nn.init.zeros_(thin[-1].bias)  # type: ignore[arg-type]
        with torch.no_grad():  # the kernel, read off from impulses
            x = torch.eye(16 * size**2).reshape(-1, 16, size, size)
            for part in thin:
                x = nn.functional.conv2d(x, part.weight, groups=4)  # type: ignore[arg-type]
            full = x.reshape(16, size, size, 24).permute(3, 0, 1, 2)
            own = [full[o, 4 * (o // 6) : 4 * (o // 6) + 4] for o in range(24)]
            layer.weight.copy_(torch.stack(own))
    inputs = torch.randn(64, 4, 12, 12, generator=torch.Generator().manual_seed(1))
    plan, statistics = kept(model, inputs)
    plan = edited(plan, {"first.1": (form, ranks)})
    lighter = obo.rewrite(model, plan, inputs, statistics=statistics)
    assert relative_error(outputs(model, inputs), outputs(lighter, inputs)) < 1e-7
    counted = count(lighter, inputs[:1])
    assert (plan.macs_after, plan.params_after) == (counted.macs, counted.params)
    assert all(part.groups == 4 for part in lighter.get_submodule("first.1"))  # type: ignore[union-attr]
    table = next(t for t in Candidates(statistics).tables(()) if t.seen.layer == "first.1")
    lost = dict(zip([(c.form, c.ranks) for c in table.candidates], table.errors, strict=True))
    less = tuple(r - 1 for r in ranks)
    assert lost[form, ranks] < 1e-4 * lost[form, less]


@pytest.mark.parametrize("form", THIN)
def test_grouped_kernels_of_a_form_are_recovered(form: str) -> None:
    check_family(form, THIN[form])


def test_groups_go_below_what_keeping_them_allows() -> None:
    """A network that is mostly grouped meets a budget that its dense layers alone cannot."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(32, 32, 3, padding=1, groups=2) for _ in range(2)]
        stem = nn.Sequential(nn.Conv2d(4, 32, 1), layers[0], nn.ReLU(), layers[1])
        model = head(stem, 32).eval()
    inputs = torch.randn(32, 4, 10, 10, generator=torch.Generator().manual_seed(1))
    slimmed = obo.slim(model, inputs, macs=0.4, latency=False)
    assert slimmed.plan.macs_after <= 0.4 * slimmed.plan.macs_before
    assert {slimmed.plan.of(f"first.{i}").form for i in (1, 3)} <= set(THIN) | {"spatial"}
