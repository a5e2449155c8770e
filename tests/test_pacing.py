"""Budgets of latency: sites, steps, interpolation, the table on disk, the search."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import onebyone as obo
from onebyone.conv import ConvSpec
from onebyone.errors import BudgetError, MissingExtraError, ModelError
from onebyone.exporting.targets import TARGETS
from onebyone.form_costs import FormCosts, cost_at
from onebyone.forms import FORMS
from onebyone.measurement.timing import Samples
from onebyone.pacing import graphs, pace, timetable, whole
from onebyone.pacing.graphs import EAGER, Surrounded, input_shape, write_onnx
from onebyone.pacing.interpolating import interpolated, step_of
from onebyone.pacing.pace import LayerTimes, paced, runtime_named
from onebyone.pacing.sites import Site, sites_of
from onebyone.pacing.timetable import Timetable
from onebyone.pacing.ways import Way
from onebyone.pacing.whole import Ratio, ratio_of
from onebyone.plans import Budget, Plan

ONNX = pytest.mark.skipif(
    TARGETS["onnx"].missing is not None, reason="onnx, onnxscript or onnxruntime is missing"
)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = (
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.two, self.three = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.one(x)))
        x = torch.relu(self.two(x) + x)
        x = self.three(self.three(x))
        return self.head(x.mean((2, 3)))


def residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


X = torch.randn(8, 3, 16, 12, generator=torch.Generator().manual_seed(0))


class TestSites:
    def test_sizes_and_what_is_fused(self) -> None:
        found = sites_of(residual().train(), X)
        one = ConvSpec(3, 16, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), bias=True)  # by the folding
        assert found["one"] == (Site(one, (16, 12), activation="relu"),)
        assert [(s.size, s.sum, s.activation) for s in found["two"]] == [((8, 6), True, "relu")]
        assert [(s.size, s.activation) for s in found["three"]] == [((8, 6), "")] * 2
        assert [s.size for s in found["head"]] == [()]

    def test_a_network_that_cannot_be_traced(self) -> None:
        class Fickle(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)

            def forward(self, x: Tensor) -> Tensor:
                y = self.conv(x)
                return torch.relu(y) if float(y.sum()) > 0 else y

        (site,) = sites_of(Fickle(), X)["conv"]
        assert (site.size, site.activation) == ((16, 12), "")

    def test_the_key_tells_all_that_times_depend_on(self) -> None:
        site = sites_of(residual(), X)["two"][0]
        others = [
            replace(site, size=(8, 7)), replace(site, sum=False), replace(site, activation=""),
            replace(site, conv=replace(site.conv, bias=False)),
            replace(site, conv=replace(site.conv, padding=((0, 0), (0, 0)))),
            replace(site, conv=replace(site.conv, c_in=17)),
        ]  # fmt: skip
        assert len({s.key for s in (site, *others)}) == 7


PARTS: dict[str, tuple[Site, list[ConvSpec]]] = {}
_conv = ConvSpec(8, 12, (3, 3), (2, 1), ((1, 1), (0, 0)), (1, 1))
for _form, _ranks in (("keep", ()), ("squeeze", (4,)), ("tucker2", (4, 6))):
    for _activation, _sum in (("relu6", False), ("hardswish", True), ("leaky_relu", False)):
        PARTS[f"{_form}, {_activation}"] = (
            Site(_conv, (9, 7), _sum, _activation),
            [p.conv for p in FORMS[_form].parts(_conv, _ranks)],
        )
_linear = ConvSpec(8, 12)
PARTS["linear"] = (Site(_linear, (5,), activation="sigmoid"), [_linear])
PARTS["1d"] = (
    Site(ConvSpec(4, 6, (3,), (1,), ((1, 1),), (1,), bias=False), (9,)),
    [ConvSpec(4, 6, (3,), (1,), ((1, 1),), (1,), bias=False)],
)


@ONNX
@pytest.mark.parametrize("name", PARTS)
def test_the_graph_that_is_timed_computes_what_pytorch_does(name: str, tmp_path: Path) -> None:
    site, parts = PARTS[name]
    module = Surrounded(site, parts).eval()
    x = torch.randn(input_shape(module.site), generator=torch.Generator().manual_seed(1))
    write_onnx(module, parts, x, tmp_path / "x.onnx")
    (found,) = TARGETS["onnx"].open(tmp_path / "x.onnx", 1)((x,))
    torch.testing.assert_close(found, module(x).detach(), rtol=1e-4, atol=1e-5)


def test_what_stands_around_a_layer() -> None:
    """It reads its own number of channels at its own size, and is summed where sizes agree."""
    conv = ConvSpec(8, 12, (3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1))
    module = Surrounded(Site(conv, (9, 7), sum=True, activation="relu"), [conv])
    seen: list[torch.Size] = []
    module.layers[0].register_forward_hook(lambda m, args, y: seen.extend((args[0].shape, y.shape)))
    assert module(torch.ones(input_shape(module.site))).shape == (1, 12, 1, 1)
    assert [tuple(s) for s in seen] == [(1, 8, 9, 7), (1, 12, 5, 7)]
    assert module.beside is not None
    valid = replace(conv, padding=((0, 0), (0, 0)))
    assert Surrounded(Site(valid, (9, 7), sum=True), [valid]).beside is None
    linear = ConvSpec(8, 12)
    assert Surrounded(Site(linear, (5,)), [linear])(torch.ones(1, 5, 8)).shape == (1, 5, 12)


@ONNX
@pytest.mark.parametrize("runtime", [EAGER, "onnx"])
def test_every_runtime_opens_odd_layers(runtime: str, tmp_path: Path) -> None:
    """Circular padding and SiLU have no operator of their own in ONNX."""
    conv = ConvSpec(3, 4, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), padding_mode="circular")
    site = Site(conv, (6, 6), activation="silu")
    for _ in range(2):
        assert graphs.opened(runtime, site, [conv], tmp_path / runtime, 1)() is not None


class TestSteps:
    @pytest.mark.parametrize("step", [1, 2, 4, 8, 16])
    def test_the_step_is_found(self, step: int) -> None:
        times = {r: 0.1 * step * -(-r // step) + 0.001 * (r % 3) for r in range(17, 33)}
        assert step_of(times) == step

    def test_between_measured_ranks(self) -> None:
        """At a measured rank, between two, below all (never faster than those), beyond all."""
        line = {(8,): 0.3, (16,): 0.5, (32,): 0.7}
        found = interpolated(line, np.asarray([[16], [24], [4], [48]]))
        assert found.tolist() == pytest.approx([0.5, 0.6, 0.3, 0.9])

    def test_two_ranks(self) -> None:
        plane = {(a, b): 0.01 * a + 0.02 * b for a in (8, 16) for b in (8, 16, 24)}
        asked = np.asarray([[12, 20], [16, 24], [8, 8]])
        truth = [0.12 + 0.4, 0.16 + 0.48, 0.08 + 0.16]
        assert interpolated(plane, asked).tolist() == pytest.approx(truth)
        lonely = plane | {(11, 9): 5.0}  # one that was chosen and timed: no row of its own
        assert interpolated(lonely, asked).tolist() == pytest.approx(truth)


# --- a clock that is an arithmetic rule


class Made:
    """Stands in for layers and the clock: a call's time is what `cost` says of its parts."""

    def __init__(self, cost: Callable[[Site, list[ConvSpec]], float]) -> None:
        self.cost = cost
        self.clocked: list[str] = []

    def opened(self, runtime: str, site: Site, parts: Any, folder: Path, threads: int) -> Any:
        took = self.cost(site, list(parts))

        def run() -> float:
            return took

        return run

    def interleave(self, calls: Mapping[str, Callable[[], Any]], **options: Any) -> Samples:
        self.clocked += list(calls)
        return Samples({n: (call(),) * 7 for n, call in calls.items()}, 2, options["threads"])


