"""Memory: the tensors that are alive while a network runs, and when they are most."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from onebyone.measurement.modes import Mode, operator_name, overwritten, together, within
from onebyone.measurement.owning import (
    Owners,
    jagged,
    memory_of,
    packages,
    packed,
    packer,
    shape_of,
    storage,
    tensors,
)
from onebyone.measurement.preparing import backward, total
from onebyone.measurement.recording import Recorder, watched
from onebyone.measurement.rehearsing import Stage, rehearse
from onebyone.tree import hooked, modules_by_name, to_evaluation, to_training


@dataclass(frozen=True)
class Alive:
    """One piece of memory. `role` is weight, buffer, input, activation or gradient.

    `layer` and `operator` say where it was written (for weights and buffers, whose it is); `shape` is
    that of the first tensor on it.
    """

    role: str
    layer: str
    operator: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Peak:
    """The moment at which most memory is taken, right after `operator` of `layer` ran.

    `bytes` counts everything in `alive`, the largest first: weights, buffers and inputs too.
    """

    bytes: int
    layer: str
    operator: str
    alive: tuple[Alive, ...]

    def of(self, role: str) -> int:
        """Bytes of one role alone."""
        return sum(a.bytes for a in self.alive if a.role == role)


@dataclass(frozen=True)
class Memory:
    """Peaks of one inference pass and of one training step (None where it was not asked for).

    Counted are the tensors that live at the same time, each piece of memory once; what an operator
    takes for itself while it runs is not seen, nor is the state of an optimizer. Attention is taken in
    its plain form, with the matrix of products in memory. `note` says why the pass had to run on
    values, if it had.
    """

    weight_bytes: int
    inference: Peak
    training: Peak | None
    note: str | None = None


def measure_memory(model: nn.Module, *inputs: Any, training: bool = True) -> Memory:
    """The live-tensor peaks of the model on these inputs; nothing is computed, where that is possible.

    The training step is forward in training mode, the sum of all floating outputs, backward to every
    parameter that asks for a gradient, gradients kept. The model is not touched. Raises ModelError
    where the network fails, or has no gradient to send back.
    """
    inference, note = rehearse(model, inputs, _inference)
    step = rehearse(model, inputs, _training)[0] if training else None
    weights = sum(inference.of(role) for role in ("weight", "buffer"))
    return Memory(weights, inference, step, note)


def held_before(model: nn.Module, layers: Sequence[str], *inputs: Any) -> dict[str, int]:
    """Bytes that live when each of these layers begins, but for weights and the network's own inputs.

    The most over the calls of a layer, in one inference pass; a layer that does not run is left out.
    layers: qualified names. Raises ModelError where the network fails.
    """

    def act(stage: Stage) -> dict[str, int]:
        to_evaluation(stage.model)
        tracker, found = Tracker(stage), dict[str, int]()
        given, modules = tracker.now, modules_by_name(stage.model)

        def note(name: str, _: nn.Module, __: Any) -> None:
            found[name] = max(found.get(name, 0), tracker.now - given)

        hooks = [modules[n].register_forward_pre_hook(partial(note, n)) for n in layers]
        with hooked(hooks), watched(tracker.recorder), tracker:
            stage.run()
        return found

    return rehearse(model, inputs, act)[0]


def _inference(stage: Stage) -> Peak:
    to_evaluation(stage.model)
    tracker = Tracker(stage)
    with watched(tracker.recorder), tracker:
        _ = stage.run()
    return tracker.peak()


def _training(stage: Stage) -> Peak:
    to_training(stage.model)
    for parameter in stage.model.parameters():
        parameter.grad = None
    tracker = Tracker(stage)
    with stage.place(), torch.enable_grad(), watched(tracker.recorder), tracker:
        loss = total(stage.run())
        tracker.role = "gradient"
        backward(loss)
    return tracker.peak()


@dataclass
class _Piece:
    """One piece of memory with the events between which it lived."""

    alive: Alive
    born: int
    died: int | None = None
    watch: weakref.ref | None = None


class Tracker(Mode):
    """Follows every piece of memory from the operator that wrote it until nothing holds it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.recorder = Recorder(stage.model)
        self.pieces: list[_Piece] = []
        self.held: dict[int, _Piece] = {}
        self.events: list[tuple[str, str]] = [("", "the start")]
        self.now = self.most = 0
        self.at = 0
        self.role = "activation"
        self.given = list(_given(stage, self.recorder.owners))  # what was packed lives no longer
        for role, layer, tensor in self.given:
            self._follow(tensor, role, layer, "")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(jagged, types)):
            return NotImplemented
        run = within(func)
        if run is not None:
            return run(self, func, args, kwargs)
        result = func(*args, **(kwargs or {}))
        written = together(result, overwritten(func, args, kwargs))
        if not written:
            return result
        name = operator_name(func).replace("::", ".")
        layer = self.recorder.layer_of(args, kwargs)
        if not layer and self.role == "gradient":
            layer = self._source(args)
        self.events.append((layer, name))
        for tensor in written:
            self._follow(tensor, self.role, layer, name)
        return result

    def _source(self, args: Any) -> str:
        """In the backward pass no module runs: the layer whose activation the operator reads."""
        for tensor in tensors(args):
            piece = self.held.get(storage(tensor))
            if piece is not None and piece.alive.role == "activation":
                return piece.alive.layer
        return ""

    def _follow(self, tensor: Tensor, role: str, layer: str, operator: str) -> None:
        key = storage(tensor)
        held, size = memory_of(tensor)
        shape, dtype = shape_of(tensor), str(tensor.dtype).removeprefix("torch.")
        alive = Alive(role, layer, operator, shape, dtype, size)
        known = self.held.get(key)
        if known is not None:
            if known.alive.bytes == size:
                return
            # It was resized: another piece of memory takes the place of the one that was there.
            alive = replace(known.alive, shape=shape, bytes=size)
            known.watch, known.died = None, len(self.events) - 2
            self.now -= known.alive.bytes
        piece = _Piece(alive, len(self.events) - 1)
        self.pieces.append(piece)
        self.held[key] = piece
        piece.watch = weakref.ref(held, lambda _: self._forget(key, piece))
        self.now += size
        if self.now > self.most:
            self.most, self.at = self.now, len(self.events) - 1

    def _forget(self, key: int, piece: _Piece) -> None:
        del self.held[key]
        piece.died = len(self.events) - 1
        self.now -= piece.alive.bytes

    def peak(self) -> Peak:
        """The moment of most memory, with what was alive then."""
        layer, operator = self.events[self.at]
        alive = [
            p.alive
            for p in self.pieces
            if p.born <= self.at and (p.died is None or p.died >= self.at)
        ]
        alive.sort(key=lambda a: -a.bytes)
        return Peak(self.most, layer, operator, tuple(alive))


def _given(stage: Stage, owners: Owners) -> Iterator[tuple[str, str, Tensor]]:
    """What is there before anything runs."""
    for module in stage.model.modules():
        name = owners.names[id(module)]
        for role, held in (("weight", module._parameters), ("buffer", module._buffers)):
            for tensor in held.values():
                if tensor is not None:
                    yield role, name, tensor
        for package in packages(module):
            for tensor in packed(package):
                yield "weight", packer(name), tensor
    for value in tree_iter(stage.inputs):
        if isinstance(value, Tensor):
            yield "input", "", value
