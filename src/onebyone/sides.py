"""What stands at each name of a network: a layer, or the layers that another network has as one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from onebyone.conv import ConvSpec
from onebyone.measurement.counting import Count, LayerCount
from onebyone.measurement.owning import PARAMETRIZATIONS
from onebyone.tree import modules_by_name, uncompiled


@dataclass(frozen=True)
class Layer:
    """One layer of one network: what was counted of it, and what it is.

    `geometry` is `64→128 3×3 /2` for convolutions and linear layers, else empty. `settings` is what
    the module says about itself, and `attributes` are its plain values, of which it may not say all
    (`align_corners`). `weight_shapes` and `dtypes` are of its parameters and buffers.
    """

    counted: LayerCount
    geometry: str
    settings: str
    weight_shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    tensors: tuple[Tensor, ...] = field(repr=False, compare=False)
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """What stands at one name of one network: a layer, or the layers of a group, in order."""

    name: str
    kind: str
    layers: tuple[Layer, ...]

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Of the first call of its first layer."""
        return self.layers[0].counted.input_shape

    @property
    def output_shape(self) -> tuple[int, ...] | None:
        """Of the first call of its last layer."""
        return self.layers[-1].counted.output_shape

    @property
    def calls(self) -> int:
        """How often it ran, its layers together."""
        return sum(layer.counted.calls for layer in self.layers)

    @property
    def params(self) -> int:
        """Parameters."""
        return sum(layer.counted.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply–accumulates of its operators."""
        return sum(layer.counted.macs for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return sum(layer.counted.weight_bytes for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes that its operators wrote to new memory."""
        return sum(layer.counted.activation_bytes for layer in self.layers)

    @property
    def weight_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of all its parameters and buffers."""
        return tuple(shape for layer in self.layers for shape in layer.weight_shapes)


def split(whole: Collection[str], parts: Collection[str]) -> dict[str, str]:
    """The layers of `parts` that stand under a name that is one layer of `whole`, each with that name.

    Not those of a module that holds the other network as a whole: `nn.Sequential(net)` has all layers
    of `net` under the name of its first.
    """
    leaves = set(whole)
    for name in whole:
        leaves -= set(_above(name))
    grouped = {above for name in parts for above in _above(name) if above in leaves}
    alike = len(set(parts) & set(whole)) + len(grouped)
    for above in list(grouped):
        inside = {n.removeprefix(f"{above}.") for n in parts if n.startswith(f"{above}.")}
        if len(inside & set(whole)) > alike:
            grouped.discard(above)
    return {name: above for name in parts for above in _above(name) if above in grouped}


def _above(name: str) -> list[str]:
    """The names of all modules around one: `a.b` and `a` and the root's of `a.b.c`."""
    steps = name.split(".")
    return [".".join(steps[:n]) for n in range(len(steps) - 1, -1, -1)] if name else []


def sides(model: nn.Module, counted: Count, groups: dict[str, str]) -> list[Side]:
    """The layers in the order in which they run, those of a group together."""
    model = uncompiled(model)  # as it was counted
    modules, tensors = modules_by_name(model), _tensors(model)
    found: dict[str, list[Layer]] = {}
    for name, layer in counted.layers.items():
        own = _layer(layer, modules[name], tensors.get(name, ()))
        found.setdefault(groups.get(name, name), []).append(own)
    return [
        Side(name, type_before_parametrizations(modules[name]).__name__, tuple(layers))
        for name, layers in found.items()
    ]


def _tensors(model: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    """Parameters and buffers of each module, those of parametrizations with what they make."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for name, module in modules_by_name(model).items():
        own = [
            t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None
        ]
        owner = PARAMETRIZATIONS.sub("", name)
        found[owner] = (*found.get(owner, ()), *own)
    return found


def _layer(counted: LayerCount, module: nn.Module, tensors: tuple[Tensor, ...]) -> Layer:
    try:
        settings = module.extra_repr()
    except Exception:  # a user's own, which may fail
        settings = ""
    geometry = ""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
        geometry = ConvSpec.of(module).text()
    return Layer(
        counted, geometry, settings, tuple(tuple(t.shape) for t in tensors),
        tuple(str(t.dtype).removeprefix("torch.") for t in tensors), tensors,
        () if geometry else _attributes(module),
    )  # fmt: skip


def _attributes(module: nn.Module) -> tuple[str, ...]:
    """The numbers, texts and tuples of them that a module holds: name=value."""
    return tuple(
        f"{name}={value!r}"
        for name, value in sorted(vars(module).items())
        if name != "training" and not name.startswith("_") and _is_plain(value)
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)
