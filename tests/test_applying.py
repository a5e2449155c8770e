"""A plan that is given: checked against the network, its costs and predictions worked out anew."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import onebyone as obo
from onebyone.applying import planned_layers
from onebyone.errors import DataError, OneByOneError, PlanError
from onebyone.losses import Losses
from onebyone.measurement.counting import count
from onebyone.plan_files import plan_from_json, plan_to_json
from onebyone.planning import Planner
from onebyone.plans import Plan


def net(padding: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=padding), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 6),
    ).eval()  # fmt: skip


def images(size: int = 10, n: int = 48) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return net()


@pytest.fixture(scope="module")
def seen(model: nn.Module) -> obo.Statistics:
    return obo.observe(model, images())


@pytest.fixture(scope="module")
def plan(model: nn.Module, seen: obo.Statistics) -> Plan:
    made = obo.plan(model, seen, obo.Budget(macs=0.45))
    assert made.narrowings
    assert any(d.ranks for d in made.decisions)
    return made


def renewed(model: nn.Module, plan: Plan, seen: obo.Statistics) -> Plan:
    return Planner(seen).renewed(model, plan)


def test_an_unchanged_plan_stays_as_it_is(
    model: nn.Module, plan: Plan, seen: obo.Statistics
) -> None:
    assert renewed(model, plan, seen) == plan
    assert renewed(model, plan_from_json(plan_to_json(plan)), seen) == plan


def test_an_edited_rank_has_its_own_prediction(
    model: nn.Module, plan: Plan, seen: obo.Statistics
) -> None:
    before = next(d for d in plan.decisions if d.ranks)
    edited = replace(before, ranks=(1,) * len(before.ranks))
    decisions = tuple(edited if d is before else d for d in plan.decisions)
    after = renewed(model, replace(plan, decisions=decisions), seen).of(before.layer)
    layer = next(s for s in seen.survey.layers if s.layer == before.layer)
    lost = Losses(seen).at(layer, plan.narrowings)
    assert after.error == pytest.approx(sum(lost[side][1] for side in after.sides), rel=1e-9)
    assert after.error > before.error


def test_a_layer_that_is_kept_loses_nothing(
    model: nn.Module, plan: Plan, seen: obo.Statistics
) -> None:
    before = next(d for d in plan.decisions if d.ranks)
    kept = replace(before, form="narrow" if before.shape else "keep", ranks=())
    decisions = tuple(kept if d is before else d for d in plan.decisions)
    made = renewed(model, replace(plan, decisions=decisions), seen)
    assert made.of(before.layer).error == 0
    assert made.error == pytest.approx(plan.error - before.error)
    assert any("more than its budget of 0.45" in note for note in made.notes)


def test_an_edited_width_has_its_own_prediction(
    model: nn.Module, plan: Plan, seen: obo.Statistics
) -> None:
    values = plan_to_json(plan)
    narrowing = values["narrowings"][0]
    narrowing["width"] = 2
    for layer in values["layers"]:
        layer |= {"form": "keep"}
        layer.pop("ranks", None)
    made = renewed(model, plan_from_json(values), seen)
    errors = seen.orders[narrowing["layer"]].errors / seen.images
    assert made.narrowings[0].error == pytest.approx(float(errors[2]), rel=1e-9)
    assert made.narrowings[0].error > plan.narrowings[0].error


def test_costs_are_those_of_the_images_at_hand(model: nn.Module, plan: Plan) -> None:
    wrong = replace(
        plan, other_macs=10**9, other_params=10**6,
        narrowings=tuple(replace(n, params_each=10**5) for n in plan.narrowings),
    )  # fmt: skip
    slimmed = obo.slim(model, images(16), plan=wrong, latency=False)
    before, after = (count(m, images(16, 1)) for m in (model, slimmed.model))
    made = slimmed.plan
    assert (made.macs_before, made.macs_after) == (before.macs, after.macs)
    assert (made.params_before, made.params_after) == (before.params, after.params)
    assert made.input_shape == (3, 16, 16)
    assert any(
        "made for inputs of 3×10×10; its costs are those of 3×16×16" in n for n in made.notes
    )


@pytest.mark.parametrize("block", [0, 2, 10**30])
def test_cuts_of_another_block_are_refused(
    model: nn.Module, plan: Plan, seen: obo.Statistics, block: int
) -> None:
    values = plan_to_json(plan)
    values["narrowings"][0]["cuts"][-1]["block"] = block
    with pytest.raises(PlanError, match="narrow"):
        obo.rewrite(model, plan_from_json(values), images(), statistics=seen)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_cut_that_is_missing_is_told(
    model: nn.Module, plan: Plan, seen: obo.Statistics, place: int
) -> None:
    narrowing = plan.narrowings[0]
    gone = narrowing.cuts[place]
    cuts = tuple(c for c in narrowing.cuts if c != gone)
    values = plan_to_json(replace(plan, narrowings=(replace(narrowing, cuts=cuts),)))
    for layer in values["layers"]:
        layer |= {"form": "keep"}
    with pytest.raises(
        PlanError, match=rf"are not those of this model \(other ones of {gone.tensor}"
    ):
        obo.rewrite(model, plan_from_json(values), images(), statistics=seen)


def test_what_a_model_does_not_narrow_is_told(plan: Plan) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.inner[2](self.inner[1](self.inner[0](x)))
            return self.inner[3:](first) + first.sum()

    model = Read().eval()
    plan = obo.plan(model, obo.observe(model, images()), obo.Budget(macs=0.6))
    moved = replace(plan, narrowings=(replace(net_narrowing(), layer="inner.0"),))
    with pytest.raises(PlanError, match=r"layer 'inner\.0', whose width stays in this model"):
        planned_layers(model, moved, obo.observe(model, images()))


def net_narrowing() -> Any:
    return obo.plan(net(), obo.observe(net(), images()), obo.Budget(macs=0.45)).narrowings[0]


def test_the_message_says_what_differs(plan: Plan, seen: obo.Statistics) -> None:
    with pytest.raises(
        PlanError,
        match=r"3→24 3×3 with padding \(\(2, 2\), \(2, 2\)\) in the model and \(\(1, 1\), \(1, 1\)\)",
    ):
        obo.rewrite(net(2), plan, images())


def test_ranks_beyond_the_layer_are_refused(
    model: nn.Module, plan: Plan, seen: obo.Statistics
) -> None:
    before = next(d for d in plan.decisions if d.ranks)
    for ranks in ((999,) * len(before.ranks), (0,) * len(before.ranks), ()):
        edited = replace(before, ranks=ranks)
        decisions = tuple(edited if d is before else d for d in plan.decisions)
        with pytest.raises(PlanError, match=f"layer '{before.layer}' has the ranks"):
            obo.rewrite(model, replace(plan, decisions=decisions), images(), statistics=seen)


def test_statistics_of_another_network(seen: obo.Statistics) -> None:
    for other in (nn.Sequential(nn.Conv2d(3, 8, 3)), net(2)):
        with pytest.raises(PlanError, match="the statistics are of another network"):
            obo.plan(other, seen, obo.Budget(macs=0.5))
    with pytest.raises(PlanError, match="statistics= is None"):
        obo.plan(net(), None, obo.Budget(macs=0.5))  # type: ignore[arg-type]
    with pytest.raises(OneByOneError, match="model= is None"):
        obo.observe(None, images())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"plan": "plan.json"}, r"onebyone.read_plan\('plan.json'\)"),
        ({"plan": {}}, "the plan is {}"),
        ({"macs": 0.5, "preprocess": "x"}, "preprocess= is 'x': give a Preprocess"),
        ({"macs": 0.5, "progress": 5}, "progress=5 cannot be called"),
        ({"macs": 0.5, "source": "x"}, "the source 'x' names no network"),
        ({"macs": 0.5, "classes": "cat"}, "classes='cat' are no names"),
        ({"macs": 0.5, "classes": (1, 2)}, r"classes=\(1, 2\) are no names"),
        ({"macs": 0.5, "classes": ("a", "b")}, "has 2 names, and the network's output 6 numbers"),
    ],
)
def test_wrong_objects_have_one_message(model: nn.Module, given: Any, said: str) -> None:
    with pytest.raises(OneByOneError, match=said):
        obo.slim(model, images(), latency=False, **given)


def test_a_result_has_a_path(model: nn.Module, plan: Plan) -> None:
    slimmed = obo.slim(model, images(), plan=plan, latency=False, classes=list("abcdef"))  # type: ignore[arg-type]
    assert slimmed.classes == tuple("abcdef")
    with pytest.raises(OneByOneError, match="the folder is None"):
        slimmed.save(None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="are no names"):
        obo.open_images(images(), classes="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("layers", 0, "form"), [], r"there is no form \[\]"),
        (("layers", 0, "conv", "kernel"), 3, "kernel=3 is no list of numbers"),
        (("layers", 0, "conv", "padding"), [1], r"padding=\[1\] is no list of two numbers"),
        (("layers", 0, "conv"), 5, "5 is no geometry of a layer"),
        (("layers", 0, "rank"), 4, "has 'rank', which no layer of a plan has"),
        (("layers", 0, "predicted_error_nats"), None, "predicted_error_nats=None stands"),
        (("layers", 0, "predicted_error_nats"), float("nan"), "predicted_error_nats=nan stands"),
        (("layers", 0, "predicted_error_nats"), -1, "predicted_error_nats=-1 stands"),
        (
            ("narrowings", 0, "predicted_error_nats"),
            float("inf"),
            "predicted_error_nats=inf stands",
        ),
        (("narrowings", 0, "order"), True, "its order True is no text"),
        (("narrowings", 0, "cuts"), "x", "its cuts 'x' are no list"),
    ],
)
def test_damaged_values_are_told_by_what_they_are(
    plan: Plan, path: tuple[Any, ...], value: Any, said: str, tmp_path: Path
) -> None:
    values = json.loads(json.dumps(plan_to_json(plan)))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(values))
    with pytest.raises(PlanError, match=said):
        obo.read_plan(file)
