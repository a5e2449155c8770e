"""Narrowing: spaces found and proven, channels chosen in closed form, networks cut exactly."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import as_trained, images
from test_conv import counted_macs, counted_params
from test_plan_files import check_survives_json
from torch import Tensor, nn

import onebyone as obo
from onebyone import plan_files
from onebyone.building import skeleton
from onebyone.conv import ConvSpec, Places
from onebyone.errors import PlanError
from onebyone.factorize import selection
from onebyone.factorize.selection import Reading
from onebyone.form_costs import FormCosts, cost_at
from onebyone.forms import FORMS
from onebyone.narrowing import cutting, finding, following
from onebyone.narrowing.spaces import Narrowing, Space
from onebyone.plans import Budget, Plan
from onebyone.surveying import survey
from onebyone.tree import evaluating, frozen


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Mobile(nn.Module):
    """An inverted residual with a gate between a stem and a classifier."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.up = nn.Conv2d(16, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act = nn.PReLU(width)
        self.gate = Gate(width)
        self.down = nn.Conv2d(width, 16, 1, bias=False)
        self.head = nn.Conv2d(16, 24, 3)
        self.fc = nn.Linear(24 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.act(self.norm1(self.up(x)))
        y = self.down(self.gate(nn.functional.silu(self.norm2(self.depth(y)))))
        y = self.head(x + y).relu()
        return self.fc(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


class Branches(nn.Module):
    """Two branches side by side, read together by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 12, 1), nn.Conv2d(4, 20, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.c, self.d = nn.Conv2d(32, 8, 3), nn.Conv2d(32, 8, 3, stride=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.a(x).relu(), self.b(x)], 1))
        return self.fc((self.c(x).relu() + self.d(x)).mean((2, 3)))


class Copies(nn.Module):
    """A normalization and a layer that read channels twice side by side, as they are and pooled."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(32, 12, kernel)
        self.pool, self.norm = nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(32)
        self.last = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        y = self.norm(torch.cat([y, self.pool(y)], 1))
        return self.last(self.second(y).relu().mean((2, 3)))


class Between(nn.Module):
    """Two convolutions with anything between."""

    def __init__(
        self, between: Callable[[Tensor], Tensor], c_in: int = 16, groups: int = 1
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.second = nn.Conv2d(c_in, 8, 1, groups=groups)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x))).mean((2, 3))


class Twice(nn.Module):
    """The second layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.second(self.first(x).relu()).relu()).mean((2, 3))


class Wide(nn.Module):
    """A sum joins more channels than are weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.beside = nn.Conv2d(4, 520, 1), nn.Conv2d(4, 520, 1)
        self.second = nn.Conv2d(520, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu() + self.beside(x)).mean((2, 3))


class Brightness(nn.Module):
    """What runs depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y.relu() if x[0].mean() > 0 else y.sigmoid() * 2
        return self.second(y).mean((2, 3))


class Outside(nn.Module):
    """The middle is given out too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return self.second(y).mean((2, 3)), y


def settled(model: nn.Module) -> nn.Module:
    """Random weights from a seed, normalisation that is not the default, eval mode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            fan = tensor[0].numel() if tensor.ndim > 1 else 1
            values = torch.randn(tensor.shape, generator=generator) / fan**0.5
            positive = "running_var" in name or ("norm" in name and name.endswith("weight"))
            tensor.data.copy_(values.abs() + 0.5 if positive else 1.4 * values)
    return model.eval()


def found_in(model: nn.Module, inputs: Tensor) -> dict[str, Space]:
    with evaluating(model), frozen(model):
        spaces = finding.find_spaces(model, inputs, survey(model, inputs[:1]))
    return {s.name: s for s in spaces}


class Rooted(Mobile):
    """Takes a power of its image, of which a negative number has none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.pow(0.45))


