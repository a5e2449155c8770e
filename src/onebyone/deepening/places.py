"""Where a network can take an insertion, and why not elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from onebyone.conv import GEOMETRY
from onebyone.deepening.flow import (
    ACTIVATION,
    CAT,
    CONV,
    NORM,
    OTHER,
    POOL,
    SUM,
    Flow,
    Value,
    watch,
)  # fmt: skip
from onebyone.deepening.insertions import Activation
from onebyone.running import suited
from onebyone.several import takes_packed
from onebyone.surveying import PLAIN, used_otherwise
from onebyone.tree import modules_by_name

LEAST_CHANNELS = 2
BLOCKS, HALVES = "blocks", "halves"


@dataclass(frozen=True)
class Place:
    """A module behind which something can be inserted, with one image's output (channels, *size).

    `where` is `blocks` for a feature map that a block can read, `halves` for the thin middle of a
    factorized layer; `kind` is what made the map (`flow`); `activation` is the one that the map
    comes from, where it is known; `refusal` is why the place takes nothing.
    """

    module: str
    where: str
    channels: int = 0
    size: tuple[int, ...] = ()
    activation: Activation | None = None
    kind: str = ""
    refusal: str | None = None

    @property
    def positions(self) -> int:
        """Pixels of one image."""
        return prod(self.size)


def find_places(model: nn.Module, image: Tensor) -> tuple[Place, ...]:
    """Every place, in the order that data reaches them, the refused ones with their reasons.

    model: already borrowed (eval mode); image: (1, C, …). A block goes behind the last module of a
    chain of convolution, normalization and activation; where such a chain ends in a sum, behind the
    sum's activation, or else behind the module that returns the sum. Between the halves of a
    factorized layer, whose map is thin and not yet activated, there is room for a PReLU alone.
    Raises ModelError where the network fails on the image.
    """
    image = suited(model, image)
    flow = watch(model, image)
    modules = modules_by_name(model)
    halves = _halves(flow, modules)
    thin = {place.module for _, place in halves}
    found = [(n, p) for n, p in _blocks(flow, modules) if p.module not in thin] + halves
    names = [p.module for _, p in found if p.refusal is None and p.module]
    read = used_otherwise(model, names, image, spared=GEOMETRY)
    if takes_packed(model):
        read = {
            **read,
            "": "the network takes several inputs, and a chain around it would take one",
        }
    order = sorted(found, key=lambda item: item[0])
    return tuple(_refused(p, read.get(p.module)) for _, p in order) + _scripted(modules)


def _refused(place: Place, reason: str | None) -> Place:
    if reason is None or place.refusal is not None:
        return place
    return replace(place, refusal=reason)


def _scripted(modules: dict[str, nn.Module]) -> tuple[Place, ...]:
    """TorchScript's outermost modules: nothing in them can be replaced."""
    names = [n for n, m in modules.items() if isinstance(m, torch.jit.ScriptModule)]
    tops = [n for n in names if n.rpartition(".")[0] not in names or not n]
    return tuple(
        Place(n, BLOCKS, refusal="it is compiled by TorchScript: its parts cannot be replaced")
        for n in tops
    )


def _blocks(flow: Flow, modules: dict[str, nn.Module]) -> list[tuple[int, Place]]:
    """For every feature map the module that returns it, unless a better one follows."""
    values = flow.values
    leads: dict[int, bool] = {}
    found: list[tuple[int, Place]] = []
    for number in range(len(values) - 1, -1, -1):
        value = values[number]
        behind = [leads[w] and values[w].kind in (NORM, ACTIVATION, SUM) for w in value.readers]
        superseded = _superseded(value, values, leads, any(behind))
        place = None if superseded else _place(value, flow, modules)
        leads[number] = any(behind) or (place is not None and place.refusal is None)
        if place is not None:
            found.append((number, place))
    called = {n for v in values for n in v.modules}
    for name, seen in flow.calls.items():
        leaf = not list(modules[name].children())
        if leaf and name not in called and seen.odd and "output" in seen.odd:
            found.append((len(values), Place(name, BLOCKS, refusal=seen.odd)))
    return found


def _superseded(
    value: Value, values: tuple[Value, ...], leads: dict[int, bool], behind: bool
) -> bool:
    """Whether a place further on is better for the same thing."""
    if value.kind == OTHER or not value.modules:
        return True
    if value.kind in (CONV, NORM):
        return behind
    if (
        value.kind == SUM
    ):  # its only reader is an activation: behind that, unless others read it too
        activated = [values[w].kind == ACTIVATION and leads[w] for w in value.readers]
        return bool(activated) and all(activated) and not value.others
    # Pooled or concatenated maps that a sum or an activation goes on with, and activated ones: no.
    return value.kind not in (ACTIVATION, POOL, CAT)


def _place(value: Value, flow: Flow, modules: dict[str, nn.Module]) -> Place | None:
    """The innermost module that returns the map and can be wrapped; else the first one's refusal."""
    refused: Place | None = None
    for index, name in enumerate(value.modules):
        module = modules[name]
        channels, size = value.shape[1], value.shape[2:]
        reason = _reason(name, module, flow) or _too_small(channels, size)
        activation = _activation([modules[n] for n in value.modules[: index + 1]])
        place = Place(name, BLOCKS, channels, size, activation, value.kind, reason)
        if reason is None:
            return place
        refused = refused or place
    return refused


def _activation(through: list[nn.Module]) -> Activation | None:
    """The activation that a map comes from, where only modules that pass it on stand behind.

    Dropout passes it on in eval mode alone.
    """
    if any(isinstance(m, nn.modules.dropout._DropoutNd) for m in through):
        return None
    return next((a for m in through if (a := Activation.of(m)) is not None), None)


def _reason(name: str, module: nn.Module, flow: Flow) -> str | None:
    seen = flow.calls[name]
    if seen.number != 1:
        return f"it runs {seen.number} times in one pass, on other inputs each time"
    if seen.odd is not None:
        return seen.odd
    if nn.utils.parametrize.is_parametrized(module):
        return "its weight is parametrized: it is computed anew from other tensors at each pass"
    return None


def _too_small(channels: int, size: tuple[int, ...]) -> str | None:
    if prod(size) == 1:
        return "its output is one pixel: a k×k convolution would see nothing but padding around it"
    if channels < LEAST_CHANNELS:
        return f"its output has {channels} channel"
    return None


def _halves(flow: Flow, modules: dict[str, nn.Module]) -> list[tuple[int, Place]]:
    """Between two convolutions or linear layers that stand in a row in a Sequential."""
    found: list[tuple[int, Place]] = []
    for name, module in modules.items():
        if type(module) is not nn.Sequential:
            continue
        for (key, part), (_, behind) in pairwise(module.named_children()):
            inner = f"{name}.{key}" if name else key
            seen = flow.calls.get(inner)
            if type(part) not in PLAIN or type(behind) not in PLAIN or seen is None:
                continue
            if seen.shape is None or len(seen.shape) < 2:
                continue
            reason = _reason(inner, part, flow)
            if isinstance(part, nn.Linear) and len(seen.shape) != 2:
                reason = "its output has its channels last: PReLU takes them second"
            order = seen.value if seen.value is not None else len(flow.values)
            found.append((order, Place(inner, HALVES, *_shape(seen.shape), refusal=reason)))
    return found


def _shape(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return shape[1], shape[2:]
