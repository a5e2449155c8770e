"""Operators that recur: what one returned on meta tensors, it returns again for the same shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

Parameter, STRIDED = torch.nn.Parameter, torch.strided
NUMBERS = frozenset(
    (
        int,
        float,
        bool,
        str,
        type(None),
        torch.dtype,
        torch.device,
        torch.layout,
        torch.memory_format,
    )
)
META = torch.device("meta")

no_functions_seen = torch._C.DisableTorchFunction
"""Inside, modes that watch functions (the default device is one) cost nothing, and see nothing."""


class Call(NamedTuple):
    """`key` is all that the result depends on; `storages` tell the memory of its tensors apart."""

    key: tuple[Any, ...]
    storages: list[int]


def signature(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Call | None:
    """What tells calls of an operator apart; None where its result may depend on something else.

    Taken are PyTorch's own operators that write new memory alone, on tensors without values. Of those
    the shape, the strides, the type and the size of the memory count, of everything else the value
    and its type, since 1, 1.0 and True are equal.
    """
    if not _recurs(func):
        return None
    key: list[Any] = [func, torch.get_default_dtype()]
    storages: list[int] = []
    if not _describe(args, key, storages):
        return None
    if kwargs:
        key += kwargs
        if not _describe(tuple(kwargs.values()), key, storages):
            return None
    return Call(tuple(key), storages)


@cache
def _recurs(func: Any) -> bool:
    """Whether the schema says that the results are new tensors and nothing else happens."""
    schema = getattr(func, "_schema", None)
    return (
        isinstance(func, torch._ops.OpOverload)
        and schema is not None
        and func.namespace == "aten"
        and not schema.is_mutable
        and len(schema.returns) > 0
        and all(r.alias_info is None and str(r.type) == "Tensor" for r in schema.returns)
    )


def _describe(values: Sequence[Any], key: list[Any], storages: list[int]) -> bool:
    """Add what the values are; False where one is no plain value or tensor without values."""
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            if not value.is_meta or value.layout is not STRIDED or value.is_complex():
                return False
            memory = value.untyped_storage()
            storages.append(memory._cdata)
            key += (value.shape, value.stride(), value.dtype, memory.nbytes())
        elif kind in NUMBERS:
            key += (kind, value)
        elif kind is list and value and type(value[0]) is int:  # schemas mix no types in lists
            key += (list, tuple(value))
        elif kind is list or kind is tuple:
            key += (kind, len(value))
            if not _describe(value, key, storages):
                return False
        else:
            return False
    return True


@dataclass(frozen=True)
class Recipe:
    """Shape, strides and type of each tensor that an operator returns; `alone`: one, in no tuple."""

    tensors: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]
    alone: bool

    def made(self) -> tuple[Any, list[Tensor]]:
        """What the operator returns, and the tensors in it."""
        found = [
            torch.empty_strided(shape, strides, dtype=dtype, device=META)
            for shape, strides, dtype in self.tensors
        ]
        return (found[0] if self.alone else tuple(found)), found


def recipe_of(result: Any, read: Sequence[int]) -> Recipe | None:
    """How to make the result again; None where it is not made of new tensors that fill their memory."""
    alone = type(result) is Tensor
    found = (result,) if alone else result
    if type(found) is not tuple or not all(type(t) is Tensor and t.is_meta for t in found):
        return None
    recipe = Recipe(tuple((tuple(t.shape), t.stride(), t.dtype) for t in found), alone)
    _, again = recipe.made()
    storages = [t.untyped_storage() for t in found]
    separate = {s._cdata for s in storages} - set(read)
    same = all(
        s.nbytes() == t.untyped_storage().nbytes() for s, t in zip(storages, again, strict=True)
    )
    return recipe if same and len(separate) == len(found) else None
