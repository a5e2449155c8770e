"""Functions that modules hold: those of a copy read the modules of the copy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property, partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

CONTAINERS = frozenset((list, tuple, set, dict, OrderedDict))
HOLDERS = CONTAINERS | {FunctionType, MethodType, partial}


class Functions:
    """The functions that the modules of a tree hold, for one copy of it made with this memo.

    `copy.deepcopy` takes a function as it is, with what it closes over: a lambda, a wrapped method or
    what torch.compile makes of one would run the original's modules in the copy. Each that is noted
    before the copying gets a twin in the memo, and `bind` gives the twins the copies afterwards.
    """

    def __init__(self, model: nn.Module, memo: dict[int, Any]) -> None:
        self._model = model
        self._memo = memo
        self._twins: list[tuple[FunctionType, FunctionType]] = []
        self._methods: list[tuple[MethodType, list[MethodType]]] = []
        self._seen: set[int] = set()

    @cached_property
    def _tree(self) -> set[int]:
        modules = list(self._model.modules())
        tensors = [
            t for m in modules for held in (m._parameters, m._buffers) for t in held.values()
        ]
        return {id(x) for x in (*modules, *tensors) if x is not None}

    def note_all(self, module: nn.Module) -> None:
        """All that the module and those inside it hold."""
        for inner in module.modules():
            for value in vars(inner).values():
                self.note(value)

    def note(self, value: Any) -> None:
        """What a module holds: a function, or what has some in it."""
        kind = type(value)
        if kind not in HOLDERS or id(value) in self._seen:
            return
        self._seen.add(id(value))
        for inner in _inside(value):
            self.note(inner)
        if kind is FunctionType and self._reaches(value, set()):
            twin = FunctionType(
                value.__code__, value.__globals__, value.__name__, value.__defaults__,
                tuple(CellType() for _ in value.__closure__ or ()),
            )  # fmt: skip
            self._twins.append((value, twin))
            self._memo[id(value)] = twin
        elif kind is MethodType and id(value.__func__) in self._memo:
            own: list[MethodType] = []  # what it is bound to is not there yet
            self._methods.append((value, own))
            self._memo[id(value)] = lambda *args, **kwargs: own[0](*args, **kwargs)

    def bind(self) -> None:
        """Let every twin close over the copies of what its function closes over."""
        for function, twin in self._twins:
            twin.__dict__.update({k: self._own(v) for k, v in function.__dict__.items()})
            twin.__qualname__, twin.__doc__ = function.__qualname__, function.__doc__
            twin.__defaults__ = self._own(function.__defaults__)
            twin.__kwdefaults__ = self._own(function.__kwdefaults__)
            for cell, own in zip(function.__closure__ or (), twin.__closure__ or (), strict=True):
                if not _empty(cell):
                    own.cell_contents = self._own(cell.cell_contents)
        for method, own in self._methods:
            own.append(MethodType(self._own(method.__func__), self._own(method.__self__)))

    def _reaches(self, value: Any, seen: set[int]) -> bool:
        """Whether it has a module or a tensor of the tree in it."""
        if id(value) in self._tree:
            return True
        if id(value) in seen:
            return False
        seen.add(id(value))
        return any(self._reaches(inner, seen) for inner in _inside(value))

    def _own(self, value: Any) -> Any:
        """What the copy has in its place."""
        if id(value) in self._memo:
            return self._memo[id(value)]
        if not self._reaches(value, set()):
            return value
        kind = type(value)
        if kind is MethodType:
            return MethodType(self._own(value.__func__), self._own(value.__self__))
        if kind is partial:
            given = {name: self._own(v) for name, v in value.keywords.items()}
            return partial(self._own(value.func), *map(self._own, value.args), **given)
        if kind is dict or kind is OrderedDict:
            return kind((k, self._own(v)) for k, v in value.items())
        return kind(map(self._own, value)) if kind in CONTAINERS else value


def _inside(value: Any) -> Iterator[Any]:
    """What a function closes over, a method is bound to, a container holds."""
    kind = type(value)
    if kind is FunctionType:
        yield from (cell.cell_contents for cell in value.__closure__ or () if not _empty(cell))
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
    elif kind is MethodType:
        yield from (value.__func__, value.__self__)
    elif kind is partial:
        yield from (value.func, *value.args, *value.keywords.values())
    elif kind is dict or kind is OrderedDict:
        yield from value.values()
    elif kind in CONTAINERS:
        yield from value


def _empty(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False
