"""Layers of classes of their own that compute what a plain layer does → plain layers, the same to the bit.

TensorFlow pads "same" by the size of the image, at the end more than at the start, and networks that came
from it (EfficientNet, MobileNet) bring convolution classes that pad in their own forward. Others compute
their weights anew at each pass: weight standardization (NFNet, BiT), weight and spectral normalization,
parametrizations, equalized learning rates. In inference those weights are constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from onebyone.conv import ConvSpec, layer_for, same_padding
from onebyone.errors import listed
from onebyone.running import call, placed_for
from onebyone.surveying import PLAIN, used_otherwise
from onebyone.tree import (
    evaluating,
    hooked,
    modules_by_name,
    random_numbers_kept,
    replace_modules,
    shallow_copy,
)
from onebyone.watching import Computed, watched

PADS = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}


@dataclass(frozen=True)
class Plain:
    """The network with plain layers in place of those that compute the same; itself where there are none.

    A layer `x` that pads alike on both sides is a plain layer of the same name; one that does not is
    `x.pad` and `x.conv`. Weights that a layer holds are shared with the network that it was made from;
    those that it computes are copies. `notes` say which are such, and where the padding was one that
    follows the size of the image.
    """

    model: nn.Module
    notes: tuple[str, ...] = ()


@random_numbers_kept()
def plain(model: nn.Module, image: Tensor) -> Plain:
    """See `Plain`; `image` is (1, C, H, W). The model comes back as it was.

    A layer is taken if its forward calls one convolution or linear operator, on its input or on its
    input padded, and returns what that gives; with weights and geometry that are the same to the bit
    each time it runs and for other data; and if no other code reads its attributes. What the plain layer
    gives is then compared, to the bit.
    """
    layers = {n: m for n, m in modules_by_name(model).items() if _may_be(m)}
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    if not layers:
        return Plain(model)
    image = placed_for(model, image)
    inputs = _inputs(model, layers, image)
    new: dict[str, nn.Module] = {}
    computed: dict[str, Computed] = {}
    for name, seen in inputs.items():
        layer, found = layers[name], _computed(layers[name], seen)
        if found is None or (not _held(layer, found) and _shared(layer, owners)):
            continue
        made = _made(layer, found)
        if _gives_the_same(made, layer, seen[0]):
            new[name], computed[name] = made, found
    if not new:
        return Plain(model)
    with evaluating(model):
        read = used_otherwise(model, list(new), image)
    new = {name: made for name, made in new.items() if name not in read}
    notes = _notes(
        {n: layers[n] for n in new}, {n: inputs[n][0] for n in new}, computed, image.shape[2:]
    )
    return Plain(replace_modules(shallow_copy(model), new), notes)


def _may_be(layer: nn.Module) -> bool:
    """Whether it is of a class of its own or makes its weight anew, with nothing else about it."""
    by_hook = isinstance(
        vars(layer).get("weight"), Tensor
    )  # how weight_norm was, before it was one
    known = type(layer) in PLAIN or type(layer).__module__.startswith("torch.nn.modules.")
    if (known and not by_hook) or isinstance(layer, torch.jit.ScriptModule):
        return False
    hooks = (layer._forward_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    inner = [
        m
        for m in layer.children()
        if not (isinstance(m, nn.ModuleDict) and is_parametrized(layer)) and not _only_holds(m)
    ]
    return (
        not any(hooks)
        and (by_hook or not layer._forward_pre_hooks)
        and "forward" not in vars(layer)
        and any(True for _ in layer.parameters())
        and not any(True for m in inner for _ in m.parameters())
    )


def _only_holds(module: nn.Module) -> bool:
    """Whether it is a place for tensors that does nothing, as those of an exported program are."""
    return all(type(m) is nn.Module for m in module.modules())


def _inputs(
    model: nn.Module, layers: dict[str, nn.Module], image: Tensor
) -> dict[str, list[Tensor]]:
    """What each layer is given on the way of one image; layers that are given anything else are out."""
    seen: dict[str, list[Tensor]] = {}
    odd: set[str] = set()

    def hook(name: str) -> Callable[..., None]:
        def take(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
                odd.add(name)
            else:
                seen.setdefault(name, []).append(args[0])

        return take

    handles = [
        m.register_forward_pre_hook(hook(n), with_kwargs=True) for n, m in layers.items()
    ]  # fmt: skip
    with evaluating(model), torch.no_grad(), hooked(handles):
        call(model, image.clone())
    return {name: tensors for name, tensors in seen.items() if name not in odd}


def _computed(layer: nn.Module, inputs: list[Tensor]) -> Computed | None:
    """The map, the same for all inputs, with the same weights for others; None where it is none."""
    first, *again = (watched(layer, x) for x in inputs)
    if first is None or any(f is None or f.geometry != first.geometry for f in again):
        return None
    if not _held(layer, first):
        again += [watched(layer, 1 - 3 * inputs[0]), watched(layer, _larger(inputs[0], 1))]
    return first if all(found is not None and first.like(found) for found in again) else None


def _held(layer: nn.Module, found: Computed) -> bool:
    """Whether the layer holds the weights as they are."""
    own = {id(p) for p in layer.parameters()}
    return all(t is None or id(t) in own for t in (found.weight, found.bias))


def _shared(layer: nn.Module, owners: Counter[int]) -> bool:
    """Whether another module holds a parameter that this one's weights may be computed from."""
    return any(owners[id(p)] > 1 for p in layer.parameters())


