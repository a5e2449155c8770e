"""What common operators return on meta tensors, without PyTorch's reference code.

On meta tensors PyTorch finds the shapes of activations and normalizations in Python, up to a hundred
times slower than it computes the values of a small layer. The few functions here say the same for the
plain cases; every other case is left to PyTorch, which raises where shapes do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Shortcut = Callable[[Sequence[Any]], Any]  # positional arguments → what it returns, or None

PLAIN = (torch.float32, torch.float64)
FLOATING = (*PLAIN, torch.float16, torch.bfloat16)


def shortcut(func: Any, args: Sequence[Any]) -> Any:
    """What the operator returns for these arguments; None where PyTorch has to be asked."""
    found = SHORTCUTS.get(func._schema.name)
    if found is None or func._overloadname not in ("default", "Tensor"):
        return None
    return found(args)


def _usual(x: Any, types: tuple[torch.dtype, ...] = PLAIN) -> bool:
    """Whether it is a plain tensor of these types without values that lies in memory without gaps."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.is_meta
        and x.dtype in types
        and (x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)))
    )  # fmt: skip


def _like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _activation(args: Sequence[Any]) -> Tensor | None:
    return _like(args[0]) if _usual(args[0]) else None


def _arithmetic(args: Sequence[Any]) -> Tensor | None:
    x, other = args[0], args[1]
    if not _usual(x):
        return None
    if isinstance(other, Tensor):
        same = other.is_meta and other.dtype is x.dtype and other.shape == x.shape
        return _like(x) if same and other.stride() == x.stride() else None
    return _like(x) if isinstance(other, int | float) else None


def _batch_norm(args: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor] | None:
    """x, weight, bias, mean, variance, training → y and the statistics of training.

    Those are empty in evaluation, as on a CPU; on meta tensors PyTorch would give them the channels.
    """
    x, training = args[0], args[5]
    types = PLAIN if training else FLOATING
    if not _usual(x, types) or x.ndim < 2:
        return None
    channels = x.shape[1]
    for own in args[1:5]:
        if own is not None and not (
            _usual(own, types) and own.dtype is x.dtype and own.shape == (channels,)
        ):
            return None
    kept = channels if training else 0
    return _like(x), x.new_empty(kept), x.new_empty(kept)


def _matrix_product(args: Sequence[Any]) -> Tensor | None:
    """a · b, after an addend or not."""
    *addend, a, b = args
    if not (_usual(a) and b.is_meta and a.dtype is b.dtype and a.ndim == b.ndim == 2):
        return None
    if a.shape[1] != b.shape[0]:
        return None
    for bias in addend:
        if not bias.is_meta or bias.dtype is not a.dtype or bias.shape != (b.shape[1],):
            return None
    return a.new_empty(a.shape[0], b.shape[1])


ACTIVATIONS = (
    "relu", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "elu",
    "leaky_relu", "mish", "softplus",
)  # fmt: skip
SHORTCUTS: dict[str, Shortcut] = {
    **{f"aten::{name}": _activation for name in ACTIVATIONS},
    **{f"aten::{name}": _arithmetic for name in ("add", "sub", "mul", "div")},
    "aten::native_batch_norm": _batch_norm,
    "aten::mm": _matrix_product,
    "aten::addmm": _matrix_product,
}
"""Operator name → what it returns in plain cases; overloads that write elsewhere are not among them."""
