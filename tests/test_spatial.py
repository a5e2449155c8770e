"""Kernels in two halves: the spectrum by brute force, exact recovery, costs, files, merging."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from models import head
from test_rewriting import edited, kept, outputs, relative_error
from test_tree import check_untouched
from torch import Tensor, nn

import onebyone as obo
from onebyone.candidates import Candidates
from onebyone.conv import ConvSpec
from onebyone.factorize.metric import factor
from onebyone.factorize.spatial import along_first, between_energies, between_form
from onebyone.forms import FORMS
from onebyone.measurement.counting import count
from onebyone.merging import merged
from onebyone.plans import Budget, Plan

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
LAYER = "first.1"
RANK = 3


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(seed: int, size: int) -> Tensor:
    root = random(seed, size, 2 * size)
    return root @ root.T / size


def check_spectrum(first: int, rest: int, c_in: int, c_out: int) -> None:
    """Law: the energies are the squared singular values of the whitened kernel, written out."""
    one, other = positive(1, first), positive(2, rest)
    one, other = one / one.diagonal().mean(), other / other.diagonal().mean()
    covariance, gradients = positive(3, c_in), positive(4, c_out)
    weight = random(5, c_out, first * rest, c_in)
    left = torch.kron(factor(gradients), factor(other))
    right = torch.kron(factor(one), factor(covariance))
    rows = weight.reshape(c_out, first, rest, c_in).transpose(1, 2)
    wanted = torch.linalg.svdvals(left.T @ rows.reshape(c_out * rest, -1) @ right).square()
    taps = 7 * torch.kron(one, other)
    form = between_form(weight, taps, gradients, first)
    found = between_energies(form, covariance, taps, c_out)
    size = min(len(found), len(wanted))
    torch.testing.assert_close(found[:size], wanted[:size], rtol=1e-4, atol=1e-4 * wanted[0].item())
    assert found[size:].sum() <= 1e-9 * found[0]


@pytest.mark.parametrize("sizes", [(3, 3, 4, 5), (5, 2, 3, 4), (2, 9, 3, 2)])
def test_the_spectrum_is_that_of_the_whitened_kernel(sizes: tuple[int, int, int, int]) -> None:
    check_spectrum(*sizes)


def test_taps_of_the_first_axis_become_channels() -> None:
    values = torch.arange(2 * 6 * 4).reshape(2, 3, 2, 4)  # three taps, then two, then channels
    found = along_first(values.reshape(2, 6, 4).double(), 3)
    assert found.shape == (2, 2, 12)
    assert found[1, 0].tolist() == values[1, :, 0].flatten().tolist()


# --- layers whose kernel is of the form


KINDS = {
    "3×3": lambda: nn.Conv2d(16, 16, 3, padding=1),
    "3×3 with stride 2": lambda: nn.Conv2d(16, 16, 3, stride=2, padding=1),
    "two strides, no padding": lambda: nn.Conv2d(16, 12, (5, 3), stride=(2, 1), bias=False),
    "dilated": lambda: nn.Conv2d(16, 16, 3, dilation=(2, 3), padding=(2, 1)),
    "reflected": lambda: nn.Conv2d(16, 16, 3, padding=(0, 1), padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
    "even, same": lambda: nn.Conv2d(16, 16, (2, 4), padding="same"),
    "grouped": lambda: nn.Conv2d(16, 32, 3, padding=1, groups=4),
}


class Deep(nn.Module):
    """Two convolutions over volumes."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Conv3d(4, 12, 1), nn.Conv3d(12, 12, 3, stride=(1, 2, 1), padding=1))
        self.first = nn.Sequential(*layers)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.first(x).relu().mean((2, 3, 4)))


