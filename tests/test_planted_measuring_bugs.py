"""Tests of the tests of measuring: each law catches a bug that is planted here, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import test_closures
import test_comparing
import test_counting_known
import test_counting_laws
import test_latency
import test_memory
import test_roofline
import torch
from known_costs import CONVOLUTIONS, Case
from known_products import PRODUCTS
from planting import Bug, Patch, check_caught
from torch import nn

from onebyone import comparing
from onebyone.closures import Functions
from onebyone.errors import ModelError
from onebyone.measurement import counting, formulas, memory, recording, rehearsing, roofline, timing
from onebyone.measurement.owning import Owners

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
CASES: dict[str, Case] = {case.name: case for case in (*CONVOLUTIONS, *PRODUCTS)}


def _known(name: str, training: bool = False) -> Callable[[], object]:
    return lambda: test_counting_known.check(CASES[name], training, nullcontext)


def _owned(name: str) -> Callable[[], object]:
    return lambda: test_counting_laws.test_products_belong_to_their_layer(name)


def _trace(model: Callable[[], nn.Module]) -> Callable[[], object]:
    return lambda: test_counting_laws.check_no_trace(model().train(), torch.randn(2, 3, 8, 8))


def _formula(
    name: str, change: Callable[[Sequence[Any], Any, int], int]
) -> Callable[[Patch], object]:
    right = formulas.FORMULAS[name]
    return lambda p: p.setitem(
        formulas.FORMULAS, name, lambda args, y: change(args, y, right(args, y))
    )


def _normalized() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))


def _without_shapes(p: Patch) -> None:
    """The network itself runs, as if none could be copied, and nothing is given back."""

    def refuse(model: nn.Module, held: object) -> nn.Module:
        raise ModelError("no copy")

    p.setattr(rehearsing, "on_meta", refuse)
    p.setattr(rehearsing, "deep_copy", lambda model: model)


COUNTING = {
    "transposed convolutions counted by their outputs": Bug(
        _formula("aten::convolution", lambda a, y, _: y.numel() * a[1][0].numel()),
        _known("transposed 32→16 k4 s2 p1 on 10×10"),
    ),
    "groups ignored": Bug(
        _formula("aten::convolution", lambda a, _, macs: macs * a[8]), _known("grouped")
    ),
    "one of attention's two products": Bug(
        lambda p: [
            p.setitem(formulas.FORMULAS, n, lambda a, y: a[0].numel() * a[1].shape[-2])
            for n in ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::bmm")
        ],
        _known("scaled_dot_product_attention"),
    ),
    "the bias counted": Bug(
        _formula("aten::addmm", lambda _, y, macs: macs + y.numel()),
        _known("1×1 100→40 at 20×20 as addmm"),
    ),
    "functions not seen": Bug(
        lambda p: p.setattr(Owners, "of", lambda self, read, running: running),
        _owned("a function of its weight"),
    ),
    "a weight that was changed is no weight": Bug(
        lambda p: p.setattr(Owners, "derive", lambda self, read, written: None),
        _owned("a function of its changed weight"),
    ),
    "tied weights all of the first": Bug(
        lambda p: p.setattr(
            Owners, "of",
            lambda self, read, running: next(
                (self.weights[k][0] for k in read if self.weights.get(k)), running
            ),
        ),
        _owned("tied weights"),
    ),
    "hooks left on": Bug(
        lambda p: p.setattr(recording, "hooked", lambda handles: nullcontext()), _trace(_normalized)
    ),
    "random numbers used up, buffers written": Bug(_without_shapes, _trace(_normalized)),
    "functions that a copy holds run the original": Bug(
        lambda p: p.setattr(Functions, "note", lambda self, value: None),
        lambda: test_closures.test_its_layers_are_counted_and_nothing_is_left_behind("a lambda"),
    ),
    "layers that ran called unused": Bug(
        lambda p: p.setattr(counting, "_weights", lambda owners: (
            (dict.fromkeys(owners.names.values(), (1, 4)), False)
        )),
        test_counting_laws.test_calls_and_shapes,
    ),
}  # fmt: skip


def _forgetful(self: memory.Tracker, key: int, piece: Any) -> None:
    """Memory that was given back still counts."""
    del self.held[key]


MEMORY = {
    "nothing is given back": Bug(
        lambda p: p.setattr(memory.Tracker, "_forget", _forgetful),
        test_memory.test_a_chain_holds_one_input_and_one_output_at_a_time,
    ),
    "in-place operators and views take memory": Bug(
        lambda p: p.setattr(memory, "storage", id),
        test_memory.test_in_place_and_views_take_nothing,
    ),
    "gradients forgotten": Bug(
        lambda p: p.setattr(memory, "total", lambda output: output.sum().detach().requires_grad_()),
        test_memory.test_a_training_step_keeps_activations_and_gradients,
    ),
    "inputs forgotten": Bug(
        lambda p: p.setattr(memory, "_given", lambda stage, owners: (
            ("weight", "", t) for t in stage.model.parameters()
        )),
        test_memory.test_a_chain_holds_one_input_and_one_output_at_a_time,
    ),
}  # fmt: skip


def _swapped(macs: int, bytes: int, milliseconds: float, machine: roofline.Machine) -> Any:
    return PLACE(bytes, macs, milliseconds, machine)


PLACE = roofline.place

CLOCK = {
    "MACs and bytes exchanged": Bug(
        lambda p: p.setattr(test_roofline, "place", _swapped),
        test_roofline.TestPlace().test_below_the_ridge,
    ),
    "the quotient of medians for the median of quotients": Bug(
        lambda p: p.setattr(timing.Samples, "ratio", lambda self, name, to: timing.Quartiles(*(
            [self.quartiles(name).median / (self.quartiles(to).median or float("inf"))] * 3
        ))),
        test_latency.TestSamples().test_ratios_are_of_the_same_round,
    ),
}  # fmt: skip

COMPARING = {
    "the bottleneck's second half forgotten at the break-even": Bug(
        lambda p: p.setattr(comparing, "break_even", _half_break_even(comparing.break_even)),
        lambda: test_comparing.test_the_break_even_width_of_the_classic_example(
            comparing.compare("100x20x20", "40x20x20", kernel=5, latency=False)
        ),
    ),
}  # fmt: skip


def _half_break_even(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*given: Any, **named: Any) -> Any:
        found = right(*given, **named)
        return replace(found, macs=2 * found.macs)

    return wrong


BUGS = COUNTING | MEMORY | CLOCK | COMPARING


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str, monkeypatch: Patch) -> None:
    check_caught(BUGS[name], monkeypatch, ModelError)
    monkeypatch.undo()
    torch.nn.modules.module._global_forward_hooks.clear()
    torch.nn.modules.module._global_forward_pre_hooks.clear()
