"""Convolutions of classes of their own that do no more than pad → plain layers, the same to the bit.

TensorFlow pads "same" by the size of the image, at the end more than at the start. Networks that came
from it (EfficientNet, MobileNet) bring convolution classes that pad in their own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from onebyone.conv import CONVOLUTIONS
from onebyone.running import call, suited
from onebyone.surveying import PLAIN, used_otherwise
from onebyone.tree import evaluating, hooked, modules_by_name, replace_modules, shallow_copy

PADS = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
CALLS = (F.conv1d, F.conv2d, F.conv3d)
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
ABSENT = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Plain:
    """The network with plain layers in place of those that only pad; itself where there are none.

    A layer `x` that pads alike on both sides is a plain convolution of the same name; one that does
    not is `x.pad` and `x.conv`. Weights are shared with the network that it was made from. `notes`
    say where the padding was one that follows the size of the image.
    """

    model: nn.Module
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Geometry:
    """How a layer calls its convolution, its own padding and that of the call added up."""

    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int
    same: bool


@dataclass(eq=False)
class _Watch(TorchFunctionMode):
    """Follows one layer's input to its convolution; `odd` once it does anything else with it."""

    layer: nn.Module
    inputs: Tensor
    pads: Pairs = ()
    made: Tensor | None = None
    result: Tensor | None = None
    geometry: _Geometry | None = None
    odd: bool = field(default=False)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.pad and args and args[0] is self.inputs and self.made is None:
            self.made, self.pads = result, _pads(*args[1:], **kwargs)
            self.odd |= not self.pads
        elif func in CALLS:
            self.odd |= self.result is not None
            self.result = result
            self.geometry = self._geometry(dict(zip(ARGUMENTS, args, strict=False)) | kwargs)
        return result

    def _geometry(self, given: dict[str, Any]) -> _Geometry | None:
        """None where it is not the layer's own weight on its own, perhaps padded, input."""
        given = ABSENT | given
        bias = self.layer._parameters.get("bias")
        fed = self.inputs if self.made is None else self.made
        if given["input"] is not fed or given["weight"] is not self.layer._parameters["weight"]:
            return None
        if given["bias"] is not bias:
            return None
        axes = self.inputs.ndim - 2
        same = given["padding"] == "same"
        added = 0 if isinstance(given["padding"], str) else given["padding"]
        own = self.pads or ((0, 0),) * axes
        padding = tuple((a + p, b + p) for (a, b), p in zip(own, _each(added, axes), strict=True))
        if same and any(map(any, own)):
            return None
        return _Geometry(
            _each(given["stride"], axes), padding, _each(given["dilation"], axes), given["groups"],
            same,
        )  # fmt: skip


def _pads(pad: Iterable[int], mode: str = "constant", value: float | None = None) -> Pairs:
    """Pairs from the first axis to the last; () for any padding that is not zeros around."""
    sizes = [int(n) for n in pad]
    if mode != "constant" or value or min(sizes) < 0:
        return ()
    return tuple(zip(sizes[::2], sizes[1::2], strict=True))[::-1]


def _each(value: Any, axes: int) -> tuple[int, ...]:
    found = (value,) if isinstance(value, int) else tuple(int(n) for n in value)
    return found * axes if len(found) == 1 else found


def plain(model: nn.Module, image: Tensor) -> Plain:
    """See `Plain`; `image` is (1, C, H, W). The model comes back as it was.

    A layer is taken if its class is one of its own, its forward calls one convolution, with its own
    weight and bias, on its input or on its input with zeros around it, and returns what that gives.
    Its padding must be the same each time it runs, and no other code may read its attributes.
    """
    layers = {n: m for n, m in modules_by_name(model).items() if _may_be(m)}
    if not layers:
        return Plain(model)
    image = suited(model, image)
    inputs = _inputs(model, layers, image)
    found = {name: _geometry_of(layers[name], seen) for name, seen in inputs.items()}
    names = [name for name, geometry in found.items() if geometry is not None]
    if not names:
        return Plain(model)
    with evaluating(model):
        read = used_otherwise(model, names, image)
    names = [name for name in names if name not in read]
    copy = shallow_copy(model)
    new = {n: _made(layers[n], found[n]) for n in names}  # type: ignore[arg-type]
    return Plain(replace_modules(copy, new), _notes(names, layers, inputs, found, image))


