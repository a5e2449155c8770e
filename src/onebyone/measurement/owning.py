"""Which module an operator belongs to: by the weight that it reads, else by the module that runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import ModelError
from onebyone.tree import modules_by_name

PARAMETRIZATIONS = re.compile(r"\.?\bparametrizations\..*")

PACKERS = re.compile(r"(^|\.)(_packed_params|_all_weight_values\.\d+)$")


def storage(tensor: Tensor) -> int:
    """What tells memory apart; tensors without a storage of their own stand for themselves."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def jagged(kind: type) -> bool:
    """Whether these are nested tensors of layout torch.jagged, whose code works on plain ones."""
    return kind.__name__ == "NestedTensor" and kind.__module__.startswith("torch.nested.")


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Its shape; ModelError for nested tensors of layout torch.strided, which have none."""
    if tensor.is_nested:
        raise ModelError(
            "nested tensors of layout torch.strided cannot be counted (attention between nested tensors "
            "makes such on a CPU): let the network pad them, or choose layout=torch.jagged elsewhere"
        )
    return tuple(tensor.shape)


def memory_of(tensor: Tensor) -> tuple[Any, int]:
    """What holds its memory, and the bytes of that; the tensor itself where it has no storage."""
    try:
        held = tensor.untyped_storage()
        return held, held.nbytes()
    except (NotImplementedError, RuntimeError):  # sparse, quantized
        return tensor, tensor.numel() * tensor.element_size()


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


def packages(module: nn.Module) -> list[Any]:
    """The objects of a module itself in which weights may be packed away."""
    return [value for value in vars(module).values() if type(value) is torch.ScriptObject]


def packer(name: str) -> str:
    """The layer of a module that does nothing but hold packed weights, else the module's own name."""
    return PACKERS.sub("", name)


def packed(value: Any) -> list[Tensor]:
    """The weights and biases, once each, in the objects that int8 layers keep them in.

    value: such an object, or what holds some. Empty where one does not say what is in it.
    """
    if isinstance(value, list | tuple):
        return [t for item in value for t in packed(item)]
    if not isinstance(value, torch.ScriptObject):
        return []
    package: Any = value
    if package._has_method("unpack"):
        return tensors((package.unpack(),))
    if not package._has_method("__getstate__"):
        return []
    found = packed(
        inner := _flat(package.__getstate__())
    )  # recurrent layers: their matrices, each with its bias
    return found or tensors(inner)


def _flat(state: Any) -> list[Any]:
    """What is in a nest of tuples and lists."""
    if not isinstance(state, list | tuple):
        return [state]
    return [item for inner in state for item in _flat(inner)]


class Owners:
    """The names of a network's modules, and whose each weight is.

    `names` has the qualified name of every one of `modules` by its id; the parts of a parametrized
    layer go by the layer's own name, and `parts` has their ids.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = modules_by_name(model)
        self.modules = list(modules.values())
        self.names = {id(m): name for name, m in modules.items()}
        self.parts: set[int] = set()
        for name, module in modules.items():
            if "parametrizations" in name:
                self.names[id(module)] = own = PARAMETRIZATIONS.sub("", name)
                self.parts |= {id(module)} if own != name else set()
        self.read: set[str] = set()  # layers whose weights were read
        self.weights: dict[int, list[str]] = {}
        self.kept: list[Tensor] = []  # a storage that was freed could be taken for another
        for module in modules.values():
            name = self.names[id(module)]
            for weight in (*module._parameters.values(), *module._buffers.values()):
                if weight is not None:
                    self._own(weight, name)

    def _own(self, weight: Tensor, name: str) -> None:
        owners = self.weights.setdefault(storage(weight), [])
        if name not in owners:
            owners.append(name)
        self.kept.append(weight)

    def of(self, read: Sequence[int], running: str) -> str:
        """The layer of an operator that reads these storages while that module runs.

        Where the running module owns none of the weights read, it is the first that does: so a child
        that is called past its hooks is credited, and a weight that the code of another module reads.
        """
        found = ""
        for key in read:
            owners = self.weights.get(key)
            if owners:
                if running in owners:
                    return running
                found = found or owners[0]
        return found or running

    def note(self, read: Sequence[int], running: str) -> None:
        """The weights in these storages were read: the running module's, or their first owner's."""
        for key in read:
            owners = self.weights.get(key)
            if owners:
                self.read.add(running if running in owners else owners[0])

    def derive(self, read: Sequence[int], written: Sequence[Tensor]) -> None:
        """Tensors computed from weights of one layer alone are weights of that layer too."""
        if not read:
            return
        shared = self.weights.get(read[0])
        if not shared:
            return
        for key in read[1:]:
            shared = [name for name in shared if name in self.weights.get(key, [])]
        for tensor in written if shared else ():
            self._own(tensor, shared[0])
