"""Count one pass exactly: every operator that ran, its products, its bytes, and whose it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from onebyone.errors import ModelError
from onebyone.measurement.formulas import FORMULAS
from onebyone.measurement.owning import Owners, storage
from onebyone.measurement.rehearsing import Stage, rehearse
from onebyone.measurement.shapes import shortcut
from onebyone.tree import hooked

KNOWN = ("aten", "prim", "prims")  # operators of PyTorch itself


@dataclass(frozen=True)
class TensorInfo:
    """One tensor that an operator read or wrote; a broadcast one has the bytes of its storage."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Operation:
    """One operator that ran. `macs` is None where there is no formula; `view` moves no data.

    `layer` is the qualified name of the module that it is credited to: the owner of the weight that it
    reads, else the innermost module that was running. `new_bytes` counts what it wrote to memory of
    its own (in-place operators have none).
    """

    name: str
    layer: str
    reads: tuple[TensorInfo, ...]
    writes: tuple[TensorInfo, ...]
    macs: int | None
    view: bool
    new_bytes: int

    @property
    def bytes_read(self) -> int:
        """Bytes of its inputs, weights included; none for a view."""
        return 0 if self.view else sum(t.bytes for t in self.reads)

    @property
    def bytes_written(self) -> int:
        """Bytes of its outputs; none for a view."""
        return 0 if self.view else sum(t.bytes for t in self.writes)


