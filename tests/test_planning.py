"""Plans: budgets met, costs as PyTorch counts them, refusals with the lowest that can be."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from models import TRAPS, as_trained, images, plain
from test_conv import counted_macs, counted_params
from test_tree import check_untouched
from torch import Tensor, nn

import onebyone as obo
from onebyone.errors import BudgetError, PlanError
from onebyone.forms import FORMS
from onebyone.losses import unseen
from onebyone.plans import Budget, Plan


def wide() -> tuple[nn.Module, Tensor]:
    """Layers of 32 to 64 channels: enough candidates to come close to any budget."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.ReLU(), nn.Conv2d(48, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip
    return model.eval(), images(16, 3, 14, 14)


@pytest.fixture(scope="module")
def observed() -> tuple[nn.Module, Tensor, obo.Statistics]:
    model, inputs = wide()
    return model, inputs, obo.observe(model, inputs)


def check_budget_met(plan: Plan, lighter: nn.Module, image: Tensor, slack: float = 0.05) -> None:
    """Law: by PyTorch's own count never above a budget, and not far below all of them."""
    kept = {
        "macs": counted_macs(lighter, image) / plan.macs_before,
        "params": counted_params(lighter) / plan.params_before,
    }
    budgets = {n: getattr(plan.budget, n) for n in kept if getattr(plan.budget, n) is not None}
    assert all(kept[name] <= budget for name, budget in budgets.items()), (kept, budgets)
    assert min(budget - kept[name] for name, budget in budgets.items()) <= slack, (kept, budgets)


def check_reported_cost(plan: Plan, model: nn.Module, lighter: nn.Module, image: Tensor) -> None:
    """Law: the plan's totals are PyTorch's own counts on the networks themselves."""
    assert plan.macs_before == counted_macs(model, image)
    assert plan.macs_after == counted_macs(lighter, image)
    assert plan.params_before == counted_params(model)
    assert plan.params_after == counted_params(lighter)


BUDGETS = [
    Budget(macs=0.8), Budget(macs=0.5), Budget(macs=0.25), Budget(params=0.5), Budget(params=0.2),
    Budget(macs=0.5, params=0.3), Budget(macs=0.3, params=0.6), Budget(macs=1.0),
]  # fmt: skip


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_budget_is_met_and_cost_is_that_of_pytorch(
    observed: tuple[nn.Module, Tensor, obo.Statistics], budget: Budget
) -> None:
    model, inputs, statistics = observed
    plan = obo.plan(model, statistics, budget)
    lighter = obo.rewrite(model, plan, inputs, statistics=statistics)
    check_budget_met(plan, lighter, inputs[:1])
    check_reported_cost(plan, model, lighter, inputs[:1])
    assert plan.macs_after <= plan.macs_before
    assert plan.params_after <= plan.params_before


def test_predicted_error_falls_with_the_budget(
    observed: tuple[nn.Module, Tensor, obo.Statistics],
) -> None:
    model, _, statistics = observed
    errors = [
        obo.plan(model, statistics, Budget(macs=m)).error for m in (0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
    ]
    assert all(b <= a * 1.02 for a, b in pairwise(errors)), errors
    assert errors[0] > 2 * errors[3]
    assert errors[-1] == pytest.approx(0, abs=1e-9)


def test_decisions_say_everything(observed: tuple[nn.Module, Tensor, obo.Statistics]) -> None:
    model, _, statistics = observed
    plan = obo.plan(model, statistics, Budget(macs=0.5))
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [d.layer for d in plan.decisions] == layers
    for decision in plan.decisions:
        assert len(decision.ranks) == len(FORMS[decision.form].ranks)
        assert decision.error >= 0
        assert decision.reason or decision.form != "keep"
        assert plan.of(decision.layer) is decision
        assert decision.conv is not None
        assert decision.macs_after <= decision.macs_before
    narrowing = sum(n.error for n in plan.narrowings)
    assert plan.error == pytest.approx(narrowing + sum(d.error for d in plan.decisions))
    assert any(d.form != "keep" for d in plan.decisions)
    with pytest.raises(PlanError, match="'nothing'"):
        plan.of("nothing")


def test_planning_changes_nothing_and_repeats(
    observed: tuple[nn.Module, Tensor, obo.Statistics],
) -> None:
    model, _, statistics = observed
    budget = Budget(macs=0.5)
    check_untouched(model, lambda m: obo.plan(m, statistics, budget))
    assert obo.plan(model, statistics, budget) == obo.plan(model, statistics, budget)


@pytest.mark.parametrize("name", ["macs", "params"])
def test_a_budget_too_small_names_the_lowest(
    observed: tuple[nn.Module, Tensor, obo.Statistics], name: str
) -> None:
    model, _, statistics = observed
    with pytest.raises(BudgetError, match=f"lowest that this network reaches is {name}=") as told:
        obo.plan(model, statistics, Budget(**{name: 0.001}))
    assert str(told.value).endswith("; give a larger budget")
    lowest = float(re.findall(rf"reaches is {name}=([\d.]+)", str(told.value))[0])
    reached = obo.plan(model, statistics, Budget(**{name: lowest + 0.001}))
    assert getattr(reached, f"{name}_after") <= (lowest + 0.001) * getattr(
        reached, f"{name}_before"
    )
    with pytest.raises(BudgetError):
        obo.plan(model, statistics, Budget(**{name: lowest - 0.001}))


@pytest.mark.parametrize("value", [0, -0.5, 1.5, float("nan"), "half"])
@pytest.mark.parametrize("name", ["macs", "params"])
def test_budgets_outside_the_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(BudgetError, match=name):
        Budget(**{name: value})  # type: ignore[arg-type]


def test_no_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"macs=0\.5"):
        Budget()


