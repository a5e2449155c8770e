"""Slimming in steps: forms multiplied out again, one plan for the original, recovery between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import TRAPS, images
from test_recovery import equal, labeled, net

import onebyone as obo
from onebyone import progressive
from onebyone.conv import ConvSpec
from onebyone.errors import OneByOneError, PlanError
from onebyone.measurement.counting import count
from onebyone.merging import merged
from onebyone.plans import Budget
from onebyone.progressive import schedule
from onebyone.tree import modules_by_name

QUICK = obo.Recipe(batch_size=16, precision="float32", augment=(), average=0.9)
SLIM = {"latency": False, "calibration": 64, "recipe": QUICK}


def check_merged(name: str) -> None:
    """A lighter network and its merged one compute the same, with the original's layers."""
    trap = TRAPS[name]
    model = trap.model().double()
    data = trap.images().double()
    seen = obo.observe(model, data)
    plan = obo.plan(model, seen, Budget(macs=0.7), narrow=False)
    assert any(d.form not in ("keep", "refuse") for d in plan.decisions)
    lighter = obo.rewrite(model, plan, data, statistics=seen)
    whole = merged(lighter, plan)
    with torch.no_grad():
        given, wanted = whole(data[:4].double()), lighter(data[:4].double())
    torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-9)
    modules, own = modules_by_name(whole), modules_by_name(model)
    for decision in plan.decisions:
        if decision.form not in ("keep", "refuse"):
            spec, before = (ConvSpec.of(m[decision.layer]) for m in (modules, own))
            assert (spec.c_in, spec.c_out, spec.kernel, spec.stride, spec.padding, spec.dilation) == (
                before.c_in, before.c_out, before.kernel, before.stride, before.padding,
                before.dilation,
            )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "1×1 with stride 2",
        "1×1 with padding",
        "dilated",
        "circular padding",
        "same padding, even kernel",
        "root is pointwise",
        "non-square kernels",
    ],
)
def test_merging_is_the_same_function(name: str) -> None:
    check_merged(name)


def test_merging_another_network_is_refused() -> None:
    model, data = net(), labeled(64)
    plan = obo.plan(model, obo.observe(model, data), Budget(macs=0.5), narrow=False)
    with pytest.raises(PlanError, match="is not as planned in this network"):
        merged(model, plan)


def test_the_schedule_keeps_the_same_fraction_in_each_step() -> None:
    steps = schedule(Budget(macs=0.25, params=0.16), 2, 1.5)
    assert [(s.budget.macs, s.budget.params, s.epochs) for s in steps] == [
        (0.5, 0.4, 1.5), (0.25, 0.16, 1.5),
    ]  # fmt: skip
    with pytest.raises(OneByOneError, match="0 steps do not fit"):
        schedule(Budget(macs=0.5), 0, 1)


def test_steps_end_in_one_plan_for_the_original(tmp_path: Path) -> None:
    model, data = net(), labeled(120)
    slimmed = obo.slim(model, data, macs=0.3, steps=2, finetune_epochs=1, **SLIM)
    plan = slimmed.plan
    assert [s.budget.macs for s in plan.schedule] == pytest.approx([0.3**0.5, 0.3])
    assert plan.macs_after <= 0.3 * plan.macs_before
    example = data.inputs[:1]
    assert plan.macs_before == count(model, example).macs
    assert plan.macs_after == count(slimmed.model, example).macs
    assert plan.params_before == sum(p.numel() for p in model.parameters())
    assert plan.params_after == sum(p.numel() for p in slimmed.model.parameters())
    assert sum("fine-tuned on" in note for note in plan.notes) == 2
    slimmed.save(tmp_path / "out")
    again = obo.load(tmp_path / "out", architecture=net())
    assert equal(again.model, slimmed.model)
    assert obo.read_plan(tmp_path / "out" / "plan.json").schedule == plan.schedule


def test_the_original_is_the_teacher_of_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = net(), labeled(80)
    lighter: list[int] = []
    whole = progressive.rewrite

    def note(current, *args, **options):
        lighter.append(count(current, data.inputs[:1]).macs)
        return whole(current, *args, **options)

    monkeypatch.setattr(progressive, "rewrite", note)
    obo.slim(model, data, macs=0.3, steps=3, finetune_epochs=0.5, **SLIM)
    # Each step plans for the whole network again: what it rewrites costs what the original costs.
    assert lighter == 3 * [count(model, data.inputs[:1]).macs]


def test_an_interrupted_training_ends_the_slimming(monkeypatch: pytest.MonkeyPatch) -> None:
    from onebyone.recovery import training

    def interrupted(self, *batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="interrupted at epoch 0"):
        obo.slim(net(), labeled(80), macs=0.5, steps=2, finetune_epochs=1, **SLIM)


def test_held_out_images_are_in_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from onebyone import recovering

    data = images(100, 2, 10, 10)
    data += torch.arange(100.0).reshape(-1, 1, 1, 1)
    trained: list[torch.Tensor] = []
    tune = recovering.fine_tune

    def note(lighter, pool, **options):
        trained.append(pool.take(10_000).inputs)
        return tune(lighter, pool, **options)

    monkeypatch.setattr(recovering, "fine_tune", note)
    slimmed = obo.slim(net(), data, macs=0.5, finetune_epochs=1, **SLIM)
    assert slimmed.verification.images == 12
    assert len(trained[0]) == 88
    means = trained[0].mean((1, 2, 3)).round(decimals=3).tolist()
    assert len(set(means)) == 88


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 0.1, "steps": 2}, "go with a budget"),
        ({"macs": 0.5, "steps": 99}, "99 steps do not fit"),
        ({"macs": 0.5, "steps": 2.5}, r"2\.5 steps do not fit: give a whole number"),
        ({"max_drop": "0.01"}, "max_drop='0.01' is no loss of accuracy"),
        ({"macs": torch.tensor(0.5)}, "is not a budget: give the fraction to keep, a number"),
        ({"macs": 0.5, "steps": 2}, "finetune_epochs=0 does not fit: each step ends in a training"),
        ({"macs": 0.5, "finetune_epochs": -1}, "finetune_epochs=-1 does not fit"),
        ({"macs": 0.5, "steps": 2, "finetune_epochs": 1, "held_out": 500}, "cannot be set apart"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(OneByOneError, match=message):
        obo.slim(net(), labeled(60), **options, **SLIM)


def test_batches_need_held_out_images_of_their_own() -> None:
    batches = [images(32, 2, 10, 10, seed=s) for s in range(3)]
    with pytest.raises(OneByOneError, match="none can be held out: give held_out="):
        obo.slim(net(), batches, macs=0.5, finetune_epochs=1, **SLIM)
    slimmed = obo.slim(
        net(), batches, macs=0.5, finetune_epochs=1, held_out=images(9, 2, 10, 10), **SLIM
    )
    assert slimmed.verification.images == 9
