"""Modes that see every operator, also in the functions that operators run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from onebyone.measurement.formulas import FORMULAS
from onebyone.measurement.owning import tensors

DENSE = (
    torch._C.DispatchKey.CompositeExplicitAutograd
)  # how an operator that takes functions runs them
PARTS = (
    torch._C.DispatchKey.CompositeImplicitAutograd
)  # how an operator runs that is made of others


class Mode(TorchDispatchMode):
    """A mode that sees operators that take functions too, and that the compiler leaves alone.

    Nothing is compiled inside, so that PyTorch need not keep its compiler from each of its calls.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def within(func: Any) -> Callable[[TorchDispatchMode, Any, Any, Any], Any] | None:
    """How an operator that runs others is run, so that a mode sees those; None for any other."""
    if opens(func):
        return opened
    return taken_apart if composite(func) else None


def opens(func: Any) -> bool:
    """Whether it is an operator that runs functions, such as torch.cond, and has no products of its own."""
    return (
        isinstance(func, torch._ops.HigherOrderOperator)
        and DENSE in func.py_kernels
        and operator_name(func) not in FORMULAS
    )


@cache
def composite(func: Any) -> bool:
    """Whether it is an operator made of others, such as conv2d, that has no products of its own.

    Autograd takes such apart before a mode sees them; inside torch.inference_mode and torch.cond nothing
    does.
    """
    return (
        isinstance(func, torch._ops.OpOverload)
        and operator_name(func) not in FORMULAS
        and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), PARTS)
    )


def taken_apart(mode: TorchDispatchMode, func: Any, args: Any, kwargs: Any) -> Any:
    """What such an operator returns; the mode sees the operators that it is made of."""
    with mode:
        return func.decompose(*args, **(kwargs or {}))


def opened(mode: TorchDispatchMode, func: Any, args: Any, kwargs: Any) -> Any:
    """What such an operator returns; the mode sees the operators of the functions that it runs."""

    def seen(value: Any) -> Any:
        if not callable(value) or isinstance(value, Tensor):
            return value

        def run(*given: Any, **named: Any) -> Any:
            with mode:
                return value(*given, **named)

        return run

    return func.py_kernels[DENSE](
        *map(seen, args), **{name: seen(value) for name, value in (kwargs or {}).items()}
    )


def operator_name(func: Any) -> str:
    """`aten::conv2d`; operators that take functions have a name and no schema."""
    schema = getattr(func, "_schema", None)
    return f"higher_order::{func.name()}" if schema is None else schema.name


def overwritten(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors among an operator's arguments that it writes into, by its schema."""
    given = kwargs or {}
    return [
        tensor
        for place, name in _written_into(func)
        for tensor in tensors(args[place] if place < len(args) else given.get(name))
    ]


@cache
def _written_into(func: Any) -> tuple[tuple[int, str], ...]:
    """Place and name of each such argument."""
    schema = getattr(func, "_schema", None)
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(() if schema is None else schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def together(result: Any, targets: list[Tensor]) -> list[Tensor]:
    """All tensors that an operator wrote, once each: those that it returns, then its arguments."""
    returned = tensors(result)
    return returned + [t for t in targets if all(t is not other for other in returned)]