def _made(layer: nn.Module, found: Computed) -> nn.Module:
    """The plain layer with these weights, behind a padding of its own if that is lopsided."""
    geometry, weight = found.geometry, found.weight
    one, other = weight.shape[1] * geometry.groups, len(weight)
    c_in, c_out = (other, one) if geometry.transposed else (one, other)
    uneven = any(before != after for before, after in geometry.padding)
    padding = ((0, 0),) * len(geometry.padding) if uneven else geometry.padding
    if geometry.same:
        padding = same_padding(tuple(weight.shape[2:]), geometry.dilation)
    conv = ConvSpec(
        c_in, c_out, tuple(weight.shape[2:]), geometry.stride, padding, geometry.dilation,
        geometry.groups, geometry.mode, found.bias is not None, geometry.transposed,
        geometry.output_padding,
    )  # fmt: skip
    made = layer_for(conv, same=geometry.same, device="meta")
    made.weight = _parameter(layer, weight)  # type: ignore[assignment]
    made.bias = None if found.bias is None else _parameter(layer, found.bias)  # type: ignore[assignment]
    made.train(layer.training)
    if not uneven:
        return made
    block = nn.Sequential()
    block.add_module("pad", PADS[len(geometry.padding)](sum(geometry.padding[::-1], ())))
    block.add_module("conv", made)
    block.training = layer.training
    return block


def _gives_the_same(made: nn.Module, layer: nn.Module, x: Tensor) -> bool:
    with evaluating(made), evaluating(layer), torch.no_grad():
        one, other = made(x), layer(x)
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _parameter(layer: nn.Module, values: Tensor) -> nn.Parameter:
    """The layer's own parameter, or one with the values that it computed."""
    own = next((p for p in layer.parameters() if p is values), None)
    if own is not None:
        return own
    trains = any(p.requires_grad for p in layer.parameters())
    return nn.Parameter(values.detach().clone(), requires_grad=trains)


def _notes(
    layers: dict[str, nn.Module], inputs: dict[str, Tensor], found: dict[str, Computed],
    size: tuple[int, ...],
) -> tuple[str, ...]:  # fmt: skip
    """What there is to say of computed weights, and of padding that follows the size of its input."""
    notes = []
    made = [name for name, layer in layers.items() if not _held(layer, found[name])]
    if made:
        notes.append(
            f"the weights of layer {listed(made, 1)} are computed anew at each pass (by "
            f"{type(layers[made[0]]).__name__}): the lighter network holds them as they are in "
            "inference, and training it trains those"
        )
    follow = [
        name
        for name, layer in layers.items()
        if found[name].geometry.stride and _follows(layer, inputs[name], found[name])
    ]
    if follow:
        notes.append(
            f"the padding of layer {listed(follow, 1)} follows the size of the image: in the lighter "
            f"network it is that for {'×'.join(map(str, size))}; images of another size want slimming with "
            "such images"
        )
    return tuple(notes)


def _follows(layer: nn.Module, x: Tensor, found: Computed) -> bool:
    for by in (1, 2, 3):
        other = watched(layer, _larger(x, by))
        if other is None or other.geometry != found.geometry:
            return True
    return False


def _larger(x: Tensor, by: int) -> Tensor:
    return x.new_zeros((*x.shape[:2], *(n + by for n in x.shape[2:])))