class Ranged(Mobile):
    """Refuses what is negative, without looking at numbers from Python: a table has no such row."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 256))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(
            nn.functional.embedding((255 * x).long(), self.table[:, None])[..., 0]
        )


@pytest.mark.parametrize("kind", [Rooted, Ranged])
def test_images_of_a_range_of_their_own(kind: type[nn.Module]) -> None:
    model, inputs = settled(kind()), torch.rand(4, 4, 8, 8)
    plain = found_in(settled(Mobile()), inputs)
    found = found_in(model, inputs)
    assert {n: (s.refusal, s.cuts) for n, s in found.items()} == {
        n: (s.refusal, s.cuts) for n, s in plain.items()
    }
    assert any(s.refusal is None for s in found.values())


def check_spaces_of_mobile() -> None:
    """Law: writers, readers, what stands between, and every tensor with an entry for each channel."""
    spaces = found_in(settled(Mobile()), images(4, 4, 8, 8))
    hidden = spaces["up"]
    assert hidden.refusal is None
    assert set(hidden.writers) == {"up", "gate.up"}
    assert set(hidden.readers) == {"gate.down", "down"}
    assert hidden.through == ("depth",)
    norms = {
        f"norm{i}.{t}" for i in (1, 2) for t in ("weight", "bias", "running_mean", "running_var")
    }
    cuts = {(c.tensor, c.axis) for c in hidden.cuts}
    assert cuts == {(n, 0) for n in norms} | {
        ("up.weight", 0), ("depth.weight", 0), ("act.weight", 0), ("gate.down.weight", 1),
        ("gate.up.weight", 0), ("gate.up.bias", 0), ("down.weight", 1),
    }  # fmt: skip
    assert hidden.params_each == 5
    stream = spaces["stem"]  # what the shortcut carries
    assert stream.refusal is None
    assert set(stream.writers) == {"stem", "down"}
    assert set(stream.readers) == {"up", "head"}
    assert spaces["gate.down"].refusal is None
    assert spaces["head"].readings("fc")[0].block == 4


def test_spaces_of_an_inverted_residual() -> None:
    check_spaces_of_mobile()


def of_instances(affine: bool, tracked: bool = False) -> nn.Module:
    def norm(c: int) -> nn.Module:
        return nn.InstanceNorm2d(c, affine=affine, track_running_stats=tracked)

    return nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=1), norm(12), nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1),
    )  # fmt: skip


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_normalization_keeps_channels_apart(affine: bool, tracked: bool) -> None:
    spaces = found_in(settled(of_instances(affine, tracked)), images(4, 4, 8, 8))
    assert {n: s.refusal for n, s in spaces.items() if n in "03"} == {"0": None, "3": None}
    own = {"weight", "bias"} if affine else set()
    own |= {"running_mean", "running_var"} if tracked else set()
    own = own or {"num_features"}
    assert {c.tensor for c in spaces["0"].cuts if c.tensor.startswith("1.")} == {
        f"1.{name}" for name in own
    }


def test_networks_with_instance_normalization_are_narrowed_and_load_again(tmp_path: Path) -> None:
    model, inputs = settled(of_instances(affine=False)), images(80, 4, 8, 8)
    model[3].weight.data[:, 6:] = 0  # type: ignore[index, union-attr] # half of them are not needed
    found = obo.slim(model, inputs, macs=0.6, held_out=16, latency=False)
    widths = {n.layer: n.width for n in found.plan.narrowings}
    assert widths["0"] <= 6
    norms = [m for m in found.model.modules() if isinstance(m, nn.InstanceNorm2d)]
    assert [m.num_features for m in norms] == [widths["0"], widths.get("3", 8)]
    again = obo.load(found.save(tmp_path / "out")).model
    torch.testing.assert_close(again(inputs[:3]), found.model(inputs[:3]))


def test_the_memory_format_hides_no_width() -> None:
    layers = [
        nn.Conv2d(4, 12, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    ]
    model = settled(nn.Sequential(*layers))
    inputs = images(4, 4, 8, 8)
    plain = found_in(model, inputs)["0"]
    last = found_in(model.to(memory_format=torch.channels_last), inputs)["0"]
    assert plain.refusal is None
    assert last == plain


def test_one_channel_is_no_width() -> None:
    model = nn.Sequential(nn.Conv2d(4, 1, 3), nn.PReLU(1), nn.Conv2d(1, 5, 3))
    assert found_in(model.eval(), images(4, 4, 8, 8))["0"].refusal == "it is one channel"


def test_branches_side_by_side_are_spaces_of_their_own() -> None:
    spaces = found_in(settled(Branches()), images(4, 4, 8, 8))
    assert {n: s.refusal for n, s in spaces.items() if n in "ab"} == {"a": None, "b": None}
    assert set(spaces["b"].readers) == {"c", "d"}
    assert spaces["b"].readings("c")[0].start == 12
    assert {c.start for c in spaces["b"].cuts if c.module == "norm"} == {12}
    assert set(spaces["c"].writers) == {"c", "d"}  # a sum joins them


def test_channels_read_twice_side_by_side_are_one_space() -> None:
    space = found_in(settled(Copies()), images(4, 4, 8, 8))["first"]
    assert space.refusal is None
    assert space.readers == ("second",)
    assert space.channels_of("second") == (range(16), range(16, 32))
    assert {c.start for c in space.cuts if c.tensor == "norm.weight"} == {0, 16}
    assert space.params_each == 4  # two weights, two biases


class Gated(nn.Module):
    """Channels in parts of one size: a gate's halves, groups of which the largest counts, larger maps."""

    def __init__(self, part: Callable[[Tensor], Tensor], left: int, scale: int = 1) -> None:
        super().__init__()
        self.part = part
        self.first, self.second = nn.Conv2d(4, 24, 3, padding=1), nn.Conv2d(left, 8, 3)
        self.norm, self.head, self.scale = nn.BatchNorm2d(24), nn.Linear(8, 5), scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.part(self.norm(self.first(x))))
        return self.head(y.relu().mean((2, 3)))