@pytest.mark.parametrize(
    "name", ["tied weights", "attention", "never run", "transposed", "subclass"]
)
def test_totals_count_what_cannot_be_changed(name: str) -> None:
    trap = TRAPS[name]
    model, inputs = trap.model(), trap.images(8)
    plan = obo.plan(model, obo.observe(model, inputs), Budget(macs=0.9))
    assert plan.macs_before == counted_macs(model, inputs[:1])
    assert plan.params_before == counted_params(model)
    for layer, words in trap.refused.items():
        decision = plan.of(layer)
        assert decision.refused
        assert words in decision.reason
        assert (decision.macs_after, decision.params_after) == (
            decision.macs_before, decision.params_before
        )  # fmt: skip


def test_all_is_kept_where_nothing_can_change() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU()).eval()
    statistics = obo.observe(model, images(4, 4, 8, 8))
    plan = obo.plan(model, statistics, Budget(macs=1.0))
    assert [d.form for d in plan.decisions] == ["keep"]
    with pytest.raises(BudgetError, match=r"macs=1\.000.* stay 1\.00 of the macs in '0' \(no form"):
        obo.plan(model, statistics, Budget(macs=0.9))


def test_a_budget_too_small_says_what_stays() -> None:
    model, inputs = wide()
    for place in (2, 4):
        model.get_submodule(str(place)).register_forward_hook(lambda *_: None)
    statistics = obo.observe(model, inputs)
    macs = counted_macs(model, inputs[:1])
    with pytest.raises(BudgetError) as told:
        obo.plan(model, statistics, Budget(macs=0.2))
    kept = sum(s.macs for s in statistics.survey.layers if s.layer in ("2", "4")) / macs
    assert f"there stay {kept:.2f} of the macs in '2', '4' (each carries hooks" in str(told.value)


def check_predicted_error(budget: float = 0.7) -> None:
    """Law: the predicted rise of the loss is that of the network, within a factor of three."""
    model, inputs = as_trained(plain().eval()), images(256, 4, 12, 12)
    statistics = replace(obo.observe(model, inputs), spaces=())
    plan = obo.plan(model, statistics, Budget(macs=budget))
    one = max(plan.decisions, key=lambda d: d.error)
    alone = replace(
        plan,
        decisions=tuple(
            d if d is one else replace(d, form="keep", ranks=()) for d in plan.decisions
        ),
    )
    lighter = obo.rewrite(model, alone, inputs, statistics=statistics)
    with torch.no_grad():
        before, after = model(inputs).log_softmax(1), lighter(inputs).log_softmax(1)
    rise = float((before.exp() * (before - after)).sum(1).mean())
    assert rise <= 3 * one.error
    assert one.error <= 20 * rise


def test_the_predicted_error_has_the_unit_it_says() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        check_predicted_error()


def test_few_samples_lose_more_than_they_show() -> None:
    """n² / (n − r)² times the loss on their own samples; at most all, and less at higher ranks."""
    own = np.asarray([8.0, 4.0, 2.0, 1.0, 0.5, 0.0])
    np.testing.assert_allclose(unseen(own, 10**9), own)
    np.testing.assert_allclose(
        unseen(own, 4), [8, 4 * 16 / 9, 4 * 16 / 9, 4 * 16 / 9, 4 * 16 / 9, 0]
    )
    np.testing.assert_allclose(unseen(own, None), own)
