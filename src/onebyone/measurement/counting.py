"""Count one pass exactly: its products and bytes, layer by layer, and what could not be counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from onebyone.errors import ModelError, listed
from onebyone.measurement.owning import Owners, packages, packed, packer
from onebyone.measurement.recording import Calls, Operation, Recorder, foreign, watched
from onebyone.measurement.rehearsing import Stage, rehearse, unkept

CLOSED = "weights that are packed away in objects or frozen scripts are not among the parameters"


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
    run, and whose weights no other code read. `failure` says why the pass ended early: the count is
    partial then. `notes` are for people.
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
            if unkept(error) or not (partial and stage.last and recorder.operations):
                raise
            failure = f"{error} (in {recorder.where()})"
        return _summed(recorder, failure)

    found, note = rehearse(model, inputs, act)
    notes = () if note is None or found.failure else (note,)
    return replace(found, notes=(*notes, *found.notes))


def _summed(recorder: Recorder, failure: str | None) -> Count:
    operations = tuple(recorder.operations)
    owned, closed = _weights(recorder.owners)
    by_layer: dict[str, list[Operation]] = {}
    for operation in operations:
        by_layer.setdefault(operation.layer, []).append(operation)
    kinds = _kinds(recorder.owners)
    layers = {
        name: _layer(name, kinds.get(name, ""), recorder.calls.get(name, Calls()), found,
                     owned.pop(name, (0, 0)))
        for name, found in by_layer.items()
    }  # fmt: skip
    unused = tuple(
        name
        for name, (params, _) in owned.items()
        if params and name not in {*recorder.calls, *recorder.unseen, *recorder.owners.read}
    )
    for name, weights in owned.items():
        calls = recorder.calls.get(name, Calls())
        layers[name] = _layer(name, kinds.get(name, ""), calls, [], weights)
    uncounted = _uncounted(operations)
    return Count(
        sum(o.macs or 0 for o in operations),
        sum(layer.params for layer in layers.values()),
        sum(layer.weight_bytes for layer in layers.values()),
        sum(o.new_bytes for o in operations),
        layers,
        operations,
        dict(sorted(uncounted.items(), key=lambda item: -item[1])),
        tuple(name for name in uncounted if foreign(name)),
        unused,
        failure,
        (*([CLOSED] if closed else []), *_unseen(recorder)),
    )


def _unseen(recorder: Recorder) -> list[str]:
    """What is not in the count, said."""
    if not recorder.unseen:
        return []
    names = listed([name or "the network itself" for name in recorder.unseen])
    return [f"what runs in threads that the forward starts is not counted: {names}"]


def _uncounted(operations: tuple[Operation, ...]) -> dict[str, int]:
    """Elements written by operators without products, by operator; any that is not PyTorch's own."""
    alike = {id(o.facts): o.facts for o in operations}
    found: dict[str, int] = {}
    for key, times in Counter(id(o.facts) for o in operations).items():
        facts = alike[key]
        elements = times * sum(prod(t.shape) for t in facts.writes)
        if facts.macs is None and not facts.view and (elements or foreign(facts.name)):
            found[facts.name] = found.get(facts.name, 0) + elements
    return found


def _kinds(owners: Owners) -> dict[str, str]:
    """Class names by qualified name; a parametrized layer's, not those of its parts."""
    return {
        owners.names[id(module)]: _kind(module).__name__
        for module in owners.modules
        if id(module) not in owners.parts
    }


def _kind(module: nn.Module) -> type:
    own = type(module)
    return type_before_parametrizations(module) if "parametrizations" in module._modules else own


def _weights(owners: Owners) -> tuple[dict[str, tuple[int, int]], bool]:
    """Parameters, and bytes of parameters and buffers, of each layer that has any; tied ones once.

    What an int8 layer has packed away counts as its parameters; and whether some could not be seen.
    """
    closed = False
    found: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()

    def add(name: str, number: int, size: int) -> None:
        before = found.get(name, (0, 0))
        found[name] = before[0] + number, before[1] + size

    for module in owners.modules:
        name = owners.names[id(module)]
        closed |= isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "training")
        params, size, any_new = 0, 0, False
        for held, learned in ((module._parameters, True), (module._buffers, False)):
            for tensor in held.values():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    number, any_new = tensor.numel(), True
                    params += learned * number
                    size += number * tensor.element_size()
        if any_new:
            add(name, params, size)
        for package in packages(module):
            inside = packed(package)
            closed |= not inside
            for tensor in inside:
                add(packer(name), tensor.numel(), tensor.numel() * tensor.element_size())
    return found, closed


def _layer(
    name: str, kind: str, calls: Calls, operations: list[Operation], weights: tuple[int, int]
) -> LayerCount:
    weighted = macs = new = read = written = 0
    for operation in operations:
        facts = operation.facts
        weighted += facts.macs is not None
        macs += facts.macs or 0
        new += facts.new_bytes
        read += facts.bytes_read
        written += facts.bytes_written
    return LayerCount(
        name, kind, calls.input_shape, calls.output_shape, calls.number or weighted, *weights,
        macs, new, read, written,
    )  # fmt: skip