def _may_be(layer: nn.Module) -> bool:
    """Whether it is a convolution of a class of its own, with nothing else about it."""
    kinds = tuple(CONVOLUTIONS.values())
    if not isinstance(layer, kinds) or type(layer) in PLAIN:
        return False
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
        layer._backward_pre_hooks,
    )  # fmt: skip
    tensors = {name for name, _ in (*layer.named_parameters(), *layer.named_buffers())}
    return (
        tensors <= {"weight", "bias"}
        and layer._parameters.get("weight") is not None
        and layer.padding_mode == "zeros"
        and not any(hooks)
        and "forward" not in vars(layer)
        and not nn.utils.parametrize.is_parametrized(layer)
    )


def _inputs(
    model: nn.Module, layers: dict[str, nn.Module], image: Tensor
) -> dict[str, list[Tensor]]:
    """What each layer is given on the way of one image; layers that are given anything else are out."""
    seen: dict[str, list[Tensor]] = {}
    odd: set[str] = set()

    def hook(name: str) -> Callable[..., None]:
        def take(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            kernel: tuple[int, ...] = layer.kernel_size  # type: ignore[assignment]
            if kwargs or len(args) != 1 or args[0].ndim != len(kernel) + 2:
                odd.add(name)
            else:
                seen.setdefault(name, []).append(args[0])

        return take

    handles = [
        m.register_forward_pre_hook(hook(n), with_kwargs=True) for n, m in layers.items()
    ]  # fmt: skip
    with evaluating(model), torch.no_grad(), hooked(handles):
        call(model, image)
    return {name: tensors for name, tensors in seen.items() if name not in odd}


def _geometry_of(layer: nn.Module, inputs: list[Tensor]) -> _Geometry | None:
    """The geometry, the same for all inputs; None where it is no plain convolution."""
    found = {_watched(layer, x) for x in inputs}
    return found.pop() if len(found) == 1 else None


def _watched(layer: nn.Module, x: Tensor) -> _Geometry | None:
    watch = _Watch(layer, x)
    with evaluating(layer), torch.no_grad(), watch:
        try:
            result = layer(x)
        except Exception:
            return None
    return None if watch.odd or result is not watch.result else watch.geometry


def _made(layer: nn.Module, geometry: _Geometry) -> nn.Module:
    """The plain layer with the same parameters, behind a padding of its own if that is lopsided."""
    axes = len(geometry.stride)
    uneven = any(before != after for before, after in geometry.padding)
    padding: Any = tuple(0 if uneven else before for before, _ in geometry.padding)
    weight: nn.Parameter = layer.weight  # type: ignore[assignment]
    groups = geometry.groups
    conv = CONVOLUTIONS[axes](
        weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]), stride=geometry.stride,
        padding="same" if geometry.same else padding, dilation=geometry.dilation, groups=groups,
        bias=layer.bias is not None, device="meta",
    )  # fmt: skip
    conv.weight, conv.bias = weight, layer.bias  # type: ignore[assignment]
    conv.train(layer.training)
    if not uneven:
        return conv
    block = nn.Sequential()
    block.add_module("pad", PADS[axes](sum(geometry.padding[::-1], ())))
    block.add_module("conv", conv)
    block.training = layer.training
    return block


def _notes(
    names: list[str], layers: dict[str, nn.Module], inputs: dict[str, list[Tensor]],
    found: dict[str, _Geometry | None], image: Tensor,
) -> tuple[str, ...]:  # fmt: skip
    """What there is to say of layers whose padding follows the size of their input."""
    follow = [
        name
        for name in names
        if any(
            _watched(layers[name], _larger(inputs[name][0], by)) != found[name] for by in (1, 2, 3)
        )
    ]
    if not follow:
        return ()
    size = "×".join(map(str, image.shape[2:]))
    many = f" and {len(follow) - 1} others" if len(follow) > 1 else ""
    return (
        f"the padding of {follow[0]}{many} follows the size of the image: in the lighter network it "
        f"is that for {size}; images of another size want slimming with such images",
    )


def _larger(x: Tensor, by: int) -> Tensor:
    return x.new_zeros((*x.shape[:2], *(n + by for n in x.shape[2:])))
