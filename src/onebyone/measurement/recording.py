"""Watch one pass: every operator that runs, what it reads and writes, and whose it is."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._pytree import tree_iter

from onebyone.measurement.formulas import COMPLEX, FORMULAS
from onebyone.measurement.modes import Mode, operator_name, overwritten, together, within
from onebyone.measurement.owning import (
    Owners,
    jagged,
    memory_of,
    packed,
    shape_of,
    storage,
    tensors,
)
from onebyone.measurement.recalling import Recipe, no_functions_seen, recipe_of, signature
from onebyone.measurement.shapes import shortcut
from onebyone.tree import hooked

LOOKUPS = ("aten::embedding", "aten::index_select", "aten::gather", "aten::index")
BAGS = ("aten::_embedding_bag", "aten::_embedding_bag_forward_only")
ALLOCATIONS = (
    "aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::resize_",
    "aten::resize_as_",
)  # fmt: skip
KNOWN = ("aten", "prim", "prims")  # operators of PyTorch itself


@dataclass(frozen=True)
class TensorInfo:
    """One tensor that an operator read or wrote; a broadcast one has the bytes of its storage."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Facts:
    """What there is to say of an operator whatever layer it runs in; calls that are alike share it.

    `macs` is None where there is no formula; a `view` moves no data, so that its bytes read and written
    are 0. `new_bytes` counts what it wrote to memory of its own, and what memory that was there has
    grown by (other in-place operators have none).
    """

    name: str
    reads: tuple[TensorInfo, ...]
    writes: tuple[TensorInfo, ...]
    macs: int | None
    view: bool
    new_bytes: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator that ran.

    `layer` is the qualified name of the module that it is credited to: the owner of the weight that it
    reads, else the innermost module that was running.
    """

    layer: str
    facts: Facts

    @property
    def name(self) -> str:
        """Its namespace and name: `aten.relu`."""
        return self.facts.name

    @property
    def reads(self) -> tuple[TensorInfo, ...]:
        """Its inputs, weights included."""
        return self.facts.reads

    @property
    def writes(self) -> tuple[TensorInfo, ...]:
        """Its outputs."""
        return self.facts.writes

    @property
    def macs(self) -> int | None:
        """None where there is no formula."""
        return self.facts.macs

    @property
    def view(self) -> bool:
        """Whether it moves no data."""
        return self.facts.view

    @property
    def new_bytes(self) -> int:
        """What it wrote to memory of its own."""
        return self.facts.new_bytes

    @property
    def bytes_read(self) -> int:
        """Bytes of its inputs, weights included; none for a view."""
        return self.facts.bytes_read

    @property
    def bytes_written(self) -> int:
        """Bytes of its outputs; none for a view."""
        return self.facts.bytes_written


@contextmanager
def watched(recorder: Recorder) -> Iterator[None]:
    """Tell the recorder which module runs, by hooks that no module keeps."""
    before = register_module_forward_pre_hook(recorder.enter)
    after = register_module_forward_hook(recorder.leave, always_call=True)
    with hooked([before, after]):
        yield


@dataclass
class Calls:
    """What the hooks saw of one module."""

    number: int = 0
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None


class Recorder(Mode):
    """Notes every operator that runs inside, and the module that it belongs to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.owners = Owners(model)
        self.operations: list[Operation] = []
        self.calls: dict[str, Calls] = {}
        self.running: list[
            tuple[str, Calls | None]
        ] = []  # names, with what is known of their calls
        self.known: dict[tuple[Any, ...], tuple[Facts, Recipe]] = {}
        # The number of an error, which is not held itself: its traceback holds tensors.
        self.failed: tuple[int, str] = 0, ""
        self.thread = get_ident()
        self.unseen: dict[str, None] = {}  # layers that ran in threads of their own

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module's forward begins."""
        name = self.owners.names.get(id(module))
        if get_ident() != self.thread:  # where operators do not come to this mode
            if name is not None:
                self.unseen[name] = None
            return
        self.failed = 0, ""  # whatever failed before was caught
        if name is None:  # not one of the network's: what it does is its caller's
            self.running.append((self._runs(), None))
            return
        if id(module) in self.owners.parts:
            self.running.append((name, None))
            return
        seen = self.calls.get(name)
        if seen is None:
            seen = self.calls[name] = Calls()
        seen.number += 1
        if seen.input_shape is None:
            seen.input_shape = _first_shape(args)
        self.running.append((name, seen))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """It ended, also by an exception (without an output then)."""
        if get_ident() != self.thread:
            return
        error = sys.exc_info()[1]
        if error is not None and id(error) != self.failed[0]:  # the innermost hears of it first
            self.failed = id(error), self._runs()
        _, seen = self.running.pop()
        if seen is not None and seen.output_shape is None:
            seen.output_shape = _first_shape(output)

    def _runs(self) -> str:
        """The innermost of the network's modules that are running."""
        return self.running[-1][0] if self.running else ""

    def where(self) -> str:
        """The innermost module whose forward failed, for messages."""
        name = self.failed[1]
        return f"layer {name!r}" if name else "the network's own forward"

    def layer_of(self, args: Any, kwargs: Any) -> str:
        """The layer of an operator with these arguments that runs now."""
        sources = [storage(t) for t in _arguments(args, kwargs)]
        return self.owners.of(sources, self._runs())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(jagged, types)):
            return NotImplemented
        with no_functions_seen():
            call = signature(func, args, kwargs)
            known = None if call is None else self.known.get(call.key)
            if call is not None and known is not None:
                facts, recipe = known
                result, written = recipe.made()
                self._credit(facts, call.storages, written)
                return result
            targets = overwritten(func, args, kwargs)
            before = _sizes(targets)
        run = within(func)
        if run is not None:
            return run(self, func, args, kwargs)
        plain = isinstance(func, torch._ops.OpOverload)
        result = shortcut(func, args) if plain and not kwargs else None
        if result is None:
            result = func(*args, **(kwargs or {}))
        with no_functions_seen():
            written = together(result, targets)
            if written or (foreign(operator_name(func)) and _arguments(args, kwargs)):
                facts = self._note(func, args, kwargs, written, before)
                recipe = None if call is None else recipe_of(result, call.storages)
                if call is not None and recipe is not None:
                    self.known[call.key] = facts, recipe
        return result

    def _note(
        self, func: Any, args: Any, kwargs: Any, written: list[Tensor], before: dict[int, int]
    ) -> Facts:
        name = operator_name(func)
        view = getattr(func, "is_view", False) or name == "aten::_unsafe_view"
        formula = FORMULAS.get(name)
        macs = formula(args, written[0]) if formula and written else None
        if macs is not None and written[0].is_complex():
            macs *= COMPLEX
        inputs = _arguments(args, kwargs)
        reads = [_seen(t) for t in (*inputs, *(packed(args) if formula else ()))]
        writes = [_seen(t) for t in written]
        sizes = _sizes(written)
        grown = sum(max(0, sizes.get(key, size) - size) for key, size in before.items())
        if grown:
            reads = [(k, replace(r, bytes=min(r.bytes, before.get(k, r.bytes)))) for k, r in reads]
        if name in LOOKUPS:  # they read what they give, not all that they could
            key, table = reads[0]
            reads[0] = key, replace(table, bytes=min(table.bytes, writes[0][1].bytes))
        elif name in BAGS:  # one row for each index
            key, table = reads[0]
            rows = args[1].numel() * prod(table.shape[1:]) * args[0].element_size()
            reads[0] = key, replace(table, bytes=min(table.bytes, rows))
        sources = [key for key, _ in reads]
        fresh = [i for i, (key, _) in enumerate(writes) if key not in sources]
        moves = not view and name not in ALLOCATIONS
        facts = Facts(
            name.replace("::", "."),
            tuple(info for _, info in reads),
            tuple(info for _, info in writes),
            macs,
            not moves,
            0 if view else sum(writes[i][1].bytes for i in fresh) + grown,
            sum(info.bytes for _, info in reads) if moves else 0,
            sum(info.bytes for _, info in writes) if moves else 0,
        )
        self._credit(facts, sources, [written[i] for i in fresh])
        return facts

    def _credit(self, facts: Facts, sources: Sequence[int], fresh: Sequence[Tensor]) -> None:
        """Note an operator that read these storages and wrote these new tensors, for its layer."""
        running = self._runs()
        layer = self.owners.of(sources, running)
        if not facts.view:
            self.owners.note(sources, running)
        self.owners.derive(sources, fresh)
        self.operations.append(Operation(layer, facts))