@dataclass(frozen=True)
class LayerCount:
    """One module that owns operators or parameters; sums over its calls.

    `activation_bytes` is what its operators wrote to new memory. Tied parameters count for the first
    layer that owns them.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    calls: int
    params: int
    weight_bytes: int
    macs: int
    activation_bytes: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True)
class Count:
    """One forward pass, counted; 1 MAC = 2 FLOPs.

    MACs are those of convolutions and matrix products, padding positions included, bias, normalization
    and activations not. `layers` stand in the order of their first operator. `uncounted` names every
    operator without products with the elements that it wrote, `unknown` those of `uncounted` that are
    not PyTorch's own, so that they may hide products. `unused` are layers with parameters that did not
    run. `failure` says why the pass ended early: the count is partial then. `notes` are for people.
    """

    macs: int
    params: int
    weight_bytes: int
    activation_bytes: int
    layers: dict[str, LayerCount]
    operations: tuple[Operation, ...]
    uncounted: dict[str, int]
    unknown: tuple[str, ...]
    unused: tuple[str, ...]
    failure: str | None = None
    notes: tuple[str, ...] = ()


def count(model: nn.Module, *inputs: Any, partial: bool = False) -> Count:
    """Count one forward pass of the model on these inputs, in the mode that it is in.

    It runs on a copy without memory or arithmetic (PyTorch's meta device); where the network's control
    flow depends on data, or an operator cannot do that, on a copy with its values. The model is not
    touched. inputs: what its forward takes, tensors or nests of them. partial: return what ran before
    the network failed, with `failure` set, instead of raising ModelError.
    """

    def act(stage: Stage) -> Count:
        recorder = Recorder(stage.model)
        failure = None
        try:
            with watched(recorder), recorder:
                stage.run()
        except ModelError as error:
            if not (partial and stage.last and recorder.operations):
                raise
            failure = f"{error} (in {recorder.where()})"
        return _summed(stage.model, recorder, failure)

    found, note = rehearse(model, inputs, act)
    return found if note is None or found.failure else replace(found, notes=(note,))


@contextmanager
def watched(recorder: Recorder) -> Iterator[None]:
    """Tell the recorder which module runs, by hooks that no module keeps."""
    before = register_module_forward_pre_hook(recorder.enter)
    after = register_module_forward_hook(recorder.leave, always_call=True)
    with hooked([before, after]):
        yield


@dataclass
class _Calls:
    """What the hooks saw of one module."""

    number: int = 0
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None


class Recorder(TorchDispatchMode):
    """Notes every operator that runs inside, and the module that it belongs to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.owners = Owners(model)
        self.operations: list[Operation] = []
        self.calls: dict[str, _Calls] = {}
        self.running: list[str] = []
        self.last = ""

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module's forward begins."""
        name = self.owners.names.get(id(module))
        if name is None:
            return
        self.running.append(name)
        self.last = name
        if id(module) in self.owners.parts:
            return
        seen = self.calls.setdefault(name, _Calls())
        seen.number += 1
        if seen.input_shape is None:
            seen.input_shape = _first_shape(args)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """It ended, also by an exception (without an output then)."""
        name = self.owners.names.get(id(module))
        if name is None:
            return
        self.running.pop()
        seen = self.calls.get(name)
        if id(module) not in self.owners.parts and seen is not None and seen.output_shape is None:
            seen.output_shape = _first_shape(output)

    def where(self) -> str:
        """The module whose forward began last, for messages."""
        return f"layer {self.last!r}" if self.last else "the network's own forward"

    def layer_of(self, args: Any, kwargs: Any) -> str:
        """The layer of an operator with these arguments that runs now."""
        sources = [storage(t) for t in _arguments(args, kwargs)]
        return self.owners.of(sources, self.running[-1] if self.running else "")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = None if kwargs else shortcut(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        written = tensors(result)
        if written:
            self._note(func, args, kwargs, written)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, written: list[Tensor]) -> None:
        name, view = func._schema.name, func.is_view
        formula = FORMULAS.get(name)
        reads = [_seen(t) for t in _arguments(args, kwargs)]
        writes = [_seen(t) for t in written]
        sources = [key for key, _ in reads]
        fresh = [i for i, (key, _) in enumerate(writes) if key not in sources]
        layer = self.owners.of(sources, self.running[-1] if self.running else "")
        self.owners.derive(sources, [written[i] for i in fresh])
        self.operations.append(
            Operation(
                name.replace("::", "."),
                layer,
                tuple(info for _, info in reads),
                tuple(info for _, info in writes),
                None if formula is None else formula(args, written[0]),
                view,
                0 if view else sum(writes[i][1].bytes for i in fresh),
            )
        )


def tensors(value: Any) -> list[Tensor]:
    """The tensors of an operator's arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    if isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, Tensor):
                found.append(item)
            elif isinstance(item, list | tuple):
                found += tensors(item)
    return found


def _arguments(args: Any, kwargs: Any) -> list[Tensor]:
    return tensors(args) + (tensors(tuple(kwargs.values())) if kwargs else [])


def _seen(tensor: Tensor) -> tuple[int, TensorInfo]:
    """What tells its memory apart, as `storage` does, and what is recorded of it."""
    size = tensor.nbytes
    try:
        memory = tensor.untyped_storage()
        key, size = memory._cdata, min(size, memory.nbytes())
    except (NotImplementedError, RuntimeError):
        key = id(tensor)
    return key, TensorInfo(tuple(tensor.shape), _name(tensor.dtype), size)


@cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_shape(value: Any) -> tuple[int, ...] | None:
    first = value[0] if isinstance(value, tuple) and value else value
    if isinstance(first, Tensor):
        return tuple(first.shape)
    return next((tuple(t.shape) for t in tree_iter(value) if isinstance(t, Tensor)), None)


def _summed(model: nn.Module, recorder: Recorder, failure: str | None) -> Count:
    operations = tuple(recorder.operations)
    owned = _weights(model, recorder.owners)
    by_layer: dict[str, list[Operation]] = {}
    for operation in operations:
        by_layer.setdefault(operation.layer, []).append(operation)
    kinds = {name: kind for kind, name in _kinds(model, recorder.owners)}
    layers = {
        name: _layer(name, kinds.get(name, ""), recorder.calls.get(name, _Calls()), found,
                     owned.pop(name, (0, 0)))
        for name, found in by_layer.items()
    }  # fmt: skip
    unused = tuple(owned)
    for name, weights in owned.items():
        calls = recorder.calls.get(name, _Calls())
        layers[name] = _layer(name, kinds.get(name, ""), calls, [], weights)
    uncounted: dict[str, int] = {}
    for operation in operations:
        if operation.macs is None and not operation.view:
            elements = sum(prod(t.shape) for t in operation.writes)
            if not elements:
                continue
            uncounted[operation.name] = uncounted.get(operation.name, 0) + elements
    return Count(
        sum(o.macs or 0 for o in operations),
        sum(layer.params for layer in layers.values()),
        sum(layer.weight_bytes for layer in layers.values()),
        sum(o.new_bytes for o in operations),
        layers,
        operations,
        dict(sorted(uncounted.items(), key=lambda item: -item[1])),
        tuple(name for name in uncounted if name.split(".")[0] not in KNOWN),
        unused,
        failure,
    )


def _kinds(model: nn.Module, owners: Owners) -> Iterator[tuple[str, str]]:
    """Class names and qualified names, a parametrized layer's parts after the layer."""
    for module in reversed(list(model.modules())):
        yield type_before_parametrizations(module).__name__, owners.names[id(module)]


def _weights(model: nn.Module, owners: Owners) -> dict[str, tuple[int, int]]:
    """Parameters, and bytes of parameters and buffers, of each layer that has any; tied ones once."""
    found: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    for module in model.modules():
        name = owners.names[id(module)]
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            params, size = found.get(name, (0, 0))
            params += tensor.numel() if isinstance(tensor, nn.Parameter) else 0
            found[name] = (params, size + tensor.numel() * tensor.element_size())
    return found


def _layer(
    name: str, kind: str, calls: _Calls, operations: list[Operation], weights: tuple[int, int]
) -> LayerCount:
    moving = [o for o in operations if not o.view]
    weighted = sum(o.macs is not None for o in operations)
    return LayerCount(
        name, kind, calls.input_shape, calls.output_shape, calls.number or weighted, *weights,
        sum(o.macs or 0 for o in operations), sum(o.new_bytes for o in operations),
        sum(o.bytes_read for o in moving), sum(o.bytes_written for o in moving),
    )  # fmt: skip
