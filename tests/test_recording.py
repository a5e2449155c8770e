"""Operators that take functions: what runs inside is counted, for the layer that it belongs to."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention import flex_attention as flexible

from onebyone.errors import ModelError
from onebyone.measurement.counting import count
from onebyone.measurement.memory import measure_memory

map_over: Any = importlib.import_module("torch._higher_order_ops.map").map


class Inside(nn.Module):
    """Two layers, run by what is given."""

    def __init__(self, run: Callable[[Inside, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 8)
        self.run = run

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def chosen(model: Inside, x: Tensor) -> object:
    """The first layer twice for positive sums, else the second."""
    return torch.cond(
        x.sum() > 0, lambda x: model.a(model.a(x)), lambda x: model.b(x)[:, :4].clone(), (x,)
    )


def three_times(model: Inside, x: Tensor) -> object:
    begin = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, model.a(x)), (begin, x))


RUNS: dict[str, tuple[Callable[[Inside, Tensor], object], dict[str, int]]] = {
    "cond": (chosen, {"a": 2 * 3 * 16, "b": 0}),
    "while": (three_times, {"a": 3 * 3 * 16, "b": 0}),
    "map": (lambda m, x: map_over(lambda row: m.b(row), x), {"a": 0, "b": 3 * 32}),
    "scan": (
        lambda m, x: scan(lambda c, row: (m.a(c) + row, c.clone()), x[0], x), {"a": 3 * 16, "b": 0}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_what_runs_inside_is_counted(name: str) -> None:
    run, expected = RUNS[name]
    found = count(Inside(run), torch.ones(3, 4))
    assert {layer: found.layers[layer].macs for layer in "ab"} == expected
    assert found.macs == sum(expected.values())
    assert not found.unknown


def test_the_other_branch() -> None:
    found = count(Inside(chosen), -torch.ones(3, 4))
    assert (found.layers["a"].macs, found.layers["b"].macs) == (0, 3 * 32)


def test_memory_inside_is_seen() -> None:
    """Weights and input, and the second layer's output, which is longer than what is returned."""
    found = measure_memory(Inside(chosen), -torch.ones(300, 4), training=False).inference
    weights = 4 * (16 + 4 + 32 + 8)
    assert found.bytes >= weights + 4 * 300 * (4 + 8 + 4)
    assert "b" in {alive.layer for alive in found.alive}


class Flexible(nn.Module):
    """Attention with a function of its own for the scores; fewer keys' heads than queries'."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> object:
        return flexible.flex_attention(
            q, k, v, score_mod=lambda score, b, h, i, j: 2 * score, enable_gqa=True
        )


def test_flexible_attention_is_attention() -> None:
    q, k, v = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 16)
    found = count(Flexible(), q, k, v)
    assert found.macs == 4 * 6 * 9 * (8 + 16)
    assert not found.unknown


def test_flexible_attention_is_compiled_again_after_a_failure() -> None:
    with pytest.raises(ModelError):
        count(Flexible(), torch.randn(1, 4, 6, 8), torch.randn(1), torch.randn(1))
    assert flexible._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG is False


@torch.library.custom_op("onebyone_test::multiply_into", mutates_args=("out",))
def multiply_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    out.copy_(a @ b)


@torch.library.custom_op("onebyone_test::look", mutates_args=())
def look(a: Tensor) -> None:
    pass


class Into(nn.Module):
    """Its product is written by an operator that returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), 5)
        torch.ops.onebyone_test.multiply_into(x, self.weight, out)
        torch.ops.onebyone_test.look(x)
        return out


def test_operators_that_return_nothing() -> None:
    found = count(Into(), torch.ones(3, 4))
    names = "onebyone_test.multiply_into", "onebyone_test.look"
    assert found.unknown == names
    assert [found.uncounted[name] for name in names] == [15, 0]
    wrote = next(o for o in found.operations if o.name == names[0])
    assert (wrote.bytes_written, wrote.new_bytes) == (15 * 4, 0)


def test_operators_on_lists_in_place() -> None:
    def add(model: Inside, x: Tensor) -> Tensor:
        torch._foreach_add_([x, x[0]], 1.0)
        return x

    assert count(Inside(add), torch.ones(3, 4)).uncounted == {"aten._foreach_add_": 12 + 4}
