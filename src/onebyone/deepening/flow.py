"""One image through a network, watched: which module gives which feature map, and what reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from onebyone.running import call
from onebyone.tree import hooked, modules_by_name

CONV, NORM, ACTIVATION, SUM, POOL, CAT, OTHER = (
    "convolution", "normalization", "activation", "sum", "pooling", "concatenation", "operator",
)  # fmt: skip
# By the start of the operator's name; what fits none is OTHER.
KINDS = {
    CONV: ("convolution", "conv", "mkldnn_convolution", "cudnn_convolution"),
    NORM: ("native_batch_norm", "_native_batch_norm", "_batch_norm", "cudnn_batch_norm",
           "native_group_norm"),
    ACTIVATION: ("relu", "hardtanh", "clamp", "gelu", "silu", "hardswish", "leaky_relu", "elu",
                 "celu", "mish", "sigmoid", "hardsigmoid", "tanh", "_prelu", "softplus",
                 "threshold"),
    POOL: ("max_pool", "avg_pool", "_adaptive_avg_pool", "adaptive_max_pool"),
    CAT: ("cat",),
}  # fmt: skip
# After these the second axis may be another than the channels.
LAYOUT = ("permute", "transpose", "t", "view", "reshape", "_unsafe_view", "_reshape_alias", "unfold",
          "as_strided", "expand", "squeeze", "unsqueeze", "flip", "roll", "select")  # fmt: skip
SAME = ("alias", "detach", "clone", "_to_copy", "contiguous")
CHANNELS_SECOND = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.Upsample,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip


@dataclass
class Value:
    """One feature map (1, C, …) on its way: what made it, what read it, which modules returned it."""

    kind: str
    shape: tuple[int, ...]
    readers: list[int] = field(default_factory=list)
    others: int = 0
    modules: list[str] = field(default_factory=list)


@dataclass
class Call:
    """How a module was called; `odd` says why nothing may stand in its place, or None."""

    number: int = 0
    odd: str | None = None
    value: int | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Flow:
    """What was seen, values in the order in which they were made."""

    values: tuple[Value, ...]
    calls: dict[str, Call]
    output: object


def watch(model: nn.Module, image: Tensor) -> Flow:
    """Run one image (1, C, …) through an already borrowed model (eval mode, no gradients)."""
    watcher = _Watcher()
    names = {id(module): name for name, module in modules_by_name(model).items()}
    handles = [
        module.register_forward_hook(watcher.hook(names[id(module)]), with_kwargs=True)
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    with torch.no_grad(), hooked(handles), watcher:
        output = call(model, image)
    return Flow(tuple(watcher.values), watcher.calls, output)


class _Watcher(TorchDispatchMode):
    """Numbers feature maps as operators make them; a map that is changed in place is a new one."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.calls: dict[str, Call] = {}
        self.current: dict[int, int] = {}
        self.alive: dict[int, Tensor] = {}  # so that no id is given twice

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operator, and note what came of the maps that it read."""
        inputs = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        read = [(t, self.current[id(t)]) for t in inputs if id(t) in self.current]
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        outputs = [t for t in tree_iter(result) if isinstance(t, Tensor) and t.is_floating_point()]
        if (
            name.rstrip("_") in SAME
            and read
            and outputs[:1]
            and outputs[0].shape == read[0][0].shape
        ):
            self._name(outputs[0], read[0][1])
            return result
        made = [n for t in outputs if (n := self._made(name, t, inputs, read)) is not None]
        for _, number in read:
            self.values[number].readers += made
            self.values[number].others += not made
        return result

    def _made(
        self, name: str, output: Tensor, inputs: list[Tensor], read: list[tuple[Tensor, int]]
    ) -> int | None:
        """The number of an output that is a feature map, channels second."""
        kind = _kind(name, output, inputs)
        if not 3 <= output.ndim <= 5:
            return None
        alike = any(t.ndim == output.ndim for t, _ in read)
        if kind != CONV and not (alike and name.rstrip("_") not in LAYOUT):
            return None
        return self._new(output, kind)

    def _new(self, tensor: Tensor, kind: str) -> int:
        self.values.append(Value(kind, tuple(tensor.shape)))
        self._name(tensor, len(self.values) - 1)
        return len(self.values) - 1

    def _name(self, tensor: Tensor, number: int) -> None:
        self.current[id(tensor)] = number
        self.alive[id(tensor)] = tensor

    def hook(self, name: str) -> Any:
        """A forward hook that notes how the module was called and which map it returned."""

        def note(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            seen = self.calls.setdefault(name, Call())
            seen.number += 1
            if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
                seen.odd = "its input is not one tensor"
            if not isinstance(output, Tensor):
                seen.odd = f"its output is a {type(output).__name__}, no tensor"
                return
            seen.shape = tuple(output.shape)
            number = self.current.get(id(output))
            maps = isinstance(module, CHANNELS_SECOND) and 3 <= output.ndim <= 5
            if number is None and maps and output.is_floating_point():
                number = self._new(
                    output, NORM if "norm" in type(module).__name__.lower() else OTHER
                )
            if number is None:
                return
            value = self.values[number]
            if (
                value.kind == OTHER
                and not list(module.children())
                and _gate(module, args[0], output)
            ):
                value.kind = ACTIVATION  # of several operators, such as x·sigmoid(x)
            seen.value = number
            value.modules.append(name)

        return note


def _kind(name: str, output: Tensor, inputs: list[Tensor]) -> str:
    plain = name.rstrip("_")
    if plain in ("add", "sub"):
        full = [t for t in inputs if t.shape == output.shape]
        return SUM if len(full) > 1 else OTHER
    return next((k for k, names in KINDS.items() if plain.startswith(names)), OTHER)


def _gate(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a leaf without parameters maps one tensor to another of its shape."""
    return not list(module.parameters()) and x.shape == y.shape