def macs_cost(site: Site, parts: list[ConvSpec]) -> float:
    """Milliseconds in proportion to MACs at the site, ranks rounded up to 8, and 0.001 a layer."""
    pixels = max(torch.Size(site.size).numel(), 1)

    def up(n: int) -> int:
        return -(-n // 8) * 8

    return sum(0.001 + 1e-6 * pixels * up(p.c_in) * up(p.c_out) * p.taps for p in parts)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    monkeypatch.setenv("ONEBYONE_CACHE", str(tmp_path / "cache"))
    rule = Made(macs_cost)
    monkeypatch.setattr(timetable, "opened", rule.opened)
    monkeypatch.setattr(timetable, "interleave", rule.interleave)
    return rule


def took(
    table: Timetable, site: Site, form: str, ranks: tuple[int, ...], conv: ConvSpec | None = None
) -> float:
    """The milliseconds of one candidate."""
    (found,) = table.milliseconds(site, form, np.asarray([ranks], dtype=np.int64), conv)
    return float(found)


CONV = ConvSpec(64, 64, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
SITE = Site(CONV, (14, 14), activation="relu")


class TestTimetable:
    def test_shapes_that_recur_are_timed_once_and_kept(self, made: Made) -> None:
        table = Timetable(EAGER, 1)
        table.prepare([SITE, SITE])
        assert table.step == 8
        own = took(table, SITE, "keep", ())
        assert own == pytest.approx(macs_cost(SITE, [CONV]))
        count = len(made.clocked)
        again = Timetable(EAGER, 1)
        again.prepare([SITE])
        assert len(made.clocked) == count
        assert again.times == table.times
        assert Timetable(EAGER, 2).times == {}  # another number of threads
        again.prepare([replace(SITE, size=(7, 7))])
        assert len(made.clocked) > count

    @pytest.mark.parametrize("ranks", [(16,), (12,), (40,)])
    def test_ranks_between_follow_the_steps(self, ranks: tuple[int], made: Made) -> None:
        """The rule is linear in steps of 8, so the interpolation must be exact."""
        table = Timetable(EAGER, 1)
        table.prepare([SITE])
        for form in ("squeeze", "channel"):
            parts = [p.conv for p in FORMS[form].parts(CONV, ranks)]
            found = took(table, SITE, form, ranks)
            assert found == pytest.approx(macs_cost(SITE, parts))
        pair = (ranks[0], 24)
        parts = [p.conv for p in FORMS["tucker2"].parts(CONV, pair)]
        assert took(table, SITE, "tucker2", pair) == pytest.approx(macs_cost(SITE, parts))
        table.measure(SITE, [Way.at(SITE, "squeeze", (12,))])
        assert table.known(SITE, Way.at(SITE, "squeeze", (12,)))

    @pytest.mark.parametrize(("c_in", "c_out"), [(32, 64), (64, 24), (40, 16), (12, 50)])
    def test_fewer_channels(self, c_in: int, c_out: int, made: Made) -> None:
        """Timed at a few widths when they are first asked for; the rule is linear between those."""
        table = Timetable(EAGER, 1)
        table.prepare([SITE])
        count, conv = len(made.clocked), replace(CONV, c_in=max(c_in, 16), c_out=c_out)
        found = took(table, SITE, "keep", (), conv)
        assert found == pytest.approx(macs_cost(SITE, [conv]))
        assert len(made.clocked) > count
        count = len(made.clocked)
        again = Timetable(EAGER, 1)
        assert took(again, SITE, "keep", (), conv) == pytest.approx(found)
        assert len(made.clocked) == count

    def test_fewer_channels_on_one_side_after_the_other(self, made: Made) -> None:
        """Two layers of one shape: the outputs of one are narrowed, and the inputs of the other."""
        table = Timetable(EAGER, 1)
        table.prepare([SITE])
        for conv in (replace(CONV, c_in=40), replace(CONV, c_out=24), replace(CONV, c_in=24)):
            found = took(table, SITE, "keep", (), conv)
            assert found == pytest.approx(macs_cost(SITE, [conv]))

    def test_fewer_channels_of_a_depthwise_layer(self, made: Made) -> None:
        site = replace(SITE, conv=replace(CONV, groups=64))
        table = Timetable(EAGER, 1)
        table.prepare([site])
        half = replace(site.conv, c_in=32, c_out=32, groups=32)
        quarter = replace(site.conv, c_in=16, c_out=16, groups=16)
        found = [took(table, site, "keep", (), c) for c in (half, quarter)]
        assert found == pytest.approx([macs_cost(site, [c]) for c in (half, quarter)])
        between = replace(site.conv, c_in=40, c_out=40, groups=40)
        whole = took(table, site, "keep", ())
        assert found[0] < took(table, site, "keep", (), between) < whole

    def test_a_form_of_fewer_channels_is_guessed_until_it_is_timed(self, made: Made) -> None:
        table = Timetable(EAGER, 1)
        table.prepare([SITE])
        conv = replace(CONV, c_out=32)
        way = Way.at(SITE, "squeeze", (20,), conv)
        truth = macs_cost(SITE, way.parts())
        assert not table.known(SITE, way)
        assert took(table, SITE, way.form, way.ranks, conv) == pytest.approx(truth, rel=0.15)
        table.measure(SITE, [way])
        assert table.known(SITE, way)
        assert took(table, SITE, way.form, way.ranks, conv) == pytest.approx(truth)
        assert not table.known(SITE, Way.at(SITE, "squeeze", (20,)))
        assert Timetable(EAGER, 1).times == table.times

    def test_what_guesses_missed_is_told_to_those_that_are_left(self, made: Made) -> None:
        """Where narrower forms take twice what they promise, the next guess knows."""
        table = Timetable(EAGER, 1)
        table.prepare([SITE])
        half, other = replace(CONV, c_out=32), replace(CONV, c_out=48)
        wanted = [took(table, SITE, "squeeze", (n,), other) for n in (8, 24)]
        elsewhere = took(table, SITE, "channel", (8,), other)
        whole = took(table, SITE, "squeeze", (8,))
        ways = [Way.at(SITE, "squeeze", (n,), half) for n in (8, 16, 40)]
        promised = [took(table, SITE, w.form, w.ranks, half) for w in ways]
        row = table.times[SITE.key].ratios.setdefault(ways[0].place(SITE)[0], {})
        for way, ms in zip(ways, promised, strict=True):
            row[way.ranks] = 2 * ms / table.times[SITE.key].keep_ms
        found = [took(table, SITE, "squeeze", (n,), other) for n in (8, 24)]
        assert found == pytest.approx([2 * ms for ms in wanted])
        assert took(table, SITE, "channel", (8,), other) == pytest.approx(elsewhere)
        assert took(table, SITE, "squeeze", (8,)) == pytest.approx(whole)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda t: t[: len(t) // 2],
            lambda t: "",
            lambda t: t.replace("onebyone.timings/2", "other"),
            lambda t: t.replace('"keep_ms": ', '"keep_ms": -'),
            lambda t: t.replace('"step": 8', '"step": 5'),
            lambda t: t.replace('"squeeze": ', '"squeeze 3 of 4": '),
            lambda t: "[1, 2]",
            lambda t: json.dumps(json.loads(t) | {"times": {"x": {"keep_ms": 1}}}),
            lambda t: t.replace('"tucker2": {', '"tucker2": {"4": 0.5, '),
            lambda t: t.replace('"tucker2": {', '"tucker2": {"-4,4": 0.5, '),
            lambda t: t.replace('"channel": {', f'"channel": {{"{10**30}": 0.5, '),
            lambda t: "\ud800",
        ],
    )
    def test_a_damaged_table_is_told_and_made_anew(
        self, damage: Callable[[str], str], made: Made
    ) -> None:
        first = Timetable(EAGER, 1)
        first.prepare([SITE])
        damaged = damage(first.path.read_text(encoding="utf-8"))
        assert damaged != first.path.read_text(encoding="utf-8")
        first.path.write_bytes(damaged.encode("utf-8", "surrogatepass"))
        again = Timetable(EAGER, 1)
        assert again.times == {}
        assert "is damaged" in again.notes[0]
        again.prepare([SITE])
        assert Timetable(EAGER, 1).times == first.times

    def test_a_table_that_cannot_be_written_is_used_all_the_same(
        self, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("ONEBYONE_CACHE", str(tmp_path / "file" / "cache"))
        table = Timetable(EAGER, 1)
        table.prepare([SITE])
        assert took(table, SITE, "keep", ()) > 0

    def test_a_noisy_machine_is_measured_longer_and_told(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[float] = []

        def noisy(calls: Mapping[str, Callable[[], Any]], **options: Any) -> Samples:
            asked.append(options["seconds"])
            return Samples(dict.fromkeys(calls, (1.0, 2.0, 3.0, 4.0, 5.0)), 2, 1)

        table = Timetable(EAGER, 1)
        table.step = 8
        monkeypatch.setattr(timetable, "interleave", noisy)
        table.measure(SITE, [Way.at(SITE, "squeeze", (8,))])
        assert asked == sorted(asked)
        assert asked[-1] > 4 * asked[0]
        assert "noisy" in table.notes[0]


# --- the whole network


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).eval()


class Watch:
    """The whole network's time: that of its layers by the rule, and a part that nobody saves."""

    fixed = 0.02

    def __init__(self, model: nn.Module, example: Tensor, runtime: str, threads: int) -> None:
        self.runtime, self.threads, self.example = runtime, threads, example
        self.before = self.milliseconds(model)

    def milliseconds(self, model: nn.Module) -> float:
        every = sites_of(model, self.example).values()
        return self.fixed + sum(macs_cost(s, [s.conv]) for sites in every for s in sites)

    def original_ms(self) -> float:
        return self.before

    def ratio(self, model: nn.Module) -> Ratio:
        after = self.milliseconds(model)
        return Ratio(after / self.before, 0.0, self.before, after, 9)


@pytest.fixture(scope="module")
def observed() -> tuple[nn.Module, Any]:
    model = network()
    return model, obo.observe(model, X)


def planner(model: nn.Module, statistics: Any) -> Callable[[Budget, Any], Plan]:
    return lambda goal, times: obo.plan(model, statistics, goal, times=times)


class TestBudget:
    @pytest.mark.parametrize("wanted", [0.8, 0.6, 0.4])
    def test_it_holds_for_the_whole_network(
        self, wanted: float, made: Made, observed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pace, "Stopwatch", Watch)
        model, statistics = observed
        found = paced(model, X, Budget(latency=wanted), planner(model, statistics), runtime=EAGER)
        assert 0.9 * wanted <= found.ratio.median <= 1.01 * wanted
        assert found.plan.budget.latency == wanted
        assert f"latency={wanted}" in found.words("PyTorch", 1)

    def test_layers_that_were_timed_under_another_load(
        self, made: Made, observed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The sum of the layers then says that the budget cannot be met; the whole network decides."""

        class Loaded(Watch):
            def original_ms(self) -> float:
                return 2.5 * self.before

        monkeypatch.setattr(pace, "Stopwatch", Loaded)
        model, statistics = observed
        chosen = planner(model, statistics)
        failed = []

        def planned(goal: Budget, times: Any) -> Plan:
            try:
                return chosen(goal, times)
            except BudgetError:
                failed.append(goal.latency)
                raise

        found = paced(model, X, Budget(latency=0.6), planned, runtime=EAGER)
        assert failed[0] == 0.6
        assert found.ratio.median <= 1.01 * 0.6
        assert found.plan.budget.latency == 0.6

    def test_no_layer_becomes_slower(
        self, made: Made, observed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Forms with one layer more than two are slow by this rule, however few MACs they have."""
        made.cost = lambda site, parts: macs_cost(site, parts) * (1 if len(parts) < 3 else 9)
        monkeypatch.setattr(pace, "Stopwatch", Watch)
        model, statistics = observed
        plan = paced(model, X, Budget(latency=0.7), planner(model, statistics), runtime=EAGER).plan
        forms = {d.form for d in plan.decisions}
        assert "tucker2" not in forms
        assert forms & {"squeeze", "channel", "pointwise", "spatial", "narrow"}

    @pytest.mark.parametrize("seed", range(16))
    def test_all_of_the_time_leaves_everything_as_it_is(self, seed: int, observed: Any) -> None:
        """However the sums of the layers' times are rounded."""
        model, statistics = observed
        values = torch.rand(8, generator=torch.Generator().manual_seed(seed)).tolist()

        class Drawn:
            other_ns = 1e6 * values[-1]

            def of(self, layer: str, form: str, ranks: Any, conv: Any = None) -> Any:
                own = 1e6 * values[int(layer) // 2]
                return np.full(len(ranks), own if form == "keep" else own * (1 - 1e-6))

        plan = obo.plan(model, statistics, Budget(latency=1.0), times=Drawn())
        assert plan.error == 0
        assert plan.macs_after == plan.macs_before

    def test_channels_are_left_out_where_that_is_better(
        self, made: Made, observed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pace, "Stopwatch", Watch)
        model, statistics = observed

        def forms_alone(goal: Budget, times: Any) -> Plan:
            return obo.plan(model, statistics, goal, times=times, narrow=False)

        budget = Budget(latency=0.35)
        found = paced(model, X, budget, planner(model, statistics), runtime=EAGER)
        other = paced(model, X, budget, forms_alone, runtime=EAGER)
        assert found.plan.narrowings
        assert not other.plan.narrowings
        assert found.plan.error < other.plan.error
        assert found.ratio.median <= 1.01 * 0.35

    @pytest.mark.parametrize("slow", ["2", "6"])
    def test_widths_are_weighed_by_the_times_of_layers(self, slow: str, observed: Any) -> None:
        """Where a MAC takes a hundred times as long at one layer, its channels go first."""
        model, statistics = observed
        seen = {s.layer: s for s in statistics.survey.layers}

        class Uneven:
            other_ns = 0.0

            def of(self, layer: str, form: str, ranks: Any, conv: Any = None) -> Any:
                own = conv or seen[layer].conv
                made = FormCosts(form, own, seen[layer].places).at_ranks(ranks)
                return (100.0 if layer == slow else 1.0) * cost_at(made, own.c_in, own.c_out)[:, 0]

        plan = obo.plan(model, statistics, Budget(latency=0.5), times=Uneven())
        kept = {d.layer: d.macs_after / d.macs_before for d in plan.decisions if d.macs_before}
        assert min(kept, key=lambda layer: kept[layer]) == slow
        other = obo.plan(model, statistics, Budget(macs=plan.macs_after / plan.macs_before))
        assert plan.narrowings
        assert plan.narrowings != other.narrowings
        widths = {c.module for n in plan.narrowings for c in n.cuts}
        assert slow in widths

    def test_macs_and_latency_hold_together(
        self, made: Made, observed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pace, "Stopwatch", Watch)
        model, statistics = observed
        budget = Budget(macs=0.4, params=0.7, latency=0.8)
        plan = paced(model, X, budget, planner(model, statistics), runtime=EAGER).plan
        assert plan.macs_after <= 0.4 * plan.macs_before
        assert plan.params_after <= 0.7 * plan.params_before

    def test_what_cannot_be_met_names_the_lowest(
        self, made: Made, observed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pace, "Stopwatch", Watch)
        model, statistics = observed
        with pytest.raises(
            BudgetError,
            match=r"latency=0\.01 cannot be met: the lowest .*latency=0\..*; give a larger budget.*eager",
        ):
            paced(model, X, Budget(latency=0.01), planner(model, statistics), runtime=EAGER)

    def test_nothing_to_gain(
        self, made: Made, observed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made.cost = lambda site, parts: float(len(parts))
        monkeypatch.setattr(pace, "Stopwatch", Watch)
        model, statistics = observed
        with pytest.raises(
            BudgetError, match=r"nothing to gain here: in eager no form of any layer"
        ):
            paced(model, X, Budget(latency=0.9), planner(model, statistics), runtime=EAGER)

    def test_what_surrounds_a_layer_cancels(self, made: Made) -> None:
        """What the clock takes at a site for any form alike is in no prediction for the whole."""
        wide = Site(replace(CONV, c_out=32, stride=(2, 2)), (28, 28))
        every = {"a": (SITE, SITE), "b": (wide,)}
        made.cost = lambda site, parts: macs_cost(site, parts) + 0.3
        table = Timetable(EAGER, 1)
        table.prepare([SITE, wide])

        def truth(ranks: tuple[int, ...]) -> float:
            form = "squeeze" if ranks else "keep"
            sites = [s for called in every.values() for s in called]
            return sum(
                macs_cost(s, [p.conv for p in FORMS[form].parts(s.conv, ranks)]) for s in sites
            )

        times = LayerTimes(table, every, 0.5 + truth(()))
        for form, ranks in (("keep", ()), ("squeeze", (16,))):
            asked = np.asarray([ranks], dtype=np.int64)
            found = times.other_ns + sum(float(times.of(n, form, asked)[0]) for n in every)
            assert found == pytest.approx(1e6 * (0.5 + truth(ranks)))

    def test_budgets_and_names_that_are_none(self, observed: Any) -> None:
        model, statistics = observed
        with pytest.raises(BudgetError, match="needs measured times"):
            obo.plan(model, statistics, Budget(latency=0.5))
        with pytest.raises(BudgetError, match=r"latency=1\.5 is not a budget"):
            Budget(latency=1.5)
        with pytest.raises(BudgetError, match="'tensorrt' is no runtime: give one of eager"):
            runtime_named("tensorrt")
        assert runtime_named("PyTorch") == EAGER
        with pytest.raises(BudgetError, match="cannot be searched together"):
            obo.slim(model, X, latency=0.5, max_drop=0.01)

    def test_a_runtime_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pace.TARGETS["onnx"].__class__, "missing", "onnxruntime")
        with pytest.raises(MissingExtraError, match=r'pip install "onebyone\[onnx\]"'):
            obo.slim(network(), X, latency=0.5)


class TestWhole:
    def test_the_ratio_and_its_doubt(self) -> None:
        rounds = tuple(float(n) for n in range(1, 101))
        samples = Samples({"before": rounds, "after": tuple(r / 2 for r in rounds)}, 2, 1)
        assert ratio_of(samples).median == 0.5
        assert ratio_of(samples).doubt == 0.0
        noisy = Samples({"before": (1.0,) * 5, "after": (1.0, 2.0, 3.0, 4.0, 5.0)}, 2, 1)
        assert ratio_of(noisy).doubt == pytest.approx(1.57 * 2 / 5**0.5 / 3)
        assert not ratio_of(noisy).sure

    def test_a_machine_too_noisy_to_decide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[float] = []

        def noisy(calls: Mapping[str, Callable[[], Any]], **options: Any) -> Samples:
            asked.append(options["seconds"])
            return Samples({"before": (1.0,) * 5, "after": (1.0, 2.0, 3.0, 4.0, 5.0)}, 2, 1)

        watch = whole.Stopwatch(network(), X, EAGER, 1)
        monkeypatch.setattr(whole, "interleave", noisy)
        with pytest.raises(BudgetError, match=r"too noisy to decide .* takes 3\.00 ± 1\.4"):
            watch.ratio(network())
        assert asked == [2.0, 4.0, 8.0, 16.0]

    @ONNX
    def test_a_network_beside_itself(self) -> None:
        watch = whole.Stopwatch(network(), X, "onnx", 1)
        found = whole.ratio_of(
            whole.interleave(
                {"before": watch.original, "after": watch.opened(network())}, seconds=0.05
            )
        )
        assert found.before_ms > 0
        assert found.rounds >= 5

    def test_the_original_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        watch = whole.Stopwatch(network(), X, EAGER, 1)

        def three(calls: Mapping[str, Callable[[], Any]], **options: Any) -> Samples:
            assert list(calls.values()) == [watch.original]
            return Samples(dict.fromkeys(calls, (3.0, 1.0, 2.0)), 2, 1)

        monkeypatch.setattr(whole, "interleave", three)
        assert watch.original_ms() == 2.0

    def test_what_the_runtime_does_not_take(self) -> None:
        class Fickle(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if float(x.sum()) > 0 else -x

        with pytest.raises(ModelError, match="must be traced"):
            whole.Stopwatch(Fickle(), X, "onnx", 1)


@ONNX
@pytest.mark.slow
def test_slim_under_a_budget_of_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo network in onnxruntime, with the real clock; a machine too noisy is told, not guessed."""
    monkeypatch.setenv("ONEBYONE_CACHE", str(tmp_path))
    model, _ = obo.load("demo")
    try:
        slimmed = obo.slim(model, obo.open_images("demo", limit=128), latency=0.6)
    except BudgetError as error:
        if "too noisy to decide" not in str(error):
            raise
        pytest.skip(str(error))
    assert slimmed.plan.budget.latency == 0.6
    assert any("interleaved rounds" in note for note in slimmed.plan.notes)
    again = obo.load(slimmed.save(tmp_path / "out")).model
    assert torch.equal(again(X[:1, :1, :1, :1].expand(1, 1, 28, 28)), slimmed.model(
        X[:1, :1, :1, :1].expand(1, 1, 28, 28)
    ))  # fmt: skip


@pytest.mark.parametrize("other", [0.0, 10.0, 26.0, -8.0])
def test_goals_close_in_on_the_budget(other: float) -> None:
    """Where the time beyond the layers was taken wrong, a proportional step jumps from side to side."""
    goal, around = 0.5, {}
    for _ in range(pace.ROUNDS):
        measured = max(0.05, (goal * (34 + other) - other + 2) / 36)
        if 0.485 <= measured <= 0.505:
            return
        around[measured > 0.5] = goal, measured
        goal = pace._next(goal, measured, 0.4925, around)
    pytest.fail(f"{around} after all rounds")
