"""Shortcuts on meta tensors say what PyTorch says, or leave it to PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from onebyone.measurement.shapes import ACTIVATIONS, shortcut

aten = torch.ops.aten
Case = tuple[Any, tuple[Any, ...]]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


X = meta(2, 6, 4, 5)
LAST = X.to(memory_format=torch.channels_last)
DOUBLE = meta(2, 6, 4, 5, dtype=torch.float64)
C = meta(6)
NORMS = (0.1, 1e-5)
DEFAULTS = {"hardtanh": (-1.0, 1.0)}

TAKEN: dict[str, Case] = {
    **{
        f"{name}, {kind}": (getattr(aten, name).default, (x, *DEFAULTS.get(name, ())))
        for name in ACTIVATIONS
        for kind, x in {"usual": X, "channels-last": LAST, "double": DOUBLE, "vector": C}.items()
    },
    "sum": (aten.add.Tensor, (X, X)),
    "sum, channels-last": (aten.add.Tensor, (LAST, LAST)),
    "product with a number": (aten.mul.Tensor, (X, 2)),
    "quotient": (aten.div.Tensor, (DOUBLE, DOUBLE)),
    "difference": (aten.sub.Tensor, (X, X)),
    "normalization in training": (aten.native_batch_norm.default, (X, C, C, C, C, True, *NORMS)),
    "normalization, bare": (
        aten.native_batch_norm.default, (LAST, None, None, None, None, True, *NORMS)
    ),
    "matrix product": (aten.mm.default, (meta(3, 4), meta(4, 5))),
    "matrix product, turned": (aten.mm.default, (meta(3, 4), meta(5, 4).t())),
    "linear": (aten.addmm.default, (meta(5), meta(3, 4), meta(5, 4).t())),
}  # fmt: skip
LEFT: dict[str, Case] = {
    "with values": (aten.relu.default, (torch.ones(3),)),
    "half precision": (aten.relu.default, (X.bfloat16(),)),
    "integers": (aten.relu.default, (X.int(),)),
    "broadcast in memory": (aten.relu.default, (meta(1, 5).expand(4, 5),)),
    "written elsewhere": (aten.relu_.default, (X,)),
    "broadcast sum": (aten.add.Tensor, (X, meta(6, 1, 1))),
    "mixed types": (aten.add.Tensor, (X, DOUBLE)),
    "mixed layouts": (aten.add.Tensor, (X, LAST)),
    "a complex number": (aten.mul.Tensor, (X, 2j)),
    "rounded quotient": (aten.div.Tensor_mode, (X, X)),
    "too few channels": (aten.native_batch_norm.default, (X, meta(5), C, C, C, False, *NORMS)),
    "shapes that do not fit": (aten.mm.default, (meta(3, 4), meta(5, 4))),
    "types that do not fit": (aten.mm.default, (meta(3, 4), meta(4, 5, dtype=torch.float64))),
    "an addend that is a matrix": (aten.addmm.default, (meta(3, 5), meta(3, 4), meta(4, 5))),
}


def described(result: Any) -> list[tuple[Any, ...]]:
    found = result if isinstance(result, list | tuple) else [result]
    return [(t.shape, t.stride(), t.dtype, t.device) for t in found]


@pytest.mark.parametrize("name", TAKEN)
def test_shortcut_says_what_pytorch_says(name: str) -> None:
    operator, arguments = TAKEN[name]
    found = shortcut(operator, arguments)
    assert found is not None
    assert described(found) == described(operator(*arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("x", [X, LAST, meta(9, 6)], ids=["usual", "channels-last", "rows"])
def test_normalization_in_evaluation_keeps_no_statistics(x: Tensor, dtype: torch.dtype) -> None:
    on_cpu = [torch.ones_like(t, dtype=dtype, device="cpu") for t in (x, C, C, C, C)]
    without_values = [t.to("meta") for t in on_cpu]
    found = shortcut(aten.native_batch_norm.default, (*without_values, False, *NORMS))
    expected = aten.native_batch_norm.default(*on_cpu, False, *NORMS)
    assert [d[:3] for d in described(found)] == [d[:3] for d in described(expected)]


@pytest.mark.parametrize("name", LEFT)
def test_the_rest_is_left_to_pytorch(name: str) -> None:
    assert shortcut(*LEFT[name]) is None
