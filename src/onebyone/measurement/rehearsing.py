"""Run a network without leaving a trace: on a copy without memory, or else on a copy with its values."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._pytree import tree_iter, tree_map

from onebyone.closures import Functions
from onebyone.errors import ModelError, line_of
from onebyone.running import call, wants_gradients
from onebyone.tree import (
    check_shapes,
    deep_copy,
    guarded,
    held_tensors,
    kept,
    random_numbers_kept,
    uncollected,
    uncompiled,
)

Found = TypeVar("Found")
SHARED = frozenset(
    (int, float, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
)  # values that a copy may share
UNCOMPILED = (
    "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"  # PyTorch's switch: compiled it shows no operators
)
META = torch.device("meta")
CONTAINERS = frozenset((dict, OrderedDict, set, list, tuple))


@dataclass(frozen=True)
class Stage:
    """A network to be run, and what with; `last`: there is no other way to run it.

    `place` is where its code has to run: there the tensors that it makes are of the kind of its weights.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    last: bool
    place: Callable[[], AbstractContextManager[Any]] = nullcontext

    def run(self) -> Any:
        """What the network returns; ModelError where it fails."""
        with self.place():
            return call(self.model, *self.inputs)


def rehearse(
    model: nn.Module, inputs: tuple[Any, ...], act: Callable[[Stage], Found]
) -> tuple[Found, str | None]:
    """What `act` returns, first tried on meta tensors; and how it had to run otherwise, if it had.

    The model is left as it is; gradients are off unless the network takes some in its own forward. So is
    the attention's fast path, which hides its operators. Raises ModelError where the network cannot run.
    """
    model = uncompiled(model)
    check_shapes(model)
    if any(isinstance(t, Tensor) and t.is_nested for t in tree_iter(inputs)):
        raise ModelError(
            "nested tensors cannot be given to a network that is to be counted: pad them"
        )
    with guarded(model):
        try:
            with _plain_mode(gradients=False):
                return _rehearsed(model, inputs, act)
        except Exception as error:
            if not wants_gradients(error):
                raise
        with _plain_mode(gradients=True):
            found, why = _rehearsed(model, inputs, act)
        said = "gradients were kept, since the network takes some in its own forward"
        return found, said if why is None else f"{said}; {why}"


def unkept(error: Exception) -> bool:
    """Whether the network failed here because no gradients are kept, and is to be run with them."""
    return not torch.is_grad_enabled() and wants_gradients(error)


def _rehearsed(
    model: nn.Module, inputs: tuple[Any, ...], act: Callable[[Stage], Found]
) -> tuple[Found, str | None]:
    held = list(held_tensors(model))
    given = (*held, *(t for t in tree_iter(inputs) if isinstance(t, Tensor)))
    shapes_only = any(t.is_meta for t in given)
    if not shapes_only and any(isinstance(m, nn.RNNBase) for m in model.modules()):
        why = "recurrent layers run other operators on shapes alone"
    else:
        try:
            place = partial(_WithoutValues, shapes_only)
            with random_numbers_kept(), uncollected():
                # Not kept here, so that the copy is gone before garbage is collected again.
                return act(
                    Stage(on_meta(model, held), tree_map(_meta, inputs), shapes_only, place)
                ), None
        except Exception as error:
            if shapes_only or unkept(error):
                raise
            cause = error.__cause__ or error
            why = f"it could not run on shapes alone ({type(cause).__name__}: {line_of(cause)})"
    with _with_values(model) as own:
        # What has run on shapes alone so far may lie on another device than the weights.
        weight = next(held_tensors(own), None)
        inputs = inputs if weight is None else tree_map(partial(_beside, weight.device), inputs)
        return act(Stage(own, inputs, last=True)), f"it ran on the weights' values, since {why}"


class _WithoutValues(DeviceContext):
    """What is made inside is on the meta device, by whatever function.

    Autocast leaves tensors without values as they are, and cannot be seen inside operators any more:
    ModelError where it is on, unless there is no other way to run the network (`last`).
    """

    def __init__(self, last: bool) -> None:
        super().__init__(META)
        self.last = last

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.last and (_AUTOCAST("cpu") or _AUTOCAST("cuda")):
            raise ModelError("autocast chooses the types of tensors that have values")
        if func in _device_constructors() and (kwargs is None or kwargs.get("device") is None):
            kwargs = {**(kwargs or {}), "device": self.device}
        return func(*args, **(kwargs or {}))


_AUTOCAST = torch.is_autocast_enabled


@contextmanager
def _plain_mode(gradients: bool) -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    flexible = sys.modules.get("torch.nn.attention.flex_attention")
    compiles = getattr(flexible, UNCOMPILED, None)
    if compiles is not None:
        setattr(flexible, UNCOMPILED, True)
    try:
        # torch.cond and its like compile what they run, and may be the first to ask for the compiler.
        with (
            torch.compiler.set_stance("force_eager"),
            torch.inference_mode(False),
            torch.set_grad_enabled(gradients),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if compiles is not None:
            setattr(flexible, UNCOMPILED, compiles)


@contextmanager
def _with_values(model: nn.Module) -> Iterator[nn.Module]:
    """A copy; or the model itself, given back as it was, where none can be made."""
    with random_numbers_kept():
        try:
            own = deep_copy(model)
        except ModelError:
            own = None
        if own is not None:
            yield own
            return
        with kept(model):
            yield model


def _meta(value: Any) -> Any:
    """A tensor's shape, layout and type without its values."""
    kind = type(value)
    if kind is nn.Parameter:
        return nn.Parameter(torch.empty_like(value, device=META), value.requires_grad)
    if kind is Tensor:
        return torch.empty_like(value, device=META)
    if isinstance(value, Tensor):
        raise ModelError(f"a {kind.__name__} has no form without values")
    return value


def _beside(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def on_meta(model: nn.Module, held: Iterable[Tensor]) -> nn.Module:
    """A copy of the module tree whose tensors have no values; what `copy.deepcopy` does, and faster.

    held: the parameters and buffers of the tree.
    """
    memo: dict[int, Any] = {}
    for tensor in held:
        if id(tensor) not in memo:
            memo[id(tensor)] = _meta(tensor)
    functions = Functions(model, memo)
    copied = _copied(model, memo, functions)
    functions.bind()
    return copied


def _copied(module: nn.Module, memo: dict[int, Any], functions: Functions) -> nn.Module:
    if id(module) in memo:
        return memo[id(module)]
    kind = type(module)
    if hasattr(kind, "__deepcopy__") or kind.__getstate__ is not nn.Module.__getstate__:
        functions.note_all(module)
        return copy.deepcopy(module, memo)
    new = kind.__new__(kind)
    memo[id(module)] = new
    own = new.__dict__
    own.update(vars(module))
    own.pop("_compiled_call_impl", None)  # what Module.compile leaves runs the original
    for key, value in vars(module).items():
        how = type(value)
        if how in SHARED:
            continue
        if how in CONTAINERS and not value:
            own[key] = how()
        elif key == "_modules":
            own[key] = {
                k: m if m is None else _copied(m, memo, functions) for k, m in value.items()
            }
        elif key == "_parameters" or key == "_buffers":
            own[key] = {k: t if t is None else memo[id(t)] for k, t in value.items()}
        elif isinstance(value, Tensor):
            own[key] = (
                memo[id(value)] if id(value) in memo else memo.setdefault(id(value), _meta(value))
            )
        elif how is not tuple or not all(type(v) in SHARED for v in value):
            functions.note(value)
            own[key] = copy.deepcopy(value, memo)
    return new
