"""Tests of the tests of deepening: each law catches a bug that is planted here, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_deepening
import torch
from models import TRAPS
from torch import nn

from onebyone.deepening import filling, probing
from onebyone.deepening.filling import Room
from onebyone.deepening.insertions import INSERTIONS, Activation, Insertion

Patch = pytest.MonkeyPatch
Law = Callable[[], object]


def _built(kind: str, change: Callable[[nn.Module], object]) -> Callable[[Patch], object]:
    """Blocks of a kind that come out changed."""
    right = INSERTIONS[kind]

    def build(insertion: Insertion) -> nn.Module:
        made = right.build(insertion)
        with torch.no_grad():
            change(made)
        return made

    return lambda patch: patch.setitem(INSERTIONS, kind, replace(right, build=build))


def _same_law(name: str = "plain") -> Law:
    def law() -> None:
        trap = TRAPS[name]
        model, inputs = trap.model(), trap.images(4)
        blocks = [
            i for i in test_deepening.usable(model, inputs) if i.kind in ("bottleneck", "pointwise")
        ]
        assert blocks
        test_deepening.check_same(model, test_deepening.inserted(model, tuple(blocks)), inputs)

    return law


def _slope_law() -> None:
    """The law for a PReLU alone; the trial that candidates go through would refuse a wrong one."""
    trap = TRAPS["1d"]
    model = trap.model()
    halves = (Insertion("first.0", "prelu", 16, 16, (3,), 22),)
    test_deepening.check_same(model, test_deepening.inserted(model, halves), trap.images(4))


def _cost(**changes: Any) -> Callable[[Patch], object]:
    return lambda patch: [patch.setattr(Insertion, k, property(v)) for k, v in changes.items()]


RIGHT_MACS, RIGHT_PARAMS = Insertion.macs.fget, Insertion.params.fget  # type: ignore[attr-defined]

BUGS: dict[str, tuple[Callable[[Patch], object], Law]] = {
    "the last layer does not start at zero": (
        _built("bottleneck", lambda m: m.body.expand.weight.fill_(1e-3)),  # type: ignore[union-attr]
        _same_law(),
    ),
    "the identity has a bias": (
        _built("pointwise", lambda m: m.conv.bias.fill_(1e-3)), _same_law(),  # type: ignore[union-attr]
    ),
    "the slope does not start at one": (
        _built("prelu", lambda m: m.weight.fill_(0.25)),  # type: ignore[union-attr]
        _slope_law,
    ),
    "first and last layer start at zero": (
        _built("bottleneck", lambda m: m.body.reduce.weight.zero_()),  # type: ignore[union-attr]
        lambda: test_deepening.check_learning(TRAPS["1×1 with stride 2"]),
    ),
    "the kernel is not counted": (
        _cost(macs=lambda i: RIGHT_MACS(replace(i, kernel=(1,) * len(i.kernel)))),
        lambda: test_deepening.check_cost(TRAPS["plain"]),
    ),
    "normalization is not counted": (
        _cost(params=lambda i: RIGHT_PARAMS(replace(i, norm=False))),
        lambda: test_deepening.check_cost(TRAPS["plain"]),
    ),
    "every activation is idempotent": (
        lambda patch: patch.setattr(Activation, "idempotent", property(lambda a: True)),
        lambda: test_deepening.test_identities_only_behind_idempotent_activations(nn.SiLU(), False),
    ),
    "one cost of the budget is enough": (
        lambda patch: patch.setattr(
            Room, "holds", lambda r, i: any(
                most is not None and cost <= most
                for most, cost in ((r.macs, i.macs), (r.params, i.params))
            ),
        ),
        lambda: test_deepening.check_budget(filling.by_gain, Room(10**6, 3000)),
    ),
    "the budget is left unused": (
        lambda patch: patch.setitem(filling.MOST, "bottleneck", 1),
        lambda: test_deepening.check_budget(filling.by_rule, Room(10**6, None)),
    ),
    "noise is trusted": (
        lambda patch: patch.setattr(probing, "reliability", lambda halves: 1.0),
        test_deepening.test_estimates_that_disagree_are_not_trusted,
    ),
    "blocks in the other order": (
        lambda patch: patch.setattr(
            probing, "_in_order", lambda made, found: [m[1] for m in reversed(made.values())]  # type: ignore[index]
        ),
        test_deepening.check_probe,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, law = BUGS[name]
    law()
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError):
            law()
