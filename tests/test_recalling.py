"""Operators that recur on meta tensors are looked up: the same results, and the same count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.measurement import recording
from onebyone.measurement.counting import Count, count
from onebyone.measurement.memory import measure_memory
from onebyone.measurement.recalling import recipe_of, signature

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


X, W = meta(2, 6, 4, 5), meta(8, 6, 3, 3)
RECURRING: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "convolution": (
        aten.convolution.default, (X, W, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    ),
    "normalization": (
        aten.native_batch_norm.default, (X, *[meta(6)] * 4, False, 0.1, 1e-5)
    ),
    "sum of unlike shapes": (aten.add.Tensor, (X, meta(6, 1, 1))),
    "joined": (aten.cat.default, ([X, X], 1)),
    "channels-last": (aten.relu.default, (X.to(memory_format=torch.channels_last),)),
    "whole numbers times a real one": (aten.mul.Tensor, (meta(3, dtype=torch.int64), 1.0)),
    "pooled with places": (aten.max_pool2d_with_indices.default, (X, [2, 2])),
}  # fmt: skip
LEFT: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "a view": (aten.view.default, (X, [2, -1])),
    "in place": (aten.relu_.default, (X,)),
    "values": (aten.relu.default, (torch.ones(3),)),
    "complex numbers": (aten.mul.Tensor, (meta(3, dtype=torch.complex64), 2)),
    "several lists": (aten.split.Tensor, (X, 1)),
}


def described(result: Any) -> list[tuple[Any, ...]]:
    found = result if isinstance(result, list | tuple) else [result]
    return [(t.shape, t.stride(), t.dtype, t.device, t.untyped_storage().nbytes()) for t in found]


@pytest.mark.parametrize("name", RECURRING)
def test_what_recurs_is_what_pytorch_returns(name: str) -> None:
    operator, arguments = RECURRING[name]
    call = signature(operator, arguments, None)
    assert call is not None
    assert call == signature(operator, arguments, {})
    result = operator(*arguments)
    recipe = recipe_of(result, call.storages)
    assert recipe is not None
    again, tensors = recipe.made()
    assert described(again) == described(result)
    assert described(tensors) == described(result)
    assert isinstance(again, tuple) == isinstance(result, tuple)


@pytest.mark.parametrize("name", LEFT)
def test_the_rest_is_asked_each_time(name: str) -> None:
    assert signature(*LEFT[name], None) is None


def test_a_result_that_lies_in_its_input_is_not_made_again() -> None:
    assert recipe_of(X, [X.untyped_storage()._cdata]) is None
    assert recipe_of(meta(4, 4)[1:], []) is None


def test_equal_arguments_of_unlike_types_are_told_apart() -> None:
    x = meta(3, dtype=torch.int64)
    calls = [signature(aten.mul.Tensor, (x, value), None) for value in (1, 1.0, True)]
    keys = {call.key for call in calls if call}
    wide = signature(aten.relu.default, (meta(4, 6),), None)
    turned = signature(aten.relu.default, (meta(6, 4).t(),), None)
    assert len(keys) == 3
    assert wide
    assert turned
    assert wide.key != turned.key


class Mixed(nn.Module):
    """Recurring layers, a weight that is standardized, types that depend on a number's."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            x = torch.relu(self.norm(conv(x)))
            x = x + nn.functional.conv2d(x, conv.weight - conv.weight.mean(), padding=1)
        whole = torch.arange(4)
        return x * (whole * 1).sum() + (whole * 1.0).sum() + torch.relu_(x).flatten(1).sum()


def counted() -> Count:
    torch.manual_seed(0)
    return count(Mixed(), torch.randn(2, 4, 5, 5))


def test_looking_up_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted()
    monkeypatch.setattr(recording, "signature", lambda func, args, kwargs: None)
    assert found == counted()
    assert found.macs == 2 * 6 * 2 * 25 * 4 * 4 * 9
    assert {layer.macs for n, layer in found.layers.items() if "convs." in n} == {2 * 2 * 25 * 144}


def test_layers_that_recur_are_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    described = 0
    note = recording.Recorder._note

    def noting(self: recording.Recorder, *given: Any) -> Any:
        nonlocal described
        described += 1
        return note(self, *given)

    monkeypatch.setattr(recording.Recorder, "_note", noting)
    layers = [layer for _ in range(50) for layer in (nn.Conv2d(4, 4, 1), nn.ReLU())]
    found = count(nn.Sequential(*layers), torch.randn(1, 4, 3, 3))
    assert len(found.operations) == 100
    assert described == 2


class Autocast(nn.Module):
    """A function, and no module, inside autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return nn.functional.conv2d(x, self.weight)


def test_a_function_under_autocast_is_counted_in_its_type() -> None:
    found = count(Autocast(), torch.randn(1, 3, 5, 5))
    weighted = [o for o in found.operations if o.macs]
    assert [o.writes[0].dtype for o in weighted] == ["bfloat16"]
    assert weighted[0].bytes_written == 2 * 4 * 9
    assert found.notes
    assert "autocast" in found.notes[0]


def test_memory_of_a_function_under_autocast() -> None:
    """Weights and input, both once more in half precision, and the output in it."""
    peak = measure_memory(Autocast(), torch.randn(1, 3, 5, 5), training=False).inference
    assert peak.bytes == (4 + 2) * (108 + 75) + 2 * 36