def foreign(name: str) -> bool:
    """Whether an operator of this name (`aten::relu`, `aten.relu`) is not PyTorch's own."""
    return re.split(r"\W", name, maxsplit=1)[0] not in KNOWN


def _sizes(written: Sequence[Tensor]) -> dict[int, int]:
    """Bytes of each piece of memory that these tensors lie in."""
    return {storage(t): memory_of(t)[1] for t in written}


def _arguments(args: Any, kwargs: Any) -> list[Tensor]:
    return tensors(args) + (tensors(tuple(kwargs.values())) if kwargs else [])


def _seen(tensor: Tensor) -> tuple[int, TensorInfo]:
    """What tells its memory apart, as `storage` does, and what is recorded of it."""
    shape = shape_of(tensor)
    size = tensor.numel() * tensor.element_size()
    try:
        memory = tensor.untyped_storage()
        key, size = memory._cdata, min(size, memory.nbytes())
    except (NotImplementedError, RuntimeError):
        key = id(tensor)
    return key, TensorInfo(shape, _name(tensor.dtype), size)


@cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_shape(value: Any) -> tuple[int, ...] | None:
    first = value[0] if isinstance(value, tuple) and value else value
    if isinstance(first, Tensor):
        with no_functions_seen():
            return _shape(first)
    return next((_shape(t) for t in tree_iter(value) if isinstance(t, Tensor)), None)


def _shape(tensor: Any) -> tuple[int, ...]:
    """The shape; of a nested tensor that of its rows, all of them together."""
    return shape_of(tensor._values if jagged(type(tensor)) else tensor)