def gate(x: Tensor) -> Tensor:
    one, other = x.chunk(2, 1)
    return one.tanh() * other.sigmoid()


def sliced(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return x[:, :half] * x[:, half:].sigmoid()


PARTS: dict[str, tuple[Callable[[Tensor], Tensor], int, list[set[int]]]] = {
    "chunk": (gate, 12, [{c, c + 12} for c in range(12)]),
    "glu": (lambda x: nn.functional.glu(x, 1), 12, [{c, c + 12} for c in range(12)]),
    "slices": (sliced, 12, [{c, c + 12} for c in range(12)]),
    "parts that go together again": (
        lambda x: torch.cat([x.chunk(2, 1)[0], x.chunk(2, 1)[1].relu()], 1), 24,
        [{c, c + 12} for c in range(12)],
    ),
    "three of them": (lambda x: sum(x.chunk(3, 1)), 8, [{c, c + 8, c + 16} for c in range(8)]),
    "pixel_shuffle": (
        lambda x: nn.functional.pixel_shuffle(x, 2), 6, [{*range(4 * c, 4 * c + 4)} for c in range(6)]
    ),
    "the largest of two": (
        lambda x: x.unflatten(1, (-1, 2)).amax(2), 12, [{2 * c, 2 * c + 1} for c in range(12)]
    ),
    "two parts along an axis": (
        lambda x: x.unflatten(1, (2, -1)).sum(1), 12, [{c, c + 12} for c in range(12)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_channels_in_parts_of_one_size_go_together(name: str) -> None:
    part, left, together = PARTS[name]
    model, inputs = as_trained(settled(Gated(part, left))), images(200, 4, 8, 8)
    space = found_in(model, inputs)["first"]
    assert space.refusal is None
    assert space.channels == len(together)
    rows = [{e for cut in space.cuts if cut.tensor == "first.bias" for e in cut.entries([c])}
            for c in range(space.channels)]  # fmt: skip
    assert rows == together
    statistics = obo.observe(model, inputs)
    assert lost(model, inputs, statistics, {"first": space.channels}) == 0
    wide, narrow = (lost(model, inputs, statistics, {"first": w})
                    for w in (space.channels - 1, space.channels // 2))  # fmt: skip
    assert 0 < wide < narrow < 1
    for budget in (Budget(macs=0.3), Budget(params=0.3)):
        plan = obo.plan(model, statistics, budget)
        lighter = obo.rewrite(model, plan, inputs, statistics=statistics)
        assert plan.macs_after == counted_macs(lighter, inputs[:1])
        assert plan.params_after == counted_params(lighter)


KEPT_APART: dict[str, Callable[[Tensor], Tensor]] = {
    "pixels cut off": lambda x: x[:, :, :-2],
    "one row": lambda x: x[:, :, 1][:, :, None].expand(-1, -1, 4, -1),
    "turned around": lambda x: x.flip(3),
    "a softmax over pixels": lambda x: x.flatten(2).softmax(2).unflatten(2, x.shape[2:]),
    "the largest along an axis": lambda x: x.max(3, keepdim=True)[0] + x,
    "of one length over pixels": lambda x: nn.functional.normalize(x, dim=3),
    "an empty tensor in front": lambda x: torch.cat([torch.empty(0), x], 1),
    "all of them": lambda x: x[:, :16],
    "halves of the pixels": lambda x: torch.cat(x.chunk(2, 2)[::-1], 2),
}


@pytest.mark.parametrize("name", KEPT_APART)
def test_operators_that_keep_channels_apart(name: str) -> None:
    model, inputs = settled(Between(KEPT_APART[name])), images(8, 4, 8, 8)
    assert found_in(model, inputs)["first"].refusal is None


def test_one_refused_operator_costs_the_others_nothing() -> None:
    def ends(x: Tensor) -> Tensor:
        return nn.functional.normalize(x.mean((2, 3)), dim=1)[:, :, None, None]

    model = nn.Sequential(nn.Conv2d(4, 12, 3), nn.ReLU(), Between(ends))
    model[2].first = nn.Conv2d(12, 16, 3)
    spaces = found_in(settled(model), images(8, 4, 8, 8))
    assert spaces["0"].refusal is None
    assert "linalg_vector_norm" in str(spaces["2.first"].refusal)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a normalisation over channels": (
        lambda: Between(nn.GroupNorm(4, 16)), "native_group_norm"
    ),
    "a softmax over channels": (lambda: Between(lambda x: x.softmax(1)), "_softmax"),
    "a part of the channels": (lambda: Between(lambda x: x[:, :12], 12), "slice"),
    "a shuffle of the channels": (
        lambda: Between(lambda x: x.view(len(x), 4, 4, 8, 8).transpose(1, 2).reshape(x.shape)), "view"
    ),
    "a sum over the channels": (lambda: Between(lambda x: x + x.mean(1, keepdim=True)), "mean"),
    "a number of channels in the code": (
        lambda: Between(lambda x: x.reshape(-1, 16, 8, 8).relu()), "trial"
    ),
    "a constant for each channel": (
        lambda: Between(lambda x: x + torch.arange(16.0).view(1, 16, 1, 1)), "add"
    ),
    "a grouped reader": (lambda: Between(torch.relu, groups=2), "grouped layer second"),
    "a layer that runs twice": (Twice, "runs 2 times"),
    "control flow that depends on data": (Brightness, "depends on its data"),
    "an output": (Outside, "gives it out"),
    "a sum of very many": (Wide, "a sum joins more than 512 channels"),
}  # fmt: skip


def check_refused(name: str) -> None:
    """Law: channels that something else needs are not left out, and the reason says what."""
    build, words = REFUSED[name]
    spaces = found_in(settled(build()), images(4, 4, 8, 8))
    assert "first" in spaces
    assert words in str(spaces["first"].refusal), spaces["first"].refusal


@pytest.mark.parametrize("name", REFUSED)
def test_channels_that_others_need_stay(name: str) -> None:
    check_refused(name)


def test_a_model_that_cannot_be_watched_keeps_its_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("this model cannot be watched")

    monkeypatch.setattr(following.Follower, "__torch_dispatch__", fails)
    model, inputs = settled(Mobile()), images(16, 4, 8, 8)
    assert found_in(model, inputs) == {}
    plan = obo.plan(model, obo.observe(model, inputs), Budget(macs=0.6))
    assert plan.narrowings == ()
    assert plan.macs_after <= 0.6 * plan.macs_before


# --- which channels


def problem(c: int, seed: int, samples: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """Channels z (samples, c), weights (3, c) and a metric (3, 3)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(c, c, generator=generator, dtype=torch.float64)
    z = torch.randn(samples, c, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(3, c, generator=generator, dtype=torch.float64)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return z, weight, root @ root.T


def refit_error(z: Tensor, weight: Tensor, metric: Tensor, kept: list[int]) -> float:
    """E‖G^½ (W z − B z_kept − b)‖² for the best B and b, by least squares on the samples."""
    y = (z - z.mean(0)) @ weight.T
    rest = y
    if kept:
        part = z[:, kept] - z[:, kept].mean(0)
        rest = y - part @ torch.linalg.lstsq(part, y).solution
    return float(torch.einsum("no,op,np->", rest, metric, rest) / len(z))


def check_order(c: int, seed: int) -> None:
    """Law: predicted errors are those of the refit, grow as channels go, and each step is the best."""
    z, weight, metric = problem(c, seed)
    reading = Reading(torch.cov(z.T, correction=0), weight.T @ metric @ weight, 10**9)
    found = selection.needed_order([reading])
    order, errors = found.channels.tolist(), found.errors.tolist()
    assert sorted(order) == list(range(c))
    whole = refit_error(z, weight, metric, [])
    for width in range(c + 1):
        kept = order[:width]
        direct = refit_error(z, weight, metric, kept)
        assert errors[width] == pytest.approx(direct, rel=0.02, abs=2e-3 * whole)
        if width < c:
            best = min(
                refit_error(z, weight, metric, [k for k in order[: width + 1] if k != j])
                for j in order[: width + 1]
            )
            assert direct <= best * 1.01 + 1e-3 * whole
    assert all(a >= b - 1e-9 * whole for a, b in itertools.pairwise(errors))


@given(st.integers(2, 7), st.integers(0, 99))
def test_channels_go_in_the_best_order(c: int, seed: int) -> None:
    check_order(c, seed)


def test_many_channels_go_several_at_a_time() -> None:
    z, weight, metric = problem(300, 0, 6000)
    reading = Reading(torch.cov(z.T, correction=0), weight.T @ metric @ weight, 10**9)
    found = selection.needed_order([reading])
    assert sorted(found.channels.tolist()) == list(range(300))
    whole = float(found.errors[0])
    for width in (280, 150, 40):
        direct = refit_error(z, weight, metric, found.channels[:width].tolist())
        assert float(found.errors[width]) == pytest.approx(direct, rel=0.05, abs=1e-3 * whole)


def test_errors_of_several_readers_add_up() -> None:
    z, weight, metric = problem(6, 1)
    one = Reading(torch.cov(z.T, correction=0), weight.T @ metric @ weight, 10**9)
    single, double = selection.needed_order([one]), selection.needed_order([one, one])
    assert single.channels.tolist() == double.channels.tolist()
    torch.testing.assert_close(2 * single.errors, double.errors)


def test_few_samples_do_not_make_channels_seem_needless() -> None:
    z, weight, metric = problem(40, 2, samples=50)
    few = Reading(torch.cov(z.T, correction=0), weight.T @ metric @ weight, 50)
    fresh = problem(40, 2, samples=8000)[0]
    found = selection.needed_order([few])
    kept = found.channels[:20].tolist()
    assert float(found.errors[20]) > 0.3 * refit_error(fresh, weight, metric, kept)


@pytest.mark.parametrize("samples", [40, 30, 1])
def test_of_fewer_samples_than_channels_none_makes_up_for_another(samples: int) -> None:
    z, weight, metric = problem(40, 3, samples=max(samples, 2))
    covariance, form = torch.cov(z.T, correction=0), weight.T @ metric @ weight
    found = selection.needed_order(
        [Reading(covariance, form, samples), Reading(covariance, form, 1)]
    )
    cost = 2 * covariance.diagonal().mean() * form.diagonal()
    assert found.channels.tolist() == cost.argsort(descending=True).tolist()
    for width in range(41):
        rest = float(cost[found.channels[width:]].sum())
        assert float(found.errors[width]) == pytest.approx(rest, rel=1e-9, abs=1e-12)


# --- costs


@given(st.data())
def test_costs_are_those_of_the_forms(data: st.DataObject) -> None:
    kernel = data.draw(st.sampled_from([(), (1, 1), (3, 3), (5,)]))
    d = len(kernel)
    numbers = st.integers(1, 40)
    conv = ConvSpec(
        data.draw(numbers), data.draw(numbers), kernel, (1,) * d, ((0, 0),) * d, (1,) * d,
        bias=data.draw(st.booleans()),
    )  # fmt: skip
    form = data.draw(st.sampled_from([f for f in FORMS if FORMS[f].refuse(conv) is None]))
    ranks = tuple(data.draw(numbers) for _ in FORMS[form].ranks)
    places = Places(data.draw(numbers), data.draw(numbers), data.draw(numbers))
    grid = torch.tensor([ranks], dtype=torch.int64).reshape(1, -1).numpy()
    found = FormCosts(form, conv, places).at_ranks(grid)
    c_in, c_out = data.draw(numbers), data.draw(numbers)
    there = replace(conv, c_in=c_in, c_out=c_out)
    expected = [FORMS[form].macs(there, ranks, places), FORMS[form].params(there, ranks)]
    assert cost_at(found, c_in, c_out)[0].tolist() == expected


# --- whole networks


@pytest.fixture(scope="module")
def observed() -> tuple[nn.Module, Tensor, obo.Statistics]:
    model, inputs = settled(Mobile()), images(96, 4, 8, 8)
    return model, inputs, obo.observe(model, inputs)


def narrowed_to(plan: Plan, statistics: obo.Statistics, widths: dict[str, int]) -> Plan:
    """Everything kept but these spaces at these widths, through the plan's JSON as a person would."""
    values = plan_files.plan_to_json(plan)
    values["narrowings"] = []
    for layer in values["layers"]:
        layer.update(form="keep" if layer["form"] != "refuse" else "refuse")
    spaces = {s.name: s for s in statistics.spaces}
    narrowings = [
        Narrowing(n, w, tuple(statistics.orders[n].channels.tolist()), spaces[n].cuts,
                  spaces[n].params_each)
        for n, w in widths.items()
    ]  # fmt: skip
    values |= plan_files.plan_to_json(replace(plan, narrowings=tuple(narrowings)))
    for layer in values["layers"]:
        layer.update(form="keep" if layer["form"] != "refuse" else "refuse")
    return plan_files.plan_from_json(json.loads(json.dumps(values)))


def relative_error(expected: Tensor, found: Tensor) -> float:
    gap = (expected - found).square().sum()
    return float(gap / (expected - expected.mean(0)).square().sum())


def lost(
    model: nn.Module, inputs: Tensor, statistics: obo.Statistics, widths: dict[str, int]
) -> float:
    plan = obo.plan(model, statistics, Budget(macs=1.0))
    cut = narrowed_to(plan, statistics, widths)
    lighter = obo.rewrite(model, cut, inputs, statistics=statistics)
    with torch.no_grad():
        return relative_error(model(inputs), lighter(inputs))


def check_needless_channels() -> None:
    """Law: channels that no reader listens to, and copies of others, are left out for nothing."""
    model, inputs = as_trained(settled(Mobile())), images(500, 4, 8, 8)
    with torch.no_grad():
        for layer in (model.down, model.gate.down):  # type: ignore[union-attr]
            layer.weight[:, 16:24] = 0  # type: ignore[index]
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim and len(tensor) == 32:
                tensor[24:] = tensor[:8]
    statistics = obo.observe(model, inputs)
    kept = statistics.orders["up"].channels[:16].tolist()
    assert not set(kept) & set(range(16, 24))
    assert len({k % 24 for k in kept}) >= 15
    errors = statistics.orders["up"].errors
    assert float(errors[16]) < 1e-3 * float(errors[0]) < float(errors[4])
    assert lost(model, inputs, statistics, {"up": 17}) < 1e-4


def test_needless_channels_are_left_out_for_nothing() -> None:
    check_needless_channels()


@pytest.mark.parametrize("kernel", [1, 3])
def test_of_channels_read_twice_both_readings_count(kernel: int) -> None:
    model, inputs = as_trained(settled(Copies(kernel))), images(300, 4, 8, 8)
    with torch.no_grad():
        weight = model.second.weight  # type: ignore[union-attr]
        weight[:, :8] = 0  # type: ignore[index]
        weight[:, 20:28] = 0  # type: ignore[index]
    statistics = obo.observe(
        model, inputs
    )  # 0 to 3 are read pooled, 8 to 11 as they are, 4 to 7 never
    order = statistics.orders["first"]
    assert set(order.channels[12:].tolist()) == {4, 5, 6, 7}
    assert float(order.errors[12]) < 1e-3 * float(order.errors[0])
    assert float(order.errors[10]) > 10 * float(order.errors[12])
    assert lost(model, inputs, statistics, {"first": 12}) < 1e-6
    for budget in (Budget(macs=0.4), Budget(params=0.4)):
        lighter = obo.rewrite(
            model, plan := obo.plan(model, statistics, budget), inputs, statistics=statistics
        )
        assert plan.narrowings[0].width <= 12
        assert plan.macs_after == counted_macs(lighter, inputs[:1])
        assert plan.params_after == counted_params(lighter)


class Frames(nn.Module):
    """Takes (n, frames, c, h, w) and folds the frames into the batch, or frames alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depth = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 3, groups=16)
        self.second, self.head = nn.Conv2d(16, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.first(x.flatten(0, -4)).relu()).relu()
        return self.head(self.second(y).relu().mean((2, 3)))


def test_layers_that_run_on_more_than_images_are_narrowed_alike() -> None:
    model, frames = settled(Frames()), images(200, 4, 8, 8)
    for inputs in (frames, frames.unflatten(0, (50, 4))):
        statistics = obo.observe(model, inputs)
        narrow = narrowed_to(
            obo.plan(model, statistics, Budget(macs=1.0)), statistics, {"first": 10}
        )
        lighter = obo.rewrite(model, narrow, inputs, statistics=statistics)
        with torch.no_grad():
            assert relative_error(model(frames), lighter(frames)) < 0.1


def check_error_falls_with_width(observed: tuple[nn.Module, Tensor, obo.Statistics]) -> None:
    """Law: wider is never worse, and full width changes nothing."""
    model, inputs, statistics = observed
    errors = [lost(model, inputs, statistics, {"up": w}) for w in (4, 12, 20, 28, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 3 * errors[2] > 0
    assert errors[-1] == 0


def test_error_falls_with_width(observed: tuple[nn.Module, Tensor, obo.Statistics]) -> None:
    check_error_falls_with_width(observed)


def check_chosen_channels_are_better_than_others(
    observed: tuple[nn.Module, Tensor, obo.Statistics],
) -> None:
    """Law: the channels that are kept lose less than the ones that go would."""
    model, inputs, statistics = observed
    right = lost(model, inputs, statistics, {"up": 12})
    order = statistics.orders["up"]
    turned = replace(
        statistics,
        orders=statistics.orders | {"up": replace(order, channels=order.channels.flip(0))},
    )
    assert 2 * right < lost(model, inputs, turned, {"up": 12})


def test_the_channels_that_stay_are_the_better_ones(
    observed: tuple[nn.Module, Tensor, obo.Statistics],
) -> None:
    check_chosen_channels_are_better_than_others(observed)


BUDGETS = [Budget(macs=0.7), Budget(macs=0.3), Budget(params=0.5), Budget(macs=0.5, params=0.4)]


def check_cost(model: nn.Module, inputs: Tensor, budget: Budget) -> Plan:
    """Law: budgets are met, and costs are what PyTorch counts, normalisation included."""
    statistics = obo.observe(model, inputs)
    plan = obo.plan(model, statistics, budget)
    lighter = obo.rewrite(model, plan, inputs, statistics=statistics)
    assert plan.macs_after == counted_macs(lighter, inputs[:1])
    assert plan.params_after == counted_params(lighter)
    assert plan.macs_after <= (budget.macs or 1) * plan.macs_before
    assert plan.params_after <= (budget.params or 1) * plan.params_before
    assert {type(m) for m in lighter.modules()} <= {type(m) for m in model.modules()} | {
        nn.Sequential
    }
    check_the_rest_keeps_every_bit(plan, model, lighter)
    return plan


def check_the_rest_keeps_every_bit(plan: Plan, model: nn.Module, lighter: nn.Module) -> None:
    """Law: what is neither planned nor narrowed keeps every bit; normalisation keeps those that stay."""
    planned = {d.layer for d in plan.decisions if not d.refused}
    gone: dict[str, set[int]] = {}
    for narrowing in plan.narrowings:
        for cut in narrowing.cuts:
            dropped = cut.entries(narrowing.order[narrowing.width :])
            gone.setdefault(cut.tensor, set()).update(dropped)
    new = lighter.state_dict()
    for name, value in model.state_dict().items():
        if name.rpartition(".")[0] not in planned:
            kept = [i for i in range(value.numel()) if i not in gone.get(name, ())]
            assert torch.equal(new[name], value[kept] if value.ndim else value)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_budgets_are_met_and_costs_are_those_of_pytorch(budget: Budget) -> None:
    plan = check_cost(settled(Mobile()), images(48, 4, 8, 8), budget)
    assert plan.narrowings
    assert {d.form for d in plan.decisions} >= {"narrow"}
    check_survives_json(plan)


def check_branches() -> None:
    """Law: branches that are read side by side are narrowed, each at its own place."""
    plan = check_cost(settled(Branches()), images(48, 4, 8, 8), Budget(macs=0.3))
    assert {"a", "b"} <= {n.layer for n in plan.narrowings}
    check_survives_json(plan)


def test_branches_are_narrowed() -> None:
    check_branches()


def test_narrowing_beats_forms_alone_by_its_own_estimate(
    observed: tuple[nn.Module, Tensor, obo.Statistics],
) -> None:
    model, _, statistics = observed
    for macs in (0.7, 0.5, 0.3):
        alone = obo.plan(model, replace(statistics, spaces=()), Budget(macs=macs))
        assert alone.narrowings == ()
        assert obo.plan(model, statistics, Budget(macs=macs)).error <= alone.error


def check_predicted() -> None:
    """Law: the predicted rise of the loss is that of the network or above, and of its order."""
    model, inputs = settled(Mobile()), images(500, 4, 8, 8)
    statistics = obo.observe(model, inputs)
    plan = obo.plan(model, statistics, Budget(macs=1.0))
    cut = narrowed_to(plan, statistics, {"head": 12})
    lighter = obo.rewrite(model, cut, inputs, statistics=statistics)
    with torch.no_grad():
        before, after = model(inputs).log_softmax(1), lighter(inputs).log_softmax(1)
    rise = float((before.exp() * (before - after)).sum(1).mean())
    predicted = float(statistics.orders["head"].errors[12]) / statistics.images
    assert rise <= 3 * predicted
    assert predicted <= 60 * rise


def test_the_predicted_error_has_the_unit_it_says() -> None:
    check_predicted()


# --- cutting, files


def test_cutting_leaves_the_original_tensors_alone() -> None:
    model = settled(Mobile())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    spaces = found_in(model, images(4, 4, 8, 8))
    copy = settled(Mobile())
    copy.load_state_dict(before)
    narrow = Narrowing("up", 5, tuple(range(32)), spaces["up"].cuts)
    cut = cutting.cut_model(copy, [narrow])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert (cut.depth.groups, cut.depth.in_channels, cut.norm1.num_features) == (5, 5, 5)  # type: ignore[union-attr]
    assert cut.act.num_parameters == 5  # type: ignore[union-attr]
    assert torch.equal(cut.up.weight, model.up.weight[:5])  # type: ignore[union-attr,index]
    assert str(cut.depth).startswith("Conv2d(5, 5,")
    assert cut(images(2, 4, 8, 8)).shape == (2, 10)


def test_a_form_that_is_narrowed_bears_the_channels_that_are_left() -> None:
    torch.manual_seed(0)
    block = skeleton(nn.Conv2d(4, 24, 3, padding=1), "channel", (6,))
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    model = nn.Sequential(block, nn.ReLU(), nn.Conv2d(24, 4, 3)).eval()
    space = found_in(model, images(4, 4, 8, 8))["0.expand"]
    cutting.cut_model(model, [Narrowing("0.expand", 10, tuple(range(24)), space.cuts)])
    assert (block.in_channels, block.out_channels) == (4, 10)
    assert block[-1].out_channels == 10  # type: ignore[union-attr]
    assert model(images(2, 4, 8, 8)).shape == (2, 4, 6, 6)


def test_blocks_of_others_keep_attributes_of_these_names() -> None:
    """As those of torchvision (Conv2dNormActivation, the backbone of a detector)."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU6())
    block.out_channels = 24
    model = settled(nn.Sequential(block, nn.Conv2d(24, 4, 3)))
    slimmed = obo.slim(model, images(32, 4, 8, 8), macs=0.5, latency=False)
    assert [n for n in slimmed.plan.narrowings if n.width < 24]
    assert slimmed.model[0].out_channels == 24  # type: ignore[index]


def test_channels_last_and_flags_are_carried() -> None:
    model = settled(Mobile()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.up.requires_grad_(False)
    spaces = found_in(model, images(4, 4, 8, 8))
    cut = cutting.cut_model(model, [Narrowing("up", 9, tuple(range(32)), spaces["up"].cuts)])
    assert not cut.up.weight.requires_grad  # type: ignore[union-attr]
    assert cut.depth.weight.requires_grad  # type: ignore[union-attr]
    for layer in (cut.up, cut.depth, cut.down):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]


SAVED = """
import sys, torch
sys.path.insert(0, {tests!r})
import onebyone as obo
from test_narrowing import Mobile
model = obo.load({folder!r}, architecture=Mobile()).model
torch.save(model(torch.load({inputs!r})), {out!r})
"""


def test_a_saved_folder_gives_equal_outputs_in_a_fresh_process(tmp_path: Path) -> None:
    model, inputs = settled(Mobile()), images(48, 4, 8, 8)
    slimmed = obo.slim(model, inputs, macs=0.4, latency=False)
    assert slimmed.plan.narrowings
    slimmed.save(tmp_path / "out")
    torch.save(inputs[:4], tmp_path / "inputs.pt")
    files = {"inputs": str(tmp_path / "inputs.pt"), "out": str(tmp_path / "y.pt")}
    code = SAVED.format(folder=str(tmp_path / "out"), tests=str(Path(__file__).parent), **files)
    subprocess.run([sys.executable, "-c", code], check=True)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "y.pt"), slimmed.model(inputs[:4]))


def test_a_width_can_be_edited(observed: tuple[nn.Module, Tensor, obo.Statistics]) -> None:
    model, inputs, statistics = observed
    plan = obo.plan(model, statistics, Budget(macs=0.5))
    values = plan_files.plan_to_json(plan)
    for width in (1, 7, 32):
        for narrowing in values["narrowings"]:
            if narrowing["layer"] == "up":
                narrowing["width"] = width
        edited = plan_files.plan_from_json(values)
        lighter = obo.rewrite(model, edited, inputs, statistics=statistics)
        assert lighter.depth.out_channels == width  # type: ignore[union-attr]
        assert edited.macs_after == counted_macs(lighter, inputs[:1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0}, "width=0"), ({"width": 33}, "from 1 to 32"), ({"width": "8"}, "width='8'"),
        ({"order": "0 1 2"}, "width"), ({"order": "0 0"}, "every channel once"),
        ({"order": "a b"}, "invalid literal"), ({"cuts": None}, "damaged"), ({"cuts": [{}]}, "tensor"),
        ({"params_each": -1}, "whole number"),
    ],
)  # fmt: skip
def test_damaged_narrowings_are_refused(
    observed: tuple[nn.Module, Tensor, obo.Statistics], change: dict[str, object], words: str
) -> None:
    model, _, statistics = observed
    values = plan_files.plan_to_json(obo.plan(model, statistics, Budget(macs=0.5)))
    one = next(n for n in values["narrowings"] if n["layer"] == "up")
    one.update(change)
    with pytest.raises(PlanError, match="narrowing"):
        plan_files.plan_from_json(values)
    with pytest.raises(PlanError, match=words):
        plan_files.plan_from_json(values)


def test_a_plan_of_another_network_is_refused(
    observed: tuple[nn.Module, Tensor, obo.Statistics],
) -> None:
    model, inputs, statistics = observed
    plan = obo.plan(model, statistics, Budget(macs=0.5))
    with pytest.raises(PlanError):
        obo.rewrite(settled(Mobile(24)), plan, inputs)
    with pytest.raises(PlanError):
        obo.rewrite(settled(Branches()), plan, inputs)


class Reshaped(nn.Module):
    """What is a view of one image is a copy of two: other operators, the same control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.features(x).chunk(2, 1)
        return one.reshape(len(x), 4, -1).mean(2) + other.contiguous().mean((2, 3))


def test_a_view_of_one_image_is_no_control_flow() -> None:
    torch.manual_seed(0)
    found = obo.observe(Reshaped().eval(), images(16, 3, 12, 12)).spaces
    assert {space.name for space in found if space.refusal is None} == {"features.0", "features.2"}


def test_what_a_narrowing_cuts_cannot_stay_as_it_is(
    observed: tuple[nn.Module, Tensor, obo.Statistics],
) -> None:
    model, _, statistics = observed
    plan = obo.plan(model, statistics, Budget(macs=0.6))
    assert plan.narrowings
    values = plan_files.plan_to_json(plan)
    cut = next(v for v, d in zip(values["layers"], plan.decisions, strict=True) if d.shape)
    cut["form"] = "refuse"
    with pytest.raises(PlanError, match="a narrowing leaves out channels of it"):
        plan_files.plan_from_json(values)