def network(kind: str) -> tuple[nn.Module, Tensor]:
    """A network whose layer `LAYER` has a kernel of rank RANK between its halves, and images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = Deep()
        if kind != "3d":
            layer = KINDS[kind]()
            stem = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), layer)
            model = head(stem, layer.out_channels)
    layer = model.get_submodule(LAYER)
    conv, weight = ConvSpec.of(layer), layer.weight
    first, out, groups = conv.first_taps, conv.c_out // conv.groups, conv.groups
    one = random(6, groups, RANK, first, conv.c_in // groups)
    other = random(7, groups, out, conv.taps // first, RANK)
    kernel = torch.einsum("gosr,grfc->gocfs", other, one) / 10
    with torch.no_grad():
        weight.copy_(kernel.reshape(weight.shape))  # type: ignore[operator,union-attr,arg-type]
    size = (5, 6, 7) if kind == "3d" else (11, 10)
    return model.eval(), random(8, 48, 4, *size).float()


def in_halves(model: nn.Module, inputs: Tensor, rank: int) -> tuple[nn.Module, Plan]:
    plan, statistics = kept(model, inputs)
    plan = edited(plan, {LAYER: ("spatial", (rank,))})
    return obo.rewrite(model, plan, inputs, statistics=statistics), plan


def check_recovered(kind: str) -> None:
    """Law: a kernel of the form is recovered to rounding, and costs what PyTorch counts."""
    model, inputs = network(kind)
    lighter, plan = in_halves(model, inputs, RANK)
    others = random(9, *inputs.shape).float()
    assert relative_error(outputs(model, others), outputs(lighter, others)) < 1e-8
    counted = count(lighter, inputs[:1])
    assert (plan.macs_after, plan.params_after) == (counted.macs, counted.params)
    check_untouched(model, lambda net: in_halves(net, inputs, RANK))
    if kind != "3d":  # one rank less loses something
        assert (
            relative_error(outputs(model, others), outputs(in_halves(model, inputs, 2)[0], others))
            > 1e-4
        )


@pytest.mark.parametrize("kind", [*KINDS, "3d"])
def test_kernels_of_the_form_are_recovered(kind: str) -> None:
    check_recovered(kind)


def check_predicted(kind: str) -> None:
    """Law: what is predicted to be lost falls with the rank and ends at that of the kernel."""
    model, inputs = network(kind)
    _, statistics = kept(model, inputs)
    table = next(t for t in Candidates(statistics).tables(()) if t.seen.layer == LAYER)
    lost = {c.ranks[0]: e for c, e in zip(table.candidates, table.errors, strict=True)
            if c.form == "spatial"}  # fmt: skip
    ranks = sorted(lost)
    assert all(lost[a] >= lost[b] for a, b in pairwise(ranks))
    below = [lost[r] for r in ranks if r < RANK]
    above = [lost[r] for r in ranks if r >= RANK]
    assert above
    assert max(above) < 1e-4 * max(below, default=1.0)


@pytest.mark.parametrize("kind", ["3×3 with stride 2", "dilated", "grouped", "3d"])
def test_what_is_lost_is_predicted(kind: str) -> None:
    check_predicted(kind)


def check_merged(kind: str) -> None:
    """Law: the two halves multiplied out are the layer again."""
    model, inputs = network(kind)
    lighter, plan = in_halves(model.double(), inputs.double(), 2)
    whole = merged(lighter, plan)
    assert type(whole.get_submodule(LAYER)) is type(model.get_submodule(LAYER))
    torch.testing.assert_close(outputs(whole, inputs.double()), outputs(lighter, inputs.double()))


@pytest.mark.parametrize("kind", [*KINDS, "3d"])
def test_halves_merge(kind: str) -> None:
    check_merged(kind)


def test_halves_beat_those_of_the_weights_alone() -> None:
    """The spatial decomposition as published (of the weights), beside the one that sees the data."""
    model, inputs = network("3×3")
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, nn.Conv2d)
    with torch.no_grad():
        layer.weight.copy_(random(10, *layer.weight.shape) / 10)
    lighter, _ = in_halves(model, inputs, 8)
    kernel = layer.weight.detach().permute(0, 3, 2, 1).reshape(16 * 3, 3 * 16)
    u, s, v = torch.linalg.svd(kernel)
    halves = lighter.get_submodule(LAYER)
    assert isinstance(halves, nn.Sequential)
    expected = outputs(model.first, inputs)  # type: ignore[arg-type]
    own = relative_error(expected, outputs(lighter.first, inputs))  # type: ignore[arg-type]
    with torch.no_grad():
        first, second = (v[:8].reshape(8, 3, 16), (u * s)[:, :8].reshape(16, 3, 8))
        halves[0].weight.copy_(first.transpose(1, 2)[..., None])  # type: ignore[operator,union-attr]
        halves[1].weight.copy_(second.transpose(1, 2)[:, :, None])  # type: ignore[operator,union-attr]
        halves[1].bias.copy_(layer.bias)  # type: ignore[operator,union-attr]
    published = relative_error(expected, outputs(lighter.first, inputs))  # type: ignore[arg-type]
    assert own < 0.95 * published


def test_a_folder_brings_it_back(tmp_path: Path) -> None:
    model, inputs = network("3×3 with stride 2")
    _, plan = in_halves(model, inputs, RANK)
    slimmed = obo.slim(model, inputs, plan=plan, latency=False)
    slimmed.save(tmp_path / "thin")
    back = obo.load(str(tmp_path / "thin"), architecture=network("3×3 with stride 2")[0]).model
    torch.testing.assert_close(outputs(back, inputs), outputs(slimmed.model, inputs))
    again = obo.read_plan(tmp_path / "thin" / "plan.json")
    assert again.of(LAYER) == slimmed.plan.of(LAYER)
    assert again.macs_after == count(back, inputs[:1]).macs


def test_the_planner_takes_it_where_it_pays() -> None:
    model, inputs = network("3×3")
    plan = obo.plan(model, obo.observe(model, inputs), Budget(macs=0.5))
    assert plan.of(LAYER).form == "spatial"
    assert FORMS["spatial"].title == "k×1 and 1×k"
