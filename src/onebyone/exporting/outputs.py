"""Outputs of classes of a network's own, as the lists and dicts that programs can return."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from onebyone.several import with_own
from onebyone.tree import evaluating, kept, random_state, tensors_in


def with_plain_outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, str]:
    """A network that returns dicts where this one returns named tuples, dataclasses or the like.

    And in words what it returns in place of what. Itself and "" where that is plain already, or where
    it fails or cannot be copied.
    """
    if isinstance(model, fx.GraphModule | torch.jit.ScriptModule) or "forward" in vars(model):
        return model, ""
    kind = type(model)

    def forward(self: nn.Module, *given: Any, **named: Any) -> Any:
        return as_plain(kind.forward(self, *given, **named))

    forward.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    try:
        with evaluating(model), random_state(0), kept(model), torch.no_grad():
            found = model(*(x.clone() for x in inputs))
        if is_plain(found):
            return model, ""
        said = f"{_described(as_plain(found))} where the network returns {type(found).__name__}"
        return with_own(model, forward=forward), said
    except Exception:  # what exports it will say so
        return model, ""


def left_out(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """A note on outputs that are no tensors, which files of other runtimes cannot hold."""
    with evaluating(model), random_state(0), kept(model), torch.no_grad():
        given = tree_leaves(as_plain(model(*(x.clone() for x in inputs))))
    others = [repr(value) for value in given if not isinstance(value, Tensor)]
    if not others or len(others) == len(given):
        return ()
    return (f"outputs that are no tensors are not in the file: {shorten(', '.join(others), 80)}",)


def is_plain(value: Any) -> bool:
    """Whether it is of tensors, numbers, tuples, lists and dicts alone."""
    if type(value) in (tuple, list):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(map(is_plain, value.values()))
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def as_plain(value: Any) -> Any:
    """Named tuples, dataclasses, mappings and other objects with tensors as dicts, without what is None."""
    if isinstance(value, Tensor):
        return value
    if type(value) in (tuple, list):
        return type(value)(map(as_plain, value))
    if isinstance(value, Mapping):
        fields = dict(value)
    elif hasattr(value, "_asdict"):
        fields = value._asdict()
    elif dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif isinstance(value, tuple | list):
        return list(map(as_plain, value))
    elif hasattr(value, "__dict__"):
        fields = {k: v for k, v in vars(value).items() if any(True for _ in tensors_in(v))}
    else:
        return value
    return {name: as_plain(part) for name, part in fields.items() if part is not None}


def _described(value: Any) -> str:
    return (
        f"a dict of {', '.join(map(str, value))}" if isinstance(value, dict) else "lists and dicts"
    )
